"""Where a gradient comes from: backpropagation (exact)."""

from .exact import Exact, backpropagated, in_chunks

__all__ = ["Exact", "backpropagated", "in_chunks"]
