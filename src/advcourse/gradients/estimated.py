"""Gradients out of finite differences: what scores alone tell about the slope of the loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..ascent import Judge, Slope, Verdict
from ..goals import Goal, Loss
from ..oracles import Scores


@dataclass(frozen=True)
class Scored:
    """A `Judge` that asks an oracle: the loss of the log-probabilities, one query a point.

    They differ from the logits by a constant in each row, which no loss of the course but `logit` can see.
    Probabilities that have underflown to 0 count as the smallest number there is.

    Args:
        oracle: answers probabilities.
        loss: ``loss(logits, goal) -> (N,)``.
        goal: the goal of the whole batch; points bring along which of its images own them.

    Raises:
        ValueError: if a label of the goal is none of the oracle's classes.
    """

    oracle: Scores
    loss: Loss
    goal: Goal

    def __call__(self, points: Tensor, owner: Tensor) -> Verdict:
        scores = self.oracle(points, owner)
        if self.goal.largest >= scores.shape[1]:
            raise ValueError(f"labels must be in 0..{scores.shape[1] - 1} for this target, got {self.goal.largest}")
        goal = self.goal[owner]
        loss = self.loss(scores.clamp_min(torch.finfo(scores.dtype).tiny).log(), goal)
        return Verdict(loss, goal.fooled(scores.argmax(1)))


@dataclass(frozen=True)
class Differences(Slope):
    """A slope made of finite differences, and the fraction of them that vanished (R,)."""

    vanished: Tensor

    symptom: ClassVar[str] = "nearly all finite differences are exactly zero"
    remedy: ClassVar[str] = (
        "at that distance the scores are constant (a tree or a quantized model), rounded or saturated; ask farther "
        "apart (sigma of NES, eta of Bandits, h of ZOO), climb the margin, or take no differences at all (Square, "
        "GenAttack)"
    )

    @property
    def flat(self) -> Tensor:
        """Bool (R,), true where nearly no difference says anything."""
        return self.vanished > 0.99


@dataclass(frozen=True)
class Estimate(ABC):
    """A `Gradient` that asks around a point, along random directions u ~ N(0, I).

    A question is preceded by one about the point itself; for those that are fooled nothing more is asked, and their
    gradient is 0. All directions are drawn before any is asked about.

    Args:
        judge: loss and verdict at points, as `Scored` gives them.
        directions: the number n of directions.
        sigma: how far to go along them, in units of the input.
        generator: the source of the directions.
    """

    judge: Judge
    directions: int
    sigma: float
    generator: Generator

    price: ClassVar[int]
    """Queries of one direction."""

    @abstractmethod
    def differences(self, points: Tensor, loss: Tensor, u: Tensor, owner: Tensor) -> Tensor:
        """The slope along each of u (R, n, ...) at points (R, 1, ...) of this loss (R,): (R, n)."""

    def __call__(self, points: Tensor, owner: Tensor) -> Differences:
        met = self.judge(points, owner)
        gradient, vanished = torch.zeros_like(points), torch.zeros_like(met.loss)
        rows = (~met.fooled).nonzero().squeeze(1)
        u = points.new_empty(len(rows), self.directions, *points.shape[1:])
        u.normal_(generator=self.generator)
        if len(rows):
            slope = self.differences(points[rows, None], met.loss[rows], u, owner[rows])
            gradient[rows] = torch.einsum("rn,rn...->r...", slope, u) / self.directions
            vanished[rows] = (slope == 0).to(vanished.dtype).mean(1)
        return Differences(met.loss, met.fooled, gradient, vanished)

    def ask(self, points: Tensor, owner: Tensor) -> Tensor:
        """The loss at points (R, n, ...): (R, n)."""
        return self.judge(points.flatten(0, 1), owner.repeat_interleave(points.shape[1])).loss.view(points.shape[:2])


class OneSided(Estimate):
    """The estimate of the lecture, ``1/n · Σ (L(x + σu) − L(x)) / σ · u``: n queries besides that at x."""

    price = 1

    def differences(self, points: Tensor, loss: Tensor, u: Tensor, owner: Tensor) -> Tensor:
        return (self.ask(points + self.sigma * u, owner) - loss[:, None]) / self.sigma


class Antithetic(Estimate):
    """The estimate of Ilyas et al. (2018, algorithm 1), ``1/(2nσ) · Σ u · (L(x + σu) − L(x − σu))``: 2n queries besides
    that at x.

    What is even around x cancels: the curvature, and L(x) itself. On a linear loss the cosine with the gradient is
    about sqrt(n / (n + d)) in d dimensions.

    Example:
        >>> from advcourse.goals import Untargeted, margin
        >>> network = torch.nn.Linear(20, 2).double()
        >>> _ = network.weight.data.copy_(torch.stack([torch.zeros(20), torch.linspace(-2, 1, 20)]))
        >>> judge = Scored(Scores(network), margin, Untargeted(torch.tensor([0])))
        >>> judge.oracle.begin(1)
        >>> estimate = Antithetic(judge, 100, 0.01, torch.Generator().manual_seed(0))
        >>> slope = estimate(torch.full((1, 20), 0.5).double(), torch.tensor([0]))
        >>> round(torch.cosine_similarity(slope.gradient[0], network.weight[1], dim=0).item(), 1), judge.oracle.queries
        (0.9, tensor([201]))
    """

    price = 2

    def differences(self, points: Tensor, loss: Tensor, u: Tensor, owner: Tensor) -> Tensor:
        reach = self.sigma * u
        both = self.ask(torch.cat([points + reach, points - reach], 1), owner)
        up, down = both.chunk(2, dim=1)
        return (up - down) / (2 * self.sigma)
