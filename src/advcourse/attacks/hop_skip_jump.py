"""HopSkipJump: the gradient of the boundary from labels around it, a step along it, and back to the boundary."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..contract import check_number
from ..gradients import Rays, centred, gaussian, uniform
from ..threat import L2, Ball, per_image
from .hard_label import HardLabel, blended


@dataclass(frozen=True, repr=False)
class HopSkipJump(HardLabel):
    """HopSkipJump (Chen, Jordan & Wainwright 2020, algorithm 2).

    ::

        g ← 1/B · Σ (φ_b − mean φ) · u_b,   φ_b = 1 if x̃ + δu_b fools, else −1
        x̃ ← x̃ + ξ · steepest(g),            ξ = |x̃ − x| / √t, halved until that fools
        x̃ ← where the way back to x leaves what fools, by bisection

    from uniform noise that fools, blended with the image. In step t there are B = 100 · √t directions of L2 length 1,
    Gaussian in L2 and uniform in Linf, at a distance δ of a d-th of what the last bisection began with (of 0.1 in the
    first step). Where clipping cut a u_b short, it is the short one that counts. The way back is straight in L2; in
    Linf all that is farther than a radius is clipped to it. It is measured to d^-3/2 of its length, in Linf to d^-2.

    All as in the authors' program, except:

    - a start image is blended with the clean one just as noise is;
    - bisection ends when there is no number left between two radii, the halving of ξ when x̃ would stay where it is, and
      δ moves a feature by one unit in the last place or more; all of this happens in single precision;
    - an image that can pay less than twice the directions of a step keeps half of what it has left for the rest.

    Args:
        steps: at most so many.
        gamma: scales the precision of the bisection, and δ.
        initial_directions: B in the first step.
        max_directions: B does not grow beyond it.
        start_images: random images that are asked about where there is no start, at most; the authors ask 10,000.
        norm: what is made small, `L2` or `Linf`.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.oracles import Labels
        >>> x, y = data.fashion_mnist("test", n=5)
        >>> oracle = Labels(models.load("cnn"), budget=500)
        >>> *_, last = HopSkipJump().iterates(oracle, x, y, start=1 - x)
        >>> bool((last.distance < 5).all()), bool((oracle.queries <= 500).all())
        (True, True)
    """

    steps: int = 40
    gamma: float = 1.0
    initial_directions: int = 100
    max_directions: int = 10_000
    start_images: int = 100
    norm: type[Ball] = L2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in ("steps", 1), ("initial_directions", 1), ("max_directions", 1), ("start_images", 0):
            check_number(name, getattr(self, name), least)
        check_number("gamma", self.gamma, 0.0)
        if self.gamma == 0:
            raise ValueError("gamma must be positive, got 0")

    def climb(self, rays: Rays, start: Tensor | None, generator: Generator) -> Iterator[Tensor]:  # type: ignore[override]
        d = rays.x[0].numel()
        now, reach = self.back(rays, blended(rays, start, self.start_images, generator), rays.every)
        yield now
        for step in range(1, self.steps + 1):
            found = (rays.distance > 0) & (rays.distance < math.inf)
            rows = (found & (rays.oracle.remaining > 0)).nonzero().squeeze(1)
            if len(rows) == 0:
                return
            delta = self.gamma / d * reach[rows] if step > 1 else torch.full_like(reach[rows], 0.1)
            n = min(int(self.initial_directions * step**0.5), self.max_directions)
            slope = self.gradient(rays, now[rows], delta, n, rows, generator)
            size = self.norm.norm(now - rays.x)[rows] / step**0.5
            moved, reach_now = self.back(rays, self.step(rays, now[rows], self.norm.steepest(slope), size, rows), rows)
            now, reach = now.index_copy(0, rows, moved), reach.index_copy(0, rows, reach_now)
            yield now

    def gradient(self, rays: Rays, points: Tensor, delta: Tensor, n: int, rows: Tensor, generator: Generator) -> Tensor:
        """Where from points (R, ...) on the boundary more fools: the mean of n directions, each with its answer."""
        delta = delta.clamp_min(torch.finfo(delta.dtype).eps * points[0].numel() ** 0.5)
        delta, here = delta.view(-1, *[1] * points.ndim), points[:, None]
        drawn = (gaussian if self.norm is L2 else uniform)(points, n, generator)
        around = (here + delta * L2.steepest(drawn.flatten(0, 1)).view_as(drawn)).clamp(0, 1)
        quota = (rays.oracle.remaining[rows] + 1) // 2
        wanted = torch.arange(n, device=rows.device) < quota[:, None]
        signs = torch.zeros(wanted.shape, dtype=points.dtype, device=points.device)
        hit = rays.fooled(around[wanted], rows[wanted.nonzero()[:, 0]])
        signs[wanted] = torch.where(hit, 1, -1).to(signs)
        return centred(signs, (around - here) / delta)

    def step(self, rays: Rays, points: Tensor, uphill: Tensor, size: Tensor, rows: Tensor) -> Tensor:
        """Points (R, ...) after a step uphill that fools, of the size (R,) or a half, a quarter, ... of it."""
        moved, open_ = points.clone(), torch.arange(len(rows), device=rows.device)
        while True:
            tried = (points[open_] + per_image(size[open_], points) * uphill[open_]).clamp(0, 1)
            going = (tried != points[open_]).flatten(1).any(1) & (rays.oracle.remaining[rows[open_]] > 0)
            open_, tried = open_[going], tried[going]
            if len(open_) == 0:
                return moved
            hit = rays.fooled(tried, rows[open_])
            moved[open_[hit]] = tried[hit]
            open_, size = open_[~hit], size / 2

    def back(self, rays: Rays, image: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The last points that fool on the way from images (R, ...) to their clean ones, and how long it was (R,)."""
        x = rays.x[rows]
        theta, reach = rays.unit(image - x), self.norm.norm(image - x)

        def path(some: Tensor, radius: Tensor) -> Tensor:
            if self.norm is L2:
                return rays.points(theta[some], radius, rows[some])
            return image[some].clamp(x[some] - per_image(radius, x), x[some] + per_image(radius, x))

        tol = self.gamma * x[0].numel() ** (-1.5 if self.norm is L2 else -2)
        radius = rays.narrow(path, torch.zeros_like(reach), reach, tol * reach, rows)
        every = torch.arange(len(rows), device=rows.device)
        return torch.where(per_image(radius < reach, image), path(every, radius), image), reach
