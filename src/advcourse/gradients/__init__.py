"""Where a gradient comes from: backpropagation (exact), finite differences of scores (estimated, coordinates)."""

from .coordinates import Parabolas, parabolas
from .estimated import Antithetic, Differences, Estimate, OneSided, Scored
from .exact import Exact, backpropagated, in_chunks

__all__ = [
    "Antithetic",
    "Differences",
    "Estimate",
    "Exact",
    "OneSided",
    "Parabolas",
    "Scored",
    "backpropagated",
    "in_chunks",
    "parabolas",
]
