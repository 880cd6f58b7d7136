"""OPT and Sign-OPT: descend the distance g(θ) of the boundary over directions θ."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Generator, Tensor

from ..contract import check_number
from ..gradients import Combine, Draw, Rays, average, centred, gaussian, smooth
from ..threat import L2, Ball, per_image
from .hard_label import HardLabel

LineSearch = Callable[[Rays, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""``search(rays, rows, θ, g(θ), slope, step_size) -> (θ, g(θ), step_size)`` of images `rows` (R,): how far to go down
the slope (R, ...) of g. Where nothing nearer is found, θ stays."""


@dataclass(frozen=True)
class Doubling:
    """The published search: double the step while that leads nearer; if it never did, quarter it until it does.

    A direction that is no nearer is given up after the one query that tells so. The authors' program measures its g
    as well, and makes no use of it.

    Args:
        tol: how exactly g is measured, in units of the input; the authors' β/500.
        tries: doublings, and quarterings, at most.
    """

    tol: float = 2e-6
    tries: int = 15

    def __post_init__(self) -> None:
        check_number("tol", self.tol, 0.0)
        check_number("tries", self.tries, 1)

    def __call__(
        self, rays: Rays, rows: Tensor, theta: Tensor, radius: Tensor, slope: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        best, nearest, step = theta.clone(), radius.clone(), step.clone()
        for factor in 2.0, 0.25:
            going = (nearest == radius).nonzero().squeeze(1)
            for _ in range(self.tries):
                if factor < 1:
                    step[going] *= factor
                found = rays.unit(theta[going] - per_image(step[going], theta) * slope[going])
                g = rays.g(found, nearest[going], self.tol, rows[going], limit=1.0)
                if factor > 1:
                    step[going] *= factor
                nearer = g < nearest[going]
                best[going[nearer]], nearest[going[nearer]] = found[nearer], g[nearer]
                going = going[nearer if factor > 1 else ~nearer]
        return best, nearest, step


@dataclass(frozen=True, repr=False)
class Descent(HardLabel):
    """What OPT and Sign-OPT share: ``θ ← θ − step_size · slope``, the slope of g being a matter of the class.

    The first θ is the best of some random directions, or points to a start image. A direction is asked at the radius of
    the best so far, and its own boundary is looked for only if it fools there. (To look for it means to bisect, which
    is what the authors' program does under the name of a fine-grained search; `stride` makes it one.)

    When the step size has fallen below 1e-4, it becomes 1, and β a tenth of what it was.
    """

    steps: int = 1000
    directions: int = 20
    beta: float = 1e-3
    step_size: float = 0.2
    start_directions: int = 100
    start_tol: float = 1e-3
    stride: float | None = None
    draw: Draw = gaussian
    search: LineSearch = Doubling()
    norm: type[Ball] = L2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in ("steps", 1), ("directions", 1), ("start_directions", 0):
            check_number(name, getattr(self, name), least)
        for name in "beta", "step_size", "start_tol", "stride":
            if name != "stride" or self.stride is not None:
                check_number(name, getattr(self, name), 0.0)
                if getattr(self, name) == 0:
                    raise ValueError(f"{name} must be positive, got 0")
        for name in "draw", "search":
            if not callable(getattr(self, name)):
                raise ValueError(f"{name} must be a function, see its type; got {getattr(self, name)!r}")

    @abstractmethod
    def slope(
        self, rays: Rays, rows: Tensor, theta: Tensor, radius: Tensor, beta: Tensor, step: int, generator: Generator
    ) -> Tensor:
        """The slope of g at θ (R, ...), where it is `radius` (R,), for images `rows` (R,)."""

    def climb(self, rays: Rays, start: Tensor | None, generator: Generator) -> Iterator[Tensor]:  # type: ignore[override]
        theta, radius = self.begin(rays, start, generator)
        yield rays.best
        size, beta = torch.full_like(radius, self.step_size), torch.full_like(radius, self.beta)
        for step in range(1, self.steps + 1):
            going = (radius > 0) & (radius < math.inf) & (beta > 1e-8) & (rays.oracle.remaining > 0)
            rows = going.nonzero().squeeze(1)
            if len(rows) == 0:
                return
            slope = self.slope(rays, rows, theta[rows], radius[rows], beta[rows], step, generator)
            theta[rows], radius[rows], size[rows] = self.search(
                rays, rows, theta[rows], radius[rows], slope, size[rows]
            )
            stuck = size < 1e-4
            size, beta = size.masked_fill(stuck, 1.0), torch.where(stuck, 0.1 * beta, beta)
            yield rays.points(theta, radius.where(radius < math.inf, 0), rays.every)

    def begin(self, rays: Rays, start: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor]:
        """The first directions (N, ...) and their g (N,); infinite where none was found, 0 where none is needed."""
        theta, radius = torch.zeros_like(rays.x), rays.distance
        settled = radius == 0
        given = [] if start is None else [(start - rays.x, start)]
        random = ((self.draw(rays.x, 1, generator, 0)[:, 0], None) for _ in range(self.start_directions))
        for u, image in chain(given, random):
            rows = (~settled & (rays.oracle.remaining > 0)).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            reach, ray = rays.norm.norm(u)[rows].minimum(radius[rows]), rays.unit(u[rows])
            # A ray to a start image ends there but for rounding, and the image is what fools.
            hit = rays.fooled(rays.points(ray, reach, rows) if image is None else image[rows], rows)
            ray, rows, high = ray[hit], rows[hit], reach[hit]
            low = torch.zeros_like(high)
            if self.stride is not None:
                low, first = rays.walk(ray, self.stride, high, rows)
                high = high.minimum(first)
            theta[rows] = ray
            radius = radius.index_copy(0, rows, rays.bisect(ray, low, high, self.start_tol * high, rows))
            if image is not None:
                settled = settled.index_fill(0, rows, True)
        return theta, radius


@dataclass(frozen=True, repr=False)
class OPT(Descent):
    """The OPT attack of Cheng et al. (2019, algorithm 1): zeroth-order descent of g(θ) = the distance along θ.

    ::

        slope ← 1/q · Σ (g(θ + βu) − g(θ)) / β · u,    θ ← θ − step_size · slope

    q directions, each of which costs a local search and a bisection: ten to twenty queries. The paper takes q = 20,
    the authors' program 10. It also accepts the nearest of the θ + βu where that is nearer than all steps.

    Args:
        steps: at most so many.
        directions: q.
        beta: how far to go along them, in a direction of length 1.
        step_size: of the first step; the search changes it, for each image.
        start_directions: random directions that the first one is the best of.
        start_tol: how exactly their g is measured, as a fraction of the radius at which they were found to fool.
        stride: step of the fine-grained search for their boundaries; None to bisect alone.
        draw: how directions are drawn.
        search: how far to go down the slope.
        norm: what is made small, `L2` or `Linf`.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.oracles import Labels
        >>> x, y = data.fashion_mnist("test", n=3)
        >>> oracle = Labels(models.load("cnn"), budget=1000)
        >>> *_, last = OPT().iterates(oracle, x, y)
        >>> bool(last.success.all()), bool((last.distance < 6).all()), bool((oracle.queries <= 1000).all())
        (True, True, True)
    """

    def slope(
        self, rays: Rays, rows: Tensor, theta: Tensor, radius: Tensor, beta: Tensor, step: int, generator: Generator
    ) -> Tensor:
        n = self.directions
        u = rays.unit(self.draw(theta, n, generator, step).flatten(0, 1))
        who, guess, beta = (part.repeat_interleave(n) for part in (rows, radius, beta))
        moved = rays.unit(theta.repeat_interleave(n, 0) + per_image(beta, u) * u)
        g = rays.g(moved, guess, beta / 500, who).minimum(2 * guess)
        return average(((g - guess) / beta).view(-1, n), u.view(-1, n, *u.shape[1:]))


@dataclass(frozen=True, repr=False)
class SignOPT(Descent):
    """The Sign-OPT attack of Cheng et al. (2020, algorithm 1): as `OPT`, but one query tells all that a direction says.

    ::

        slope ← 1/Q · Σ sign(g(θ + βu) − g(θ)) · u,    θ ← θ − step_size · slope

    `SignOPT.paper` is the published algorithm. The defaults here come as near for two thirds of the queries during the
    first 2,000, and are level with it from 5,000 on, give or take some percent. They differ from it in:

    - `draw`: `smooth` directions instead of Gaussian ones, for the start and for the slope, less and less so;
    - `directions`, `growth`: 30 · √step of them instead of always 200, for a step that is far from the minimum needs
      no exact slope;
    - `beta`: 0.01 / √step instead of 0.001;
    - `search`: g is measured to 2e-5, which is that β/500, instead of 2e-6;
    - `combine`: the mean sign is subtracted;
    - `start_tol`: a hundredth instead of a thousandth.

    An image that can pay less than twice the directions of a step keeps half of what it has left for the search.

    Args:
        steps: at most so many.
        directions: Q in the first step.
        beta: how far to go along them in the first step, in a direction of length 1.
        step_size: of the first step; the search changes it, for each image.
        start_directions: random directions that the first one is the best of.
        start_tol: how exactly their g is measured, as a fraction of the radius at which they were found to fool.
        stride: step of the fine-grained search for their boundaries; None to bisect alone.
        draw: how directions are drawn.
        search: how far to go down the slope.
        norm: what is made small, `L2` or `Linf`.
        growth: the power of the step by which the number of directions grows and beta shrinks.
        combine: what is made of the signs: `average`, `centred`, or `max_margin`, which is SVM-OPT.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.oracles import Labels
        >>> x, y = data.fashion_mnist("test", n=10)
        >>> oracle = Labels(models.load("cnn"), budget=1000)
        >>> *_, last = SignOPT().iterates(oracle, x, y)
        >>> bool(last.success.all()), bool(last.distance.median() < 0.8), bool((oracle.queries <= 1000).all())
        (True, True, True)
    """

    directions: int = 30
    beta: float = 1e-2
    start_tol: float = 1e-2
    draw: Draw = smooth
    search: LineSearch = Doubling(tol=2e-5)
    growth: float = 0.5
    combine: Combine = centred

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("growth", self.growth, 0.0)
        if not callable(self.combine):
            raise ValueError(f"combine must be a function such as gradients.average, got {self.combine!r}")

    @classmethod
    def paper(cls, norm: type[Ball] = L2) -> Self:
        """As published, with the settings of the authors' program."""
        return cls(
            directions=200,
            beta=1e-3,
            start_tol=1e-3,
            draw=gaussian,
            search=Doubling(),
            norm=norm,
            growth=0.0,
            combine=average,
        )

    def slope(
        self, rays: Rays, rows: Tensor, theta: Tensor, radius: Tensor, beta: Tensor, step: int, generator: Generator
    ) -> Tensor:
        finer = step**self.growth
        n = int(self.directions * finer)
        drawn = self.draw(theta, n, generator, step)
        u = rays.unit(drawn.flatten(0, 1)).view_as(drawn)
        quota = ((rays.oracle.remaining[rows] + 1) // 2).clamp_max(n)
        return self.combine(rays.signs(theta, radius, u, beta / finer, rows, quota), u)
