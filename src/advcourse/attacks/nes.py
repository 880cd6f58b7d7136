"""NES: PGD on a gradient that was asked for, difference by difference."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor

from ..ascent import Slope, State, follow
from ..contract import check_ball, check_loss, check_number
from ..goals import Goal, Loss, cross_entropy, margin
from ..gradients import Antithetic, Scored
from ..oracles import Scores
from ..threat import Ball, per_image
from .query import QueryAttack


@dataclass(frozen=True, repr=False)
class NES(QueryAttack):
    """The query-limited attack of Ilyas et al. (2018, algorithm 1): PGD whose gradient is estimated, with momentum.

    ::

        g ← 1/(2nσ) · Σ u · (L(x + σu) − L(x − σu)),   m ← momentum · m + (1 − momentum) · g
        x ← Π(x + step_size · steepest(m))

    from the clean image. When the last of `plateau` losses of an image is lower than the first, its step size is
    divided by `decay`, down to `least_step_size`, and another `plateau` begin; the authors do this for the mean loss of
    the samples, here it is that at x.
    Each step costs ``2 · directions + 1`` queries, the last iterate one: it is judged before it is returned.

    The settings are those of the authors, who have 10,000 queries by default, but for one: they climb the
    cross-entropy, and out of probabilities in single precision that is exactly flat where the true class has all of it;
    the default here is the margin. `NES.paper` has theirs.

    Args:
        ball: where to stay, `Linf(eps)`, `L2(eps)` or `L1(eps)`.
        steps: at most so many.
        directions: n, pairs of queries for one gradient.
        sigma: how far apart the two of a pair are from the middle, in units of the input.
        step_size: length of the first steps in the ball's norm.
        momentum: how much of the old direction stays.
        plateau: so many steps in a row without progress, and the step size falls.
        decay: what it is divided by.
        least_step_size: where it stops falling.
        loss: what to climb, larger when closer to fooled.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("test", n=10)
        >>> oracle = Scores(models.load("cnn"), budget=1000)
        >>> x_adv = NES(Linf(0.1))(oracle, x, y)
        >>> bool(((x_adv - x).abs() <= 0.1 + 1e-6).all()), bool((oracle.queries <= 1000).all())
        (True, True)
    """

    ball: Ball
    steps: int = 200
    directions: int = 25
    sigma: float = 1e-3
    step_size: float = 1e-2
    momentum: float = 0.9
    plateau: int = 5
    decay: float = 2.0
    least_step_size: float = 5e-5
    loss: Loss = margin

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_loss(self.loss)
        for name, least in ("steps", 1), ("directions", 1), ("plateau", 2), ("decay", 1.0), ("momentum", 0.0):
            check_number(name, getattr(self, name), least)
        for name in "step_size", "least_step_size", "sigma":
            check_number(name, getattr(self, name), 0.0)
        if self.sigma == 0 or self.momentum >= 1:
            raise ValueError(f"sigma must be positive and momentum less than 1, got {self.sigma} and {self.momentum}")

    @classmethod
    def paper(cls, ball: Ball) -> Self:
        """As published: it climbs the cross-entropy."""
        return cls(ball, loss=cross_entropy)

    def climb(self, oracle: Scores, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        judge = Scored(oracle, self.loss, goal)
        gradient = Antithetic(judge, self.directions, self.sigma, generator)
        steps = min(self.steps, (int(oracle.remaining.min()) - 1) // (1 + 2 * self.directions))
        yield from follow(gradient, Inertia(self, x), x, steps, judge=judge)


class Inertia:
    """A `Move` that remembers, of each image: its direction, its step size and its last losses."""

    def __init__(self, attack: NES, x: Tensor) -> None:
        self.attack, self.x, self.direction = attack, x, torch.zeros_like(x)
        self.step_size = x.new_full((len(x),), attack.step_size)
        self.losses = x.new_full((len(x), attack.plateau), -torch.inf)

    def __call__(self, step: int, rows: Tensor, points: Tensor, slope: Slope) -> Tensor:
        ball, losses = self.attack.ball, torch.cat([self.losses[rows, 1:], slope.loss[:, None]], 1)
        stuck = losses[:, -1] < losses[:, 0]
        least = min(self.attack.step_size, self.attack.least_step_size)
        slower = (self.step_size[rows] / self.attack.decay).clamp_min(least)
        self.step_size[rows] = torch.where(stuck, slower, self.step_size[rows])
        self.losses[rows] = torch.where(stuck[:, None], -torch.inf, losses)
        self.direction[rows] = self.direction[rows].lerp(slope.gradient, 1 - self.attack.momentum)
        stride = ball.stride(self.direction[rows], points, left=1 - (step + 1) / self.attack.steps)
        return ball.project(points + per_image(self.step_size[rows], points) * stride, self.x[rows])
