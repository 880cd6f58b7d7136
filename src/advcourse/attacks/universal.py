"""Universal perturbations: one delta for all images, learned on some of them and tried on others."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ..ascent import warn_if_flat
from ..contract import (
    Hyperparameters,
    Model,
    check_ball,
    check_fraction,
    check_images,
    check_loss,
    check_number,
    logits_of,
    private_generator,
)
from ..goals import Goal, Loss, Untargeted, cross_entropy
from ..gradients import Exact
from ..threat import Ball, open_part
from .base import own_copy, watched
from .deepfool import DeepFool


@dataclass(frozen=True)
class Universal:
    """A moment of the search for a universal perturbation. Its tensors are never written again.

    Attributes:
        step: 0 for the start, then one more with every state.
        delta: the perturbation (1, ...), in the ball around 0.
        fooled: the fraction of the images looked at last whose label it changed; a minibatch method looks before it
            steps, so its last state repeats the number of the one before.
    """

    step: int
    delta: Tensor
    fooled: float


class Fitted(Hyperparameters, ABC):
    """A universal perturbation is fitted to a model and images, without labels: fooled is whom the model answers
    differently than without the perturbation."""

    ball: Ball

    def fit(
        self, model: Model, x: Tensor, *, start: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Learn a perturbation on images x, to be used as ``(x + delta).clamp(0, 1)`` on any others.

        Args:
            model: maps images (N, ...) in [0, 1] to logits (N, K). It is put in eval mode and left as it was.
            x: images (N, ...), floating point, in [0, 1].
            start: a perturbation (1, ...) to go on from, as an earlier fit returned it; 0 by default.
            generator: the source of all randomness; by default a private one seeded 0, so that calls repeat.

        Returns:
            The perturbation (1, ...).

        Raises:
            ValueError: if images, start or the model's answers are not as described.
        """
        states = self.iterates(model, x, start=start, generator=generator)
        for state in tqdm(states, desc=type(self).__name__, leave=False, disable=None):  # shown on a terminal only
            delta = state.delta
        return delta

    def iterates(
        self, model: Model, x: Tensor, *, start: Tensor | None = None, generator: Generator | None = None
    ) -> Iterator[Universal]:
        """The same computation, one `Universal` state at a time. Arguments and errors are those of `fit`."""
        check_images(x)
        x = own_copy(x)
        delta = torch.zeros_like(x[:1])
        if start is not None:
            if not isinstance(start, Tensor) or start.shape != delta.shape or not start.isfinite().all():
                raise ValueError(f"start must be a finite tensor of the shape of one image, {tuple(delta.shape)}")
            delta = self.ball.project(start.detach().to(x), delta, box=(-1, 1))
        return watched(model, self.climb(model, x, delta, private_generator(generator, x)))

    @abstractmethod
    def climb(self, model: Model, x: Tensor, delta: Tensor, generator: Generator) -> Iterator[Universal]:
        """The search itself, on checked inputs."""


