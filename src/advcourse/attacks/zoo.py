"""ZOO: the objective of Carlini & Wagner, descended a few coordinates at a time by asking on both sides of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..ascent import State, Verdict, warn_if_flat
from ..contract import check_number
from ..goals import Goal, margin
from ..gradients import Scored, parabolas
from ..oracles import Scores
from ..threat import L2, per_image
from .query import QueryAttack


class Update(ABC):
    """How a coordinate moves, given the slope and the curvature of the objective along it."""

    kept: ClassVar[int]
    """How many numbers it remembers of each coordinate; they begin at 0."""

    @abstractmethod
    def __call__(self, slope: Tensor, curvature: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What to subtract, before it is multiplied by the step size, (R, n) and the new memory (kept, R, n)."""


@dataclass(frozen=True)
class Adam(Update):
    """ZOO-ADAM (algorithm 2): Adam in which every coordinate counts its own steps.

    Example:
        >>> step, memory = Adam()(torch.tensor([[3.0, -0.1]]), torch.zeros(1, 2), torch.zeros(3, 1, 2))
        >>> step
        tensor([[ 1.0000, -1.0000]])
    """

    beta1: float = 0.9
    beta2: float = 0.999

    kept = 3

    def __post_init__(self) -> None:
        for name in "beta1", "beta2":
            check_number(name, getattr(self, name), 0.0)
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be less than 1, got {getattr(self, name)}")

    def __call__(self, slope: Tensor, curvature: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        mean, square, count = memory
        mean, square, count = mean.lerp(slope, 1 - self.beta1), square.lerp(slope**2, 1 - self.beta2), count + 1
        scale = (square / (1 - self.beta2**count)).sqrt() + 1e-8
        return mean / (1 - self.beta1**count) / scale, torch.stack([mean, square, count])


@dataclass(frozen=True)
class Newton(Update):
    """ZOO-Newton (algorithm 3): the slope over the curvature, which counts as 1 where it is not positive.

    The floor under positive curvatures is in the authors' program and not in the paper. With a `step_size` of 1 a
    separable quadratic is solved in one step. Second differences are noisier than first ones by a factor of 1/h: h must
    be larger than for `Adam`, 0.01 say.

    Args:
        floor: the least curvature that is believed.

    Example:
        >>> step, _ = Newton()(torch.full((1, 3), 2.0), torch.tensor([[4.0, 0.01, -3.0]]), torch.zeros(0, 1, 3))
        >>> step
        tensor([[ 0.5000, 20.0000,  2.0000]])
    """

    floor: float = 0.1

    kept = 0

    def __post_init__(self) -> None:
        check_number("floor", self.floor, 0.0)

    def __call__(self, slope: Tensor, curvature: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return slope / torch.where(curvature > 0, curvature.clamp_min(self.floor), 1), memory


Sampling = Callable[[Tensor], Tensor]
"""Weights (R, ...), positive, with which the coordinates of modifiers (R, ...) are drawn."""


def uniform(modifier: Tensor) -> Tensor:
    """All coordinates alike."""
    return torch.ones_like(modifier)


def importance(modifier: Tensor) -> Tensor:
    """In proportion to how far the region of a coordinate has moved: the largest change in it (section 3.3 of ZOO).

    The regions of modifiers (R, C, H, W) are the squares of a grid of 8 by 8, for each channel; any other shape has no
    neighbours, and a coordinate is its own region. A tenth of the largest change is added everywhere, so that what has
    never moved is drawn too. The authors' program looks at the modifier only when its grid grows, here at every step.

    Example:
        >>> modifier = torch.zeros(1, 1, 16, 16)
        >>> modifier[0, 0, 3, 4] = -0.5
        >>> importance(modifier)[0, 0, 2:5, 3:7]
        tensor([[0.0500, 0.5500, 0.5500, 0.0500],
                [0.0500, 0.5500, 0.5500, 0.0500],
                [0.0500, 0.0500, 0.0500, 0.0500]])
    """
    moved = modifier.abs()
    if moved.ndim == 4:
        height, width = moved.shape[2:]
        region = max(1, -(-height // 8)), max(1, -(-width // 8))
        pooled = F.max_pool2d(moved, region, ceil_mode=True)
        moved = pooled.repeat_interleave(region[0], 2).repeat_interleave(region[1], 3)[:, :, :height, :width]
    largest = moved.flatten(1).amax(1)
    return moved + per_image(torch.where(largest > 0, 0.1 * largest, 1), moved)


class Modifier:
    """What is added to images `clean` (N, ...): values on a grid of its own, and what the update knows of each of them.

    A grid coarser than the image is spread over it bilinearly, so a value moves all pixels around it.
    """

    def __init__(self, clean: Tensor, update: Update) -> None:
        self.clean, self.values = clean, torch.zeros_like(clean)
        self.memory = clean.new_zeros(update.kept, *clean.flatten(1).shape)

    def regrid(self, side: int) -> None:
        """Go on with a grid of side x side values for each channel, and with nothing remembered."""
        self.values = _resized(self.values, (side, side))
        self.memory = self.memory.new_zeros(len(self.memory), *self.values.flatten(1).shape)

    def spread(self, values: Tensor) -> Tensor:
        """Values on the grid (R, ...) as changes of the image (R, ...)."""
        return _resized(values, self.clean.shape[2:])

    def images(self, rows: Tensor) -> Tensor:
        """The images `rows` (R,) as they are now, in the box (R, ...)."""
        return (self.clean[rows] + self.spread(self.values[rows])).clamp(0, 1)

    def directions(self, drawn: Tensor) -> Tensor:
        """What coordinates (R, n) change in the image, each by a unit: (R, n, ...)."""
        units = self.clean.new_zeros(*drawn.shape, self.values[0].numel()).scatter_(2, drawn[:, :, None], 1)
        return self.spread(units.view(-1, *self.values.shape[1:])).view(*drawn.shape, *self.clean.shape[1:])

    def length(self, rows: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and curvature of the squared length of m along directions v (R, n, ...), each (R, n)."""
        m = self.spread(self.values[rows])
        return 2 * torch.einsum("rn...,r...->rn", v, m), 2 * v.flatten(2).square().sum(2)

    def move(self, rows: Tensor, drawn: Tensor, step: Tensor) -> None:
        """Add a step (R, n) to coordinates (R, n) of images `rows`."""
        values = self.values[rows].flatten(1).scatter_add(1, drawn, step).view(-1, *self.values.shape[1:])
        if values.shape[1:] == self.clean.shape[1:]:  # a coarse grid has no box, its pixels are clipped instead
            values = (self.clean[rows] + values).clamp(0, 1) - self.clean[rows]
        self.values[rows] = values


@dataclass(frozen=True, repr=False)
class ZOO(QueryAttack):
    """The zeroth-order attack of Chen et al. (2017, algorithms 1 to 3): `CarliniWagner` without a gradient.

    Over a modifier m that begins at 0 it minimises ::

        |m|² + c · max(confidence − margin(x_0 + m), 0)

    the margin being that of log-probabilities. Each step draws `coordinates` of m for each image, and asks for the
    margin at a distance of h on both sides of each: `parabolas` has the formulas. The slope and the curvature of m's
    length are known and cost nothing. c is chosen as in `CarliniWagner`; every search begins at the clean image.

    A step costs ``2 · coordinates`` queries and one more for the image it leads to. If that one is adversarial, by the
    `confidence`, the clamped margin is flat there: nothing is asked about it, and m's length alone pulls it back, for
    one query. (The authors ask all the same.) An image that is misclassified costs one query. An image that cannot pay
    for the next step is done. Only what has been judged is a candidate for the nearest.

    There is no tanh: it is flat where pixels are 0 or 1, and the authors switch it off on MNIST for that. m is clipped
    to the box instead.

    For images, m may live on coarser grids (section 3.2 of the paper): `scales` are their sides, each used for an equal
    part of the steps of a search and spread over the image bilinearly. The length is that of m before it is clipped.

    With a c that is large enough the objective has its minimum on the border itself; one that is larger still makes the
    iterates overshoot it, and one that is too small finds nothing. A second search cures the latter.

    `ZOO.paper` has the authors' settings for MNIST. The defaults here have a larger step, for a few thousand queries an
    image are all there is as a rule, and h = 1e-3 instead of 1e-4, where single precision rounds one difference in a
    hundred to zero; the slopes are as accurate, and 0.01 costs little. `Newton` needs that for its second differences.

    Args:
        steps: at most so many in each search.
        coordinates: drawn without replacement for one step, 2 queries each. All of them if there are not more.
        h: how far to go on either side, in units of the input. On trees, quantized or rounded scores it must reach
            the next change of the scores.
        step_size: what steps of the update are multiplied by. 1 suits `Newton` on quadratics.
        initial_c: the weight of the margin in the first search.
        search_steps: searches for c.
        confidence: the margin of log-probabilities that counts as success.
        update: `Adam(beta1, beta2)` or `Newton(floor)`.
        sampling: `uniform` or `importance`; see `Sampling`.
        scales: sides of the grids that carry the modifier, from coarse to fine; none for the pixels themselves.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("test", n=2)
        >>> oracle = Scores(models.load("cnn"), budget=2000)
        >>> *_, last = ZOO(step_size=0.05, scales=(14,)).iterates(oracle, x, y)
        >>> bool(last.success.all()), bool((oracle.queries <= 2000).all())
        (True, True)
    """

    steps: int = 1000
    coordinates: int = 128
    h: float = 1e-3
    step_size: float = 0.02
    initial_c: float = 0.5
    search_steps: int = 1
    confidence: float = 0.0
    update: Update = Adam()
    sampling: Sampling = uniform
    scales: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in ("steps", 1), ("coordinates", 1), ("search_steps", 1), ("confidence", 0.0):
            check_number(name, getattr(self, name), least)
        for name in "h", "step_size", "initial_c":
            check_number(name, getattr(self, name), 0.0)
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be positive, got 0")
        if not isinstance(self.update, Update):
            raise ValueError(f"update must be Adam(...) or Newton(...), got {self.update!r}")
        if not callable(self.sampling):
            raise ValueError(f"sampling must be a function such as uniform or importance, got {self.sampling!r}")
        for side in self.scales:
            check_number("scales", side, 1)

    @classmethod
    def paper(cls) -> Self:
        """The authors' settings for MNIST, one search with c = 0.5: 771,001 queries at most."""
        return cls(steps=3000, h=1e-4, step_size=0.01, initial_c=0.5)

    def climb(self, oracle: Scores, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        if self.scales and (x.ndim != 4 or max(self.scales) > min(x.shape[2:])):
            raise ValueError(
                f"scales are sides of grids no finer than images (N, C, H, W), got {self.scales} for {tuple(x.shape)}"
            )
        judge = Scored(oracle, partial(margin, kappa=self.confidence), goal)
        clean = judge(x, torch.arange(len(x), device=x.device))
        state = replace(State.before(x, Verdict(self.initial_c * (clean.loss - self.confidence), clean.fooled)), step=0)
        yield state
        c = torch.full((len(x),), self.initial_c, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        low, high, nearest = torch.zeros_like(c), torch.full_like(c, torch.inf), torch.full_like(c, torch.inf)
        for search in range(self.search_steps):
            hit = torch.zeros_like(clean.fooled)
            for rows, points, met in self.descend(judge, x, clean, c, generator, search > 0):
                distance = L2.norm(points.to(c.dtype) - x[rows])
                objective = distance.square() + c[rows] * (self.confidence - met.loss)
                better = met.fooled & (distance < nearest[rows])
                nearest[rows[better]] = distance[better]
                hit[rows] |= met.fooled
                state = state.met(rows, points, Verdict(-objective, met.fooled | state.success[rows]), better)
                yield state
            low, high = torch.where(hit, low, low.maximum(c)), torch.where(hit, high.minimum(c), high)
            c = torch.where(high < torch.inf, (low + high) / 2, (10 * c).clamp(max=1e10))

    def descend(
        self, judge: Scored, x: Tensor, clean: Verdict, c: Tensor, generator: Generator, warned: bool
    ) -> Iterator[tuple[Tensor, Tensor, Verdict]]:
        """One search, with weights c (N,): after each step, the images it moved (R,), where they stand (R, ...), and
        whether that counts."""
        m = Modifier(x.to(c.dtype), self.update)
        grids = {stage * self.steps // len(self.scales): side for stage, side in enumerate(self.scales)}
        rows, loss, found = (~clean.fooled).nonzero().squeeze(1), clean.loss.clone(), torch.zeros_like(clean.fooled)
        if grids:
            m.regrid(grids[0])
        for step in range(self.steps):
            n = min(self.coordinates, m.values[0].numel())
            affords = judge.oracle.affords
            rows = rows[affords(rows, 1) & (found[rows] | affords(rows, 2 * n + 1))]
            if len(rows) == 0:
                return
            drawn = self.sampling(m.values[rows]).flatten(1).multinomial(n, generator=generator)
            v = m.directions(drawn)
            slope, curvature = m.length(rows, v)
            part = ~found[rows]
            asking = rows[part]
            if len(asking):
                points, met = m.images(asking).to(x.dtype), Verdict(loss[asking], found[asking])
                bend = parabolas(judge, points, met, v[part], self.h, asking)
                warned = warned or warn_if_flat(bend, len(x), step)
                slope[part] -= c[asking, None] * bend.gradient
                curvature[part] -= c[asking, None] * bend.curvature
            where = slice(None), rows[:, None], drawn
            stride, m.memory[where] = self.update(slope, curvature, m.memory[where])
            m.move(rows, drawn, -self.step_size * stride)
            if step + 1 in grids:
                m.regrid(grids[step + 1])
            points = m.images(rows).to(x.dtype)
            met = judge(points, rows)
            loss[rows], found[rows] = met.loss, met.fooled & (met.loss >= self.confidence)
            yield rows, points, Verdict(met.loss, found[rows])


def _resized(grid: Tensor, size: Sequence[int]) -> Tensor:
    return grid if tuple(grid.shape[2:]) == tuple(size) else F.interpolate(grid, list(size), mode="bilinear")
