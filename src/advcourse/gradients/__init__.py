"""Where a gradient comes from: backpropagation (exact)."""

from .exact import Exact

__all__ = ["Exact"]
