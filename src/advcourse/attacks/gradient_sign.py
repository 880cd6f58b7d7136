"""FGSM and PGD: steepest ascent of the loss inside a ball, in one step or in many."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..ascent import State, ascend
from ..contract import Model, check_ball, check_loss, check_number
from ..goals import Goal, Loss, cross_entropy
from ..gradients import Exact
from ..threat import Ball
from .base import Attack


@dataclass(frozen=True, repr=False)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018, section 2.1): x ← Π(x + step_size · sign ∇loss), from a random
    start.

    In another ball than Linf the sign becomes that norm's steepest step (in L1 that is one feature; see `L1`). An image
    leaves the batch when it is fooled; one that is not comes back at its iterate of highest loss. For N images this
    costs at most ``restarts · steps`` passes forward and backward and ``restarts`` forward, and with a random start one
    forward more, for the clean images.

    Args:
        ball: where to stay, `Linf(eps)`, `L2(eps)` or `L1(eps)`.
        steps: gradient steps of one climb.
        step_size: length of a step in the ball's norm; 2.5 · eps / steps by default, which reaches the whole ball.
        random_start: begin at a uniform draw from the ball, or at the clean image (the basic iterative method of
            Kurakin et al. 2017).
        restarts: climbs from new random starts, on the images not yet fooled.
        loss: what to climb, larger when closer to fooled.
        batch_size: images in one pass of the model; it bounds the memory and changes no result but by rounding.

    Example:
        >>> import torch
        >>> from advcourse import data, models
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("test", n=20)
        >>> model = models.load("cnn")
        >>> x_adv = PGD(Linf(0.1), steps=10)(model, x, y)
        >>> x_adv.shape == x.shape, bool((model(x_adv).argmax(1) == y).float().mean() < 0.2)
        (True, True)
    """

    ball: Ball
    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    loss: Loss = cross_entropy
    batch_size: int = 512

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_loss(self.loss)
        check_number("steps", self.steps, 1)
        check_number("restarts", self.restarts, 1)
        check_number("batch_size", self.batch_size, 1)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0.0)
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without a random start repeat the same climb: set random_start=True")

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        gradient = Exact(model, self.loss, goal, self.batch_size)
        step_size = 2.5 * self.ball.eps / self.steps if self.step_size is None else self.step_size
        state, everyone = State.before(x), torch.arange(len(x), device=x.device)
        if self.random_start:  # it would move images that are fooled already
            state = State.before(x, gradient.judge(x, everyone))
        for _ in range(self.restarts):
            start = self.ball.sample(x, generator) if self.random_start else x
            for state in ascend(gradient, self.ball, x, self.steps, step_size, start, gradient.judge, after=state):  # noqa: B020
                yield state
            if state.success.all():
                return


@dataclass(frozen=True, repr=False)
class FGSM(Attack):
    """The fast gradient sign method (Goodfellow et al. 2015, section 4): one step, x + step_size · sign ∇loss.

    It is PGD with one step and no random start: one pass forward and backward, and one forward to judge the result.

    Args:
        ball: where to stay, `Linf(eps)`, `L2(eps)` or `L1(eps)`.
        step_size: length of the step in the ball's norm; eps by default. A longer step is projected back to the ball.
        loss: what to climb, larger when closer to fooled.
        batch_size: images in one pass of the model; it bounds the memory and changes no result but by rounding.

    Example:
        On a linear model every gradient is the weight, so the step is its sign:

        >>> import torch
        >>> from advcourse.threat import Linf
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
        >>> FGSM(Linf(0.1))(model, torch.full((1, 3), 0.5) + torch.tensor([0.3, 0, 0]), torch.tensor([0]))
        tensor([[0.7000, 0.6000, 0.4000]])
    """

    ball: Ball
    step_size: float | None = None
    loss: Loss = cross_entropy
    batch_size: int = 512

    def __post_init__(self) -> None:
        self._pgd(self.step_size)

    def _pgd(self, step_size: float | None) -> PGD:
        return PGD(self.ball, 1, step_size, random_start=False, loss=self.loss, batch_size=self.batch_size)

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        step_size = self.ball.eps if self.step_size is None else self.step_size
        return self._pgd(step_size).climb(model, x, goal, generator)
