"""Learning rates: functions of how much of the training is over, a number from 0 to 1."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ..contract import check_number

Schedule = Callable[[float], float]
"""From the fraction of all updates that are done, in [0, 1), to the learning rate of the next one."""


@dataclass(frozen=True)
class Constant:
    """Always the same rate."""

    rate: float

    def __post_init__(self) -> None:
        check_number("rate", self.rate, 0.0)

    def __call__(self, done: float) -> float:
        return self.rate


@dataclass(frozen=True)
class Cyclic:
    """From 0 up to `peak` and back to 0, in straight lines (Smith 2017; the triangle of Wong et al. 2020).

    Args:
        peak: the largest rate.
        rise: where it is reached, a fraction of the training.

    Raises:
        ValueError: if peak is negative or rise not between 0 and 1.

    Example:
        >>> [Cyclic(0.2)(done) for done in (0.0, 0.25, 0.5, 0.75)]
        [0.0, 0.1, 0.2, 0.1]
    """

    peak: float
    rise: float = 0.5

    def __post_init__(self) -> None:
        _check_cycle(self.peak, self.rise)

    def __call__(self, done: float) -> float:
        return self.peak * min(done / self.rise, (1 - done) / (1 - self.rise))


@dataclass(frozen=True)
class OneCycle:
    """From peak / 25 up to `peak`, and down to almost nothing, along cosines (Smith & Topin 2019).

    Args:
        peak, rise: as for `Cyclic`.

    Raises:
        ValueError: if peak is negative or rise not between 0 and 1.
    """

    peak: float
    rise: float = 0.2

    def __post_init__(self) -> None:
        _check_cycle(self.peak, self.rise)

    def __call__(self, done: float) -> float:
        if done < self.rise:
            low, phase = self.peak / 25, done / self.rise
        else:
            low, phase = self.peak / 250_000, (1 - done) / (1 - self.rise)
        return low + (self.peak - low) * (1 - math.cos(math.pi * phase)) / 2


@dataclass(frozen=True)
class Piecewise:
    """One rate to start with, and others later.

    Args:
        start: the first rate.
        later: from a fraction of the training to the rate from there on.

    Raises:
        ValueError: if a rate is negative, or a fraction not between 0 and 1.

    Example:
        >>> halves = Piecewise(0.1, {0.5: 0.01, 0.75: 0.001})
        >>> [halves(done) for done in (0.0, 0.5, 0.9)]
        [0.1, 0.01, 0.001]
    """

    start: float
    later: dict[float, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_number("start", self.start, 0.0)
        for fraction, rate in self.later.items():
            check_number("rate", rate, 0.0)
            _check_fraction("where a rate begins", fraction)

    def __call__(self, done: float) -> float:
        return self.later[max(past)] if (past := [at for at in self.later if at <= done]) else self.start


def _check_cycle(peak: float, rise: float) -> None:
    check_number("peak", peak, 0.0)
    _check_fraction("rise", rise)


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be a fraction of the training between 0 and 1, got {value!r}")
