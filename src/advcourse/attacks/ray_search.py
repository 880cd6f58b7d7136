"""RayS: a search over the corners of the Linf ball, by flipping the signs of blocks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice

import torch
from torch import Generator, Tensor

from ..contract import check_number
from ..gradients import Rays
from ..threat import Linf
from .hard_label import HardLabel


@dataclass(frozen=True, repr=False)
class RayS(HardLabel):
    """RayS (Chen & Gu 2020, algorithm 3), in Linf: the direction that is nearest the boundary, out of all signs.

    ::

        θ' ← θ with the signs of one block flipped
        if x + g(θ) · θ' fools:  g(θ') by bisection, and θ ← θ' if that is less

    The first question is the fast check: most flips fail it, for one query. Blocks are the whole image, its halves,
    quarters, ... of features in their order in memory, down to single ones, which are then gone through again and
    again. Nothing is random and no step size has to be chosen.

    θ = (1, ..., 1) at first, or sign(start − x) where there is a start, which is asked about too. As long as nothing
    fools, flips are asked at radius 1, where all features are at 0 or 1; the authors go to 10, or to infinity,
    which are the same images. Two things differ from these programs: the first θ is itself asked about, and an image is
    done when flipping each single feature has failed, for then it would fail ever after.

    Args:
        steps: flips, at most.
        tol: how exactly g is measured, in L2 length before clipping, as in the authors' programs: √d times the radius.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.oracles import Labels
        >>> x, y = data.fashion_mnist("test", n=5)
        >>> oracle = Labels(models.load("cnn"), budget=300)
        >>> *_, last = RayS().iterates(oracle, x, y)
        >>> bool((last.distance < 0.2).all()), bool((oracle.queries <= 300).all())
        (True, True)
    """

    norm = Linf
    steps: int = 10_000
    tol: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("steps", self.steps, 1)
        check_number("tol", self.tol, 0.0)
        if self.tol == 0:
            raise ValueError("tol must be positive, got 0")

    def climb(self, rays: Rays, start: Tensor | None, generator: Generator) -> Iterator[Tensor]:  # type: ignore[override]
        x, d = rays.x, rays.x[0].numel()
        theta, radius, failed = (
            torch.ones_like(x),
            torch.full_like(rays.distance, math.inf),
            torch.zeros_like(rays.every),
        )
        if start is not None:
            rows = (rays.distance > 0).nonzero().squeeze(1)
            rays.fooled(start[rows], rows)
            theta = torch.where(start < x, -theta, theta)
        for first, last in islice(chain([(0, 0)], blocks(d)), self.steps):
            open_ = (rays.distance > 0) & (failed < d) & (rays.oracle.remaining > 0)
            rows = open_.nonzero().squeeze(1)
            if len(rows) == 0:
                return
            flipped = theta[rows]
            flipped.flatten(1)[:, first:last] *= -1
            high = radius[rows].clamp_max(1)
            hit = rays.crossed(flipped, high, rows)
            high[hit] = rays.bisect(flipped[hit], torch.zeros_like(high[hit]), high[hit], self.tol / d**0.5, rows[hit])
            nearer = hit & (high < radius[rows])
            theta[rows[nearer]], radius[rows[nearer]] = flipped[nearer], high[nearer]
            failed[rows] = 0 if last - first != 1 else torch.where(nearer, 0, failed[rows] + 1)  # in a row
            yield rays.points(theta, radius.where(radius < math.inf, 0), rays.every)


def blocks(d: int) -> Iterator[tuple[int, int]]:
    """Where the blocks of d features begin and end: all, two halves, four quarters, ..., and without end single ones.

    Example:
        >>> list(islice(blocks(5), 11))
        [(0, 5), (0, 3), (3, 5), (0, 2), (2, 4), (4, 5), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    """
    for level in count():
        size = -(-d // 2**level)
        for first in range(0, d, size):
            yield first, min(first + size, d)
