"""Methods of training: which losses are minimised, on which images. Each reads like its algorithm in the paper.

Adversarial training is a saddle point (Madry et al. 2018, equation 2.1)::

    min over θ of  E[ max over δ in the ball of  loss(θ, x + δ, y) ]

By Danskin's theorem the gradient of the inner maximum is the gradient at a maximiser, so a method finds one, as well as
it can afford, and hands over the loss there. `train` does the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..ascent import ascend
from ..contract import Hyperparameters, Model, check_ball, check_number, evaluating, modules_of
from ..goals import Goal, Loss, Untargeted, cross_entropy
from ..gradients import Exact
from ..threat import Ball

Update = tuple[Tensor, Tensor]
"""Losses (N,), whose mean is to be minimised, and logits (N, K), with a graph, on the images that are trained on."""


class Memory:
    """The perturbations of the batch before, for methods that go on from them. Rows of a larger batch are kept."""

    def __init__(self, delta: Tensor | None = None) -> None:
        self.delta = delta

    def recall(self, x: Tensor) -> Tensor:
        """A perturbation for each of the images x (N, ...); zero in the beginning."""
        return torch.zeros_like(x) if self.delta is None else self.delta[: len(x)]

    def keep(self, delta: Tensor) -> None:
        self.delta = delta if self.delta is None else torch.cat([delta, self.delta[len(delta) :]])


class Method(Hyperparameters, ABC):
    """A method of training is a frozen dataclass of hyper-parameters. It writes `updates`; the loop is `train`.

    Attributes:
        ball: where its adversary stays; None if there is no adversary.
        passes: forward and backward passes for each image of an epoch, the measure of cost.
        replays: updates of the weights for each batch.
        compiles: whether `torch.compile` gives the network all the derivatives that are needed.
    """

    ball: Ball | None = None
    replays: int = 1
    compiles: bool = True

    @property
    @abstractmethod
    def passes(self) -> int: ...

    @abstractmethod
    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        """What to minimise on a batch, once for each update of the weights.

        After each update it is resumed, and the gradients that the backward pass left at tensors of its own are there.

        Args:
            model: maps images to logits, in train mode.
            x: the batch (N, ...), in [0, 1].
            y: its labels (N,).
            memory: what the method left behind after the batch before.
            generator: the source of all randomness, on the device of x.
        """

    def at(self, time: float) -> "Method":
        """The method at that time, in epochs: as a rule, always the same."""
        return self

    def scaled(self, share: float) -> Self:
        """The same in a ball of `share` times the radius, with steps as much shorter.

        Raises:
            ValueError: if there is no ball.
        """
        if self.ball is None:
            raise ValueError(f"{self!r} has no ball whose radius could grow")
        changes: dict[str, Any] = {"ball": type(self.ball)(share * self.ball.eps)}
        if (step_size := getattr(self, "step_size", None)) is not None:
            changes["step_size"] = share * step_size
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, repr=False)
class Standard(Method):
    """Cross-entropy on clean images: one pass for each."""

    passes = 1

    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        logits = model(x)
        yield F.cross_entropy(logits, y, reduction="none"), logits


@dataclass(frozen=True, repr=False)
class Ramped(Method):
    """Another method, whose radius grows from 0 in the first epochs.

    At a large radius a network may otherwise learn nothing from the start but to answer always the same.

    Args:
        method: any one with a ball.
        epochs: how long the radius grows.

    Raises:
        ValueError: if the method has no ball, or epochs is not positive.

    Example:
        >>> from advcourse.threat import Linf
        >>> from advcourse.training import FastTraining
        >>> Ramped(FastTraining(Linf(0.2)), epochs=2).at(1.0).ball
        Linf(eps=0.1)
    """

    method: Method
    epochs: float = 1.0

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, 0.0)
        self.method.scaled(1.0)

    @property
    def ball(self) -> Ball | None:  # type: ignore[override]
        return self.method.ball

    @property
    def replays(self) -> int:  # type: ignore[override]
        return self.method.replays

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        return self.method.compiles

    @property
    def passes(self) -> int:
        return self.method.passes

    def at(self, time: float) -> Method:
        return self.method if time >= self.epochs else self.method.scaled(time / self.epochs)

    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        return self.method.updates(model, x, y, memory, generator)


class Start(Protocol):
    """Where an inner maximiser begins: points (N, ...) of the ball around images x (N, ...), as a rule in [0, 1]."""

    def __call__(self, ball: Ball, x: Tensor, memory: Memory, generator: Generator) -> Tensor: ...


@dataclass(frozen=True)
class Uniform:
    """A uniform draw from the ball.

    Args:
        clip: to [0, 1], as in the program of Wong et al. (2020) for CIFAR-10. Theirs for MNIST takes the gradient
            wherever the draw lies. On images with much black it matters: clipped, half of the black pixels stay black.

    Example:
        >>> from advcourse.threat import Linf
        >>> black, generator = torch.zeros(1, 1000), Generator().manual_seed(0)
        >>> Uniform()(Linf(0.3), black, Memory(), generator).min() == 0
        tensor(True)
        >>> Uniform(clip=False)(Linf(0.3), black, Memory(), generator).min() < -0.29
        tensor(True)
    """

    clip: bool = True

    def __call__(self, ball: Ball, x: Tensor, memory: Memory, generator: Generator) -> Tensor:
        return ball.sample(x, generator) if self.clip else x + ball.eps * ball.draw(x, generator)


@dataclass(frozen=True)
class Zero:
    """The clean image."""

    def __call__(self, ball: Ball, x: Tensor, memory: Memory, generator: Generator) -> Tensor:
        return x


@dataclass(frozen=True)
class Previous:
    """The perturbation where the batch before ended, projected."""

    def __call__(self, ball: Ball, x: Tensor, memory: Memory, generator: Generator) -> Tensor:
        return ball.project(x + memory.recall(x), x)


def maximised(
    model: Model, x: Tensor, y: Tensor, ball: Ball, steps: int, step_size: float, start: Tensor, loss: Loss
) -> Tensor:
    """The inner maximiser: where so many steps up the loss lead (N, ...). The model's mode is the caller's business."""
    gradient = Exact(model, loss, Untargeted(y), batch_size=len(x))
    *_, last = ascend(gradient, ball, x, steps, step_size, start)
    return last.x


@dataclass(frozen=True, repr=False)
class PGDTraining(Method):
    """Train on what PGD finds (Madry et al. 2018, section 2.1): steps + 1 passes for each image.

    The attack is made in train mode, as published, and its last iterate is trained on.

    Args:
        ball: where the adversary stays.
        steps: of its climb.
        step_size: length of a step in the ball's norm; 2.5 · eps / steps by default.
        start: where it begins.

    Raises:
        ValueError: if there is no ball, steps is not a positive integer or step_size is negative.

    Example:
        >>> from advcourse.threat import Linf
        >>> PGDTraining(Linf(8 / 255), steps=7, step_size=2 / 255).passes
        8
    """

    ball: Ball
    steps: int = 7
    step_size: float | None = None
    start: Start = Uniform()

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_number("steps", self.steps, 1)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0.0)

    @property
    def passes(self) -> int:
        return self.steps + 1

    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        step_size = 2.5 * self.ball.eps / self.steps if self.step_size is None else self.step_size
        start = self.start(self.ball, x, memory, generator)
        x_adv = maximised(model, x, y, self.ball, self.steps, step_size, start, cross_entropy)
        memory.keep(x_adv - x)
        logits = model(x_adv)
        yield F.cross_entropy(logits, y, reduction="none"), logits


@dataclass(frozen=True, repr=False)
class TRADES(Method):
    """Accuracy on clean images, and answers that do not change around them (Zhang et al. 2019, equation 5)::

        cross-entropy(f(x), y) + beta · max over x' of KL(f(x) ‖ f(x'))

    The maximiser is sought in eval mode, from x + 0.001 · N(0, 1), since at x itself the divergence has no gradient.
    This makes steps + 2 passes for each image, and one forward.

    Args:
        ball: where x' stays.
        beta: how much the second term counts.
        steps: of the climb.
        step_size: length of a step in the ball's norm; 2.5 · eps / steps by default.

    Raises:
        ValueError: if there is no ball, steps is not a positive integer, or beta or step_size is negative.
    """

    ball: Ball
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None

    def __post_init__(self) -> None:
        PGDTraining(self.ball, self.steps, self.step_size)
        check_number("beta", self.beta, 0.0)

    @property
    def passes(self) -> int:
        return self.steps + 2

    def updates(self, model: Model, x: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Iterator[Update]:
        step_size = 2.5 * self.ball.eps / self.steps if self.step_size is None else self.step_size
        start = self.ball.project(x + 0.001 * x.new_empty(x.shape).normal_(generator=generator), x)
        with evaluating(modules_of(model)):
            with torch.no_grad():
                answers = model(x)

            def divergence(logits: Tensor, goal: Goal) -> Tensor:
                return kl_divergence(answers, logits)

            x_adv = maximised(model, x, y, self.ball, self.steps, step_size, start, divergence)
        logits, attacked = model(x), model(x_adv)
        losses = F.cross_entropy(logits, y, reduction="none")
        yield losses + self.beta * kl_divergence(logits, attacked), attacked


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) ‖ softmax(q)) of logits (N, K): (N,)."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="none", log_target=True).sum(1)
