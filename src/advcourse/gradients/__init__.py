"""Where a gradient comes from: backpropagation (exact)."""

from .exact import Exact, backpropagated

__all__ = ["Exact", "backpropagated"]
