"""Where a gradient comes from: backpropagation (exact), scores (estimated, coordinates), labels (rays, directions), a
surrogate (transferable, in an onion)."""

from .coordinates import Parabolas, parabolas
from .directions import Combine, Draw, average, centred, gaussian, max_margin, smooth, uniform
from .estimated import Antithetic, Differences, Estimate, OneSided, Scored
from .exact import Exact, backpropagated, in_chunks
from .onion import Context, Onion, Part, through
from .rays import Rays, Trace
from .transferable import (
    RAP,
    Admix,
    InputDiversity,
    Momentum,
    Nesterov,
    Normalization,
    ScaleInvariance,
    TranslationKernel,
    VarianceTuning,
)

__all__ = [
    "RAP",
    "Admix",
    "Antithetic",
    "Combine",
    "Context",
    "Differences",
    "Draw",
    "Estimate",
    "Exact",
    "InputDiversity",
    "Momentum",
    "Nesterov",
    "Normalization",
    "OneSided",
    "Onion",
    "Parabolas",
    "Part",
    "Rays",
    "ScaleInvariance",
    "Scored",
    "Trace",
    "TranslationKernel",
    "VarianceTuning",
    "average",
    "backpropagated",
    "centred",
    "gaussian",
    "in_chunks",
    "max_margin",
    "parabolas",
    "smooth",
    "through",
    "uniform",
]