@dataclass(frozen=True, repr=False)
class UniversalPerturbation(Fitted):
    """One perturbation by projected steepest ascent on minibatches (Shafahi et al. 2020, section 3).

    ::

        delta ← Π(delta + step_size · steepest(Σ_i ∇ min(loss(x_i + delta), clip)))

    The loss is clipped, or a few images that are fooled already would pull everything their way. Π is the ball around
    0; each image is clipped to [0, 1] with the perturbation on it. For N images this costs N passes forward and
    ``epochs`` · N forward and backward.

    Args:
        ball: where delta must stay, around 0.
        epochs: how often every image is seen.
        step_size: length of a step in the ball's norm; eps / 10 by default.
        loss: what to climb away from the model's own labels.
        clip: the loss at which an image no longer counts.
        batch_size: images in a step.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("train", n=200)
        >>> delta = UniversalPerturbation(Linf(0.2), epochs=5).fit(models.load("cnn"), x)
        >>> delta.shape, bool(delta.abs().max() <= 0.2)
        (torch.Size([1, 1, 28, 28]), True)
    """

    ball: Ball
    epochs: int = 10
    step_size: float | None = None
    loss: Loss = cross_entropy
    clip: float = 9.0
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_loss(self.loss)
        check_number("epochs", self.epochs, 1)
        check_number("batch_size", self.batch_size, 1)
        check_number("clip", self.clip, 0.0)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0.0)

    def climb(self, model: Model, x: Tensor, delta: Tensor, generator: Generator) -> Iterator[Universal]:
        def clipped(logits: Tensor, goal: Goal) -> Tensor:
            return self.loss(logits, goal).clamp(max=self.clip)

        own = Untargeted(logits_of(model, x).argmax(1))
        gradient = Exact(model, clipped, own, self.batch_size)
        step_size = self.ball.eps / 10 if self.step_size is None else self.step_size
        step, zero = 0, torch.zeros_like(delta)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x), generator=generator, device=x.device).split(self.batch_size):
                points = (x[rows] + delta).clamp(0, 1)
                slope = gradient(points, rows)
                fooled = slope.fooled.float().mean().item()
                yield Universal(step, delta, fooled)
                if not (slope.fooled.any() or slope.gradient.any()):  # who is fooled may be flat, by the clip
                    warn_if_flat(slope, len(x), step)
                felt = open_part(slope.gradient, points).where(points == x[rows] + delta, 0)  # by those not clipped
                climb = self.ball.steepest(felt.sum(0, keepdim=True))
                step, delta = step + 1, self.ball.project(delta + step_size * climb, zero, box=(-1, 1))
        yield Universal(step, delta, fooled)


@dataclass(frozen=True, repr=False)
class UniversalDeepFool(Fitted):
    """The original universal perturbation (Moosavi-Dezfooli et al. 2017, algorithm 1): DeepFool, image after image.

    Each image in turn that is not yet fooled by delta is pushed over the nearest face from where delta has put it, and
    delta takes that push along::

        delta ← Π(delta + DeepFool(x_i + delta) − (x_i + delta))

    until enough of the images are fooled. A push that does not arrive is left out. An epoch costs a pass forward for
    each image, those of `deepfool` for each that is not yet fooled, and a pass forward for all to measure.

    Args:
        ball: where delta must stay, around 0.
        epochs: at most so many passes over the images; the paper sets no limit.
        rate: stop when this fraction of the images is fooled, the paper's 1 − δ.
        deepfool: the attack that pushes one image.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("train", n=30)
        >>> *_, last = UniversalDeepFool(Linf(0.3), epochs=2).iterates(models.load("cnn"), x)
        >>> last.delta.shape, last.fooled > 0.1
        (torch.Size([1, 1, 28, 28]), True)
    """

    ball: Ball
    epochs: int = 10
    rate: float = 0.8
    deepfool: DeepFool = field(default=DeepFool(steps=10))

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_number("epochs", self.epochs, 1)
        check_fraction("rate", self.rate)
        if not isinstance(self.deepfool, DeepFool):
            raise ValueError(f"deepfool must be DeepFool(...), got {self.deepfool!r}")

    def climb(self, model: Model, x: Tensor, delta: Tensor, generator: Generator) -> Iterator[Universal]:
        own, zero = logits_of(model, x).argmax(1), torch.zeros_like(delta)
        for epoch in range(self.epochs + 1):
            fooled = (logits_of(model, (x + delta).clamp(0, 1)).argmax(1) != own).float().mean().item()
            yield Universal(epoch, delta, fooled)
            if fooled >= self.rate or epoch == self.epochs:
                return
            for i in torch.randperm(len(x), generator=generator, device=x.device).split(1):
                start = (x[i] + delta).clamp(0, 1)
                *_, last = self.deepfool.iterates(model, start, own[i])
                # A push that does not arrive comes back as the start and adds nothing.
                delta = self.ball.project(delta + last.best - start, zero, box=(-1, 1))
