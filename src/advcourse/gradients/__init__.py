"""Where a gradient comes from: backpropagation (exact), scores (estimated, coordinates), labels (rays, directions)."""

from .coordinates import Parabolas, parabolas
from .directions import Combine, Draw, average, centred, gaussian, max_margin, smooth, uniform
from .estimated import Antithetic, Differences, Estimate, OneSided, Scored
from .exact import Exact, backpropagated, in_chunks
from .rays import Rays, Trace

__all__ = [
    "Antithetic",
    "Combine",
    "Differences",
    "Draw",
    "Estimate",
    "Exact",
    "OneSided",
    "Parabolas",
    "Rays",
    "Scored",
    "Trace",
    "average",
    "backpropagated",
    "centred",
    "gaussian",
    "in_chunks",
    "max_margin",
    "parabolas",
    "smooth",
    "uniform",
]
