"""Bandits: one guess of the gradient, improved by two questions at a time and never thrown away."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..ascent import State, ascend
from ..contract import check_loss, check_number
from ..goals import Goal, Loss, cross_entropy, margin
from ..gradients import Differences, Scored
from ..oracles import Scores
from ..threat import L2, Ball, Linf, per_image
from .query import QueryAttack


@dataclass(frozen=True, repr=False)
class Bandits(QueryAttack):
    """The bandit attack of Ilyas et al. (2019, algorithms 1 to 3): PGD on a belief about the gradient.

    Of each image it keeps a belief v about the direction of the gradient, on a grid of tiles, and two queries correct
    it in every step::

        u ~ exploration · N(0, I) / sqrt(d),   q± = v ± u
        slope = (L(x + η · q+ / |q+|) − L(x + η · q− / |q−|)) / (η · exploration)
        w ← w + rate · slope · u,   v = tanh(w) in Linf, v = w in L2
        x ← Π(x + step_size · steepest(v))

    Neighbouring pixels share a tile, and neighbouring steps share v: these are the two priors of the paper. tanh makes
    the update of w the exponentiated gradient step on [-1, 1] that the paper takes.

    A step costs three queries, for the iterate is judged before the pair is asked; the last iterate costs one. The
    authors judge too and do not count it. They climb the cross-entropy, with a rate of 100 in Linf; `paper` has their
    settings. See `NES` for why it is the margin here. There a rate of 100 throws v from one end to the other with each
    pair; 0.1 halves the median number of queries on the bundled `cnn`.

    Args:
        ball: where to stay, `Linf(eps)` or `L2(eps)`.
        steps: at most so many; the authors' budget of 10,000 queries is 5,000 pairs.
        tile: side of the grid that v lives on, for images (N, C, H, W); None for every feature by itself. The authors
            take 50 on images of 299.
        step_size: length of a step in the ball's norm; 0.01 is for Linf, in L2 a tenth of eps is a good start.
        eta: how far the two questions are from x, in L2.
        exploration: how far they are from v.
        rate: how fast v learns.
        loss: what to climb, larger when closer to fooled.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("test", n=10)
        >>> oracle = Scores(models.load("cnn"), budget=300)
        >>> *_, last = Bandits(Linf(0.1), tile=14).iterates(oracle, x, y)
        >>> last.success.float().mean().item() > 0.8, oracle.queries.max().item() <= 300
        (True, True)
    """

    ball: Ball
    steps: int = 5000
    tile: int | None = None
    step_size: float = 0.01
    eta: float = 0.1
    exploration: float = 1.0
    rate: float = 0.1
    loss: Loss = margin

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Linf | L2):
            raise ValueError(f"ball must be Linf(eps) or L2(eps), got {self.ball!r}; NES takes every ball")
        check_loss(self.loss)
        check_number("steps", self.steps, 1)
        if self.tile is not None:
            check_number("tile", self.tile, 1)
        for name in "step_size", "eta", "exploration", "rate":
            check_number(name, getattr(self, name), 0.0)
        if self.eta == 0 or self.exploration == 0:
            raise ValueError(f"eta and exploration must be positive, got {self.eta} and {self.exploration}")

    @classmethod
    def paper(cls, ball: Ball, tile: int | None = None) -> Self:
        """The authors' settings for ImageNet in that ball, with their loss."""
        if isinstance(ball, L2):
            return cls(ball, tile=tile, step_size=0.5, eta=0.01, exploration=0.01, rate=0.1, loss=cross_entropy)
        return cls(ball, tile=tile, rate=100.0, loss=cross_entropy)

    def climb(self, oracle: Scores, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        if self.tile is not None and x.ndim != 4:
            raise ValueError(f"tile needs images (N, C, H, W), got shape {tuple(x.shape)}")
        judge = Scored(oracle, self.loss, goal)
        steps = min(self.steps, (int(oracle.remaining.min()) - 1) // 3)
        yield from ascend(Belief(self, judge, x, generator), self.ball, x, steps, self.step_size, judge=judge)


class Belief:
    """A `Gradient` that remembers, of each image, what it took the gradient to be."""

    def __init__(self, attack: Bandits, judge: Scored, x: Tensor, generator: Generator) -> None:
        self.attack, self.judge, self.generator = attack, judge, generator
        self.w = x.new_zeros(*x.shape[:2], attack.tile, attack.tile) if attack.tile else torch.zeros_like(x)

    def __call__(self, points: Tensor, owner: Tensor) -> Differences:
        """Loss and verdict at points (R, ...) of images owner (R,), and the belief after two more questions."""
        attack, met = self.attack, self.judge(points, owner)
        gradient, vanished = torch.zeros_like(points), torch.zeros_like(met.loss)
        rows = (~met.fooled).nonzero().squeeze(1)
        if len(rows):
            who, w = owner[rows], self.w[owner[rows]]
            u = torch.empty_like(w).normal_(generator=self.generator)
            u *= attack.exploration / math.sqrt(w[0].numel())
            probes = [attack.eta * L2.steepest(self.spread(self.v(w) + sign * u, points)) for sign in (1, -1)]
            asked = points[rows, None] + torch.stack(probes, 1)
            up, down = self.judge(asked.flatten(0, 1), who.repeat_interleave(2)).loss.view(-1, 2).unbind(1)
            slope = (up - down) / (attack.eta * attack.exploration)
            self.w[who] = w = w + attack.rate * per_image(slope, u) * u
            gradient[rows], vanished[rows] = self.spread(self.v(w), points), (slope == 0).to(vanished.dtype)
        return Differences(met.loss, met.fooled, gradient, vanished)

    def v(self, w: Tensor) -> Tensor:
        return w.tanh() if isinstance(self.attack.ball, Linf) else w

    def spread(self, v: Tensor, like: Tensor) -> Tensor:
        return v if v.shape[1:] == like.shape[1:] else F.interpolate(v, like.shape[2:])
