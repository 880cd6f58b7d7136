"""A gradient in layers: each part may ask the next about other points, and change the slope that comes back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..ascent import Gradient, Slope
from ..contract import Hyperparameters, Model
from ..goals import Goal, Loss
from ..threat import Ball
from .exact import Exact, backpropagated


@dataclass
class Context:
    """What a part may need to know about the climb that it is a part of.

    Attributes:
        model: maps images to logits, as it is, in eval mode.
        loss: what is climbed.
        goal: of the whole batch.
        ball: where the iterates stay.
        clean: the images x_0 (N, ...).
        step_size: of the climb.
        generator: the source of all randomness.
        batch_size: rows in one pass of the model.
        step: of the climb, 0 for the first gradient.
    """

    model: Model
    loss: Loss
    goal: Goal
    ball: Ball
    clean: Tensor
    step_size: float
    generator: Generator
    batch_size: int = 512
    step: int = 0

    def plain(self, loss: Loss | None = None) -> Exact:
        """The gradient without any part, of another loss if given."""
        return Exact(self.model, loss or self.loss, self.goal, self.batch_size)


class Part(Hyperparameters, ABC):
    """A layer of an `Onion`: a frozen dataclass of its hyper-parameters, without a state of its own.

    The state of a climb comes from `init` and goes through the calls: ``part(next, points, owner, state, context) ->
    (slope, state)``, where ``next`` is the `Gradient` of the layers within.
    """

    def init(self, context: Context) -> Any:
        """The state before the first step; by default there is none."""

    @abstractmethod
    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Any, context: Context
    ) -> tuple[Slope, Any]:
        """The slope at points (R, ...) of images owner (R,), and the state for the next step."""


class Onion:
    """Parts around the plain gradient, the first outermost: a `Gradient` for one climb, which counts its steps.

    ``Onion([a, b], context)`` asks a, which asks b, which asks the model. Without parts it is `Exact`, bit for bit.
    The loss and the verdict of a slope are those of the points that the model saw, the mean and the first of them where
    it saw several.

    Example:
        >>> from advcourse.goals import Untargeted, margin
        >>> from advcourse.gradients import Momentum
        >>> from advcourse.threat import Linf
        >>> x, goal = torch.tensor([[0.2, 0.4]]), Untargeted(torch.tensor([0]))
        >>> around = Context(torch.nn.Linear(2, 2), margin, goal, Linf(0.1), x, 0.01, torch.Generator())
        >>> plain, gathered = Exact(around.model, margin, goal), Onion([Momentum(0.5)], around)
        >>> everyone = torch.tensor([0])
        >>> first, second = (gathered(x, everyone).gradient for _ in range(2))
        >>> torch.allclose(second, 1.5 * plain(x, everyone).gradient)
        True
    """

    def __init__(self, parts: Sequence[Part], context: Context) -> None:
        self.parts, self.context = tuple(parts), context
        self.states = [part.init(context) for part in parts]

    def __call__(self, points: Tensor, owner: Tensor) -> Slope:
        """The slope at points (N, ...) of images owner (N,): all images of the climb, in their order."""
        slope = self._ask(0, points, owner)
        self.context.step += 1
        return slope

    def _ask(self, depth: int, points: Tensor, owner: Tensor) -> Slope:
        if depth == len(self.parts):
            return self.context.plain()(points, owner)

        def within(points: Tensor, owner: Tensor) -> Slope:
            return self._ask(depth + 1, points, owner)

        part = self.parts[depth]
        slope, self.states[depth] = part(within, points, owner, self.states[depth], self.context)
        return slope


def averaged(slopes: Slope, copies: int) -> Slope:
    """The mean slope of `copies` blocks of rows, one block after the other: (copies · R, ...) -> (R, ...)."""
    gradient, loss = (part.unflatten(0, (copies, -1)).mean(0) for part in (slopes.gradient, slopes.loss))
    return Slope(loss, slopes.fooled.unflatten(0, (copies, -1))[0], gradient)


def through(transform: Callable[[Tensor], Tensor], next: Gradient, points: Tensor, owner: Tensor) -> Slope:
    """The slope of what lies within, as a function of points before a differentiable transform of them.

    One vector-Jacobian product of the transform, and what `next` costs. The transform may make several blocks of rows
    of the points (R, ...); their owners are repeated, and the slopes of the blocks averaged.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        moved = transform(points)
        copies = len(moved) // len(points)
        slopes = next(moved.detach(), owner.repeat(copies))
        felt = (moved * slopes.gradient).flatten(1).sum(1)
        gradient = backpropagated(felt, points)
    loss, fooled = (part.unflatten(0, (copies, -1)) for part in (slopes.loss, slopes.fooled))
    return Slope(loss.mean(0), fooled[0], gradient / copies)
