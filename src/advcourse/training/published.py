"""The recipes of the papers, for CIFAR-10 and a pre-activation ResNet-18 or a wide residual network."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..threat import Ball
from .fast import NFGSM, FastTraining, FreeTraining, GradAlign
from .methods import TRADES, Method, PGDTraining, Standard
from .schedules import Cyclic, Piecewise, Schedule


@dataclass(frozen=True)
class Published:
    """How a method was trained: batches of 128, SGD with momentum 0.9, images cropped and mirrored.

    Attributes:
        method: with the paper's steps, in units of the ball's radius.
        epochs: passes over the data.
        rate: the largest learning rate.
        schedule: from that to the schedule.
        weight_decay: of SGD.
    """

    method: Method
    epochs: int
    rate: float = 0.2
    schedule: Callable[[float], Schedule] = Cyclic
    weight_decay: float = 5e-4


def grad_align(ball: Ball) -> Published:
    """Andriushchenko & Flammarion (2020), with the λ that their repository gives for this radius."""
    weight = math.exp(255 * ball.eps * math.log(10) / 8 + math.log(0.02))
    return Published(GradAlign(ball, weight), 30, 0.3, lambda rate: Cyclic(rate, rise=0.4))


def trades(ball: Ball) -> Published:
    """Zhang et al. (2019): ten steps of 0.007 in a ball of 0.031, and a tenth of the rate in the last epoch."""
    method = TRADES(ball, 6.0, 10, ball.eps * 0.007 / 0.031)
    return Published(method, 76, 0.1, lambda rate: Piecewise(rate, {75 / 76: rate / 10}), 2e-4)


PUBLISHED: dict[str, Callable[[Ball], Published]] = {
    "standard": lambda ball: Published(Standard(), 15),
    "pgd": lambda ball: Published(PGDTraining(ball, 7, ball.eps / 4), 40),
    "free": lambda ball: Published(FreeTraining(ball, 8), 12, 0.04),
    "fast": lambda ball: Published(FastTraining(ball), 30),
    "nfgsm": lambda ball: Published(NFGSM(ball), 30),
    "gradalign": grad_align,
    "trades": trades,
}
"""From a name and a ball to a recipe. `pgd`, `free` and `fast` are those of Wong et al. (2020), `nfgsm` is that of de
Jorge et al. (2022); `standard` is `fast` without an adversary, for half as long."""
