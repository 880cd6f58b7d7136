"""Adversarial training for the price of a few passes: Free, Fast, and what keeps a single step from overfitting."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..contract import Model, check_ball, check_number
from ..goals import cross_entropy
from ..threat import L2, Ball, Linf
from .methods import Memory, Method, PGDTraining, Start, Uniform, Update, maximised


@dataclass(frozen=True, repr=False)
class FreeTraining(Method):
    """Adversarial training for free (Shafahi et al. 2019, algorithm 1).

    Every batch is replayed. One backward pass gives the gradient of the weights and that of the perturbation, and both
    take a step: `replays` passes for each image, and as many updates. The perturbation goes on to the next batch, of
    other images. So divide the number of epochs by `replays`.

    Args:
        ball: where the perturbation stays; its step has the length eps.
        replays: of each batch, the m of the paper.

    Raises:
        ValueError: if there is no ball, or replays is not a positive integer.
    """

    ball: Ball
    replays: int = 8

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_number("replays", self.replays, 1)

    @property
    def passes(self) -> int:
        return self.replays

    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        delta = memory.recall(x)
        for _ in range(self.replays):
            x_adv = self.ball.project(x + delta, x).requires_grad_()
            logits = model(x_adv)
            yield F.cross_entropy(logits, y, reduction="none"), logits
            assert x_adv.grad is not None
            gradient = x_adv.grad.nan_to_num(0, 0, 0)  # of a half-precision pass that overflowed
            with torch.no_grad():
                delta = self.ball.project(x_adv + self.ball.eps * self.ball.stride(gradient, x_adv, 0.0), x) - x
        memory.keep(delta)


@dataclass(frozen=True, repr=False)
class FastTraining(Method):
    """Fast adversarial training, FGSM-RS (Wong et al. 2020, algorithm 3): two passes for each image.

    One long step from a random start, and the loss is trained on where it ends. It is PGD training with one step. From
    `Zero()`, or with a step of twice the radius, it is prone to catastrophic overfitting.

    Args:
        ball: where the adversary stays.
        step_size: length of the step in the ball's norm; 1.25 · eps by default.
        start: where it begins, `Uniform()`, `Zero()` or `Previous()`.

    Raises:
        ValueError: if there is no ball, or step_size is negative.

    Example:
        >>> from advcourse.threat import Linf
        >>> FastTraining(Linf(8 / 255)).passes
        2
    """

    ball: Ball
    step_size: float | None = None
    start: Start = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        PGDTraining(self.ball, 1, self.step_size)

    passes = 2

    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        step_size = 1.25 * self.ball.eps if self.step_size is None else self.step_size
        return PGDTraining(self.ball, 1, step_size, self.start).updates(model, x, y, memory, generator)


@dataclass(frozen=True, repr=False)
class NFGSM(Method):
    """Noise-FGSM (de Jorge et al. 2022, algorithm 1): a step of eps from noise of k · eps, which is not projected back.

    So the perturbation reaches (k + 1) · eps. Two passes for each image.

    Args:
        ball: its radius is the length of the step.
        k: how many times the radius the noise reaches.
        start: the noise, `Uniform()` as in the authors' program, or `Uniform(clip=False)`.

    Raises:
        ValueError: if there is no ball, or k is negative.
    """

    ball: Ball
    k: float = 2.0
    start: Start = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_number("k", self.k, 0.0)

    passes = 2

    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        eps, kind = self.ball.eps, type(self.ball)
        start = self.start(kind(self.k * eps), x, memory, generator)
        x_adv = maximised(model, x, y, kind((self.k + 1) * eps), 1, eps, start, cross_entropy)
        logits = model(x_adv)
        yield F.cross_entropy(logits, y, reduction="none"), logits


@dataclass(frozen=True, repr=False)
class GradAlign(Method):
    """FGSM training whose loss is kept locally linear (Andriushchenko & Flammarion 2020, equation 4)::

        cross-entropy(f(x + δ), y) + weight · (1 − cos(∇ₓ loss(x), ∇ₓ loss(x + η))),    η uniform in the ball

    δ is the step of eps from the clean image, along the first gradient, which serves both terms and is held constant,
    as in the authors' code. The second gradient is differentiated once more: three passes for each image, and what that
    derivative costs, which counts as a fourth. Images whose gradient vanishes have nothing to align. The network must
    have second derivatives, which compiled ones have not.

    Args:
        ball: where δ and η stay.
        weight: the λ of the paper; 0.2 at 8/255, and exp(255 · eps · ln(10) / 8 + ln(0.02)) for other radii.
        noise: where the second gradient is taken, x + η; not clipped to [0, 1], as in the authors' code.

    Raises:
        ValueError: if there is no ball, or weight is negative.
    """

    ball: Ball
    weight: float = 0.2
    noise: Start = field(default_factory=lambda: Uniform(clip=False))

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_number("weight", self.weight, 0.0)

    passes = 4
    compiles = False

    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        here = _slope(model, x, y)
        there = _slope(model, self.noise(self.ball, x, memory, generator), y, create_graph=True)
        x_adv = self.ball.project(x + self.ball.eps * self.ball.stride(here, x, 0.0), x)
        logits = model(x_adv)
        losses = F.cross_entropy(logits, y, reduction="none")
        yield losses + self.weight * misalignment(here, there), logits


def _slope(model: Model, points: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    points = points.detach().requires_grad_()
    loss = F.cross_entropy(model(points), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, points, create_graph=create_graph)
    return gradient


def misalignment(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine between gradients (N, ...): (N,), 0 where one of them vanishes. Both may have a graph."""
    (alive,) = ((Linf.norm(a) > 0) & (Linf.norm(b) > 0)).nonzero(as_tuple=True)
    cosine = (L2.steepest(a[alive]) * L2.steepest(b[alive])).flatten(1).sum(1)
    return a.new_zeros(len(a)).index_put((alive,), 1 - cosine)
