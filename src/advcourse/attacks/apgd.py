"""APGD: projected gradient ascent that finds its step size by itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..ascent import Slope, State, Verdict, follow
from ..contract import Model, check_loss, check_number, logits_of
from ..goals import Goal, Loss, Targeted, Toward, cross_entropy
from ..gradients import Exact
from ..threat import L2, Ball, Linf, per_image
from .base import Attack


@dataclass(frozen=True, repr=False)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1): steps with momentum, halved where they have stopped to pay.

    ::

        z       = Π(x_k + η · steepest(∇loss(x_k)))
        x_{k+1} = Π(x_k + 0.75 (z − x_k) + 0.25 (x_k − x_{k−1}))

    It starts on the surface of the ball with η = 2 · eps. At each of the `checkpoints` an image halves its η and goes
    back to its best point if fewer than the fraction `rho` of the steps since the last one raised its loss, or if
    neither its η nor its highest loss have changed since the last one.

    ``loss=dlr`` makes it indifferent to the scale of the logits, and ``targets=9`` with it is the targeted attack of
    the paper: a climb towards each of the nine likeliest wrong classes in turn. For N images this costs at most
    ``restarts · steps`` passes forward and backward and ``restarts`` forward, both times `targets` if there are any,
    and one forward for the clean images.

    The authors' program differs in two details from their paper, which is followed here: at the first checkpoint it
    compares the first loss with 0 and not with the loss of the start, and it takes exactly `rho` to be too few. In L2
    no part of a step is spent on features that stand on the face of the box (see `ascend`), and projections are exact.

    Args:
        ball: where to stay, `Linf(eps)` or `L2(eps)`.
        steps: gradient steps of one climb.
        restarts: climbs from new random starts, on the images not yet fooled.
        loss: what to climb, larger when closer to fooled; `cross_entropy` or `dlr` in the paper.
        targets: 0 to climb away from the label, or how many of the likeliest wrong classes to climb towards, at most
            all K − 1. Any wrong class is a success all the same. A `Targeted` goal names its one class itself.
        rho: the fraction of steps that have to raise the loss.
        batch_size: images in one pass of the model; it bounds the memory and changes no result but by rounding.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.goals import dlr
        >>> x, y = data.fashion_mnist("test", n=20)
        >>> model = models.load("cnn")
        >>> x_adv = APGD(Linf(0.1), steps=10, loss=dlr)(model, x, y)
        >>> bool((model(x_adv).argmax(1) == y).float().mean() < 0.2)
        True
    """

    ball: Ball
    steps: int = 100
    restarts: int = 1
    loss: Loss = cross_entropy
    targets: int = 0
    rho: float = 0.75
    batch_size: int = 512

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Linf | L2):
            raise ValueError(f"ball must be Linf(eps) or L2(eps), got {self.ball!r}; PGD takes L1(eps)")
        check_loss(self.loss)
        for name, least in ("steps", 1), ("restarts", 1), ("targets", 0), ("batch_size", 1):
            check_number(name, getattr(self, name), least)
        check_number("rho", self.rho, 0.0)

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        logits = logits_of(model, x, goal, self.batch_size)
        state = State.before(x, Verdict(self.loss(logits, goal), goal.fooled(logits.argmax(1))))
        for _ in range(self.restarts):
            for aim in self._aims(logits, goal):
                gradient = Exact(model, self.loss, aim, self.batch_size)
                move = Pace(self.ball, x, self.steps, self.rho)
                start = self.ball.sample_surface(x, generator)
                for state in follow(gradient, move, x, self.steps, start, gradient.judge, after=state):  # noqa: B020
                    yield state
                if state.success.all():
                    return

    def _aims(self, logits: Tensor, goal: Goal) -> list[Goal]:
        if self.targets == 0 or isinstance(goal, Targeted):
            return [goal]
        likeliest = goal.rivals(logits).topk(min(self.targets, logits.shape[1] - 1), dim=1).indices
        return [Toward(target, source=goal.labels) for target in likeliest.unbind(1)]


def checkpoints(steps: int) -> dict[int, int]:
    """At which steps APGD looks at its step size, and how many steps after the last look (section 3.2).

    Example:
        >>> checkpoints(100)
        {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    """
    step, window, looks = 0, max(int(0.22 * steps), 1), {}
    while (step := step + window) < steps:
        looks[step] = window
        window = max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return looks


class Pace:
    """A `Move` that remembers, of each image: its step size η, its last two points, its best point and its progress."""

    def __init__(self, ball: Ball, x: Tensor, steps: int, rho: float) -> None:
        self.ball, self.x, self.looks, self.rho = ball, x, checkpoints(steps), rho
        self.previous, self.best, self.best_gradient = x.clone(), x.clone(), torch.zeros_like(x)
        numbers = x.new_zeros(len(x))
        self.eta, self.rises = numbers + 2 * ball.eps, numbers.clone()
        self.loss, self.best_loss, self.best_at_look = numbers + torch.inf, numbers - torch.inf, numbers - torch.inf
        self.halved = numbers == 0

    def __call__(self, step: int, rows: Tensor, points: Tensor, slope: Slope) -> Tensor:
        self.rises[rows] += slope.loss > self.loss[rows]
        self.loss[rows] = slope.loss
        higher = slope.loss > self.best_loss[rows]
        better = rows[higher]
        self.best[better], self.best_loss[better] = points[higher], slope.loss[higher]
        self.best_gradient[better] = slope.gradient[higher]
        gradient = slope.gradient
        if step in self.looks:
            points, gradient = self._look(self.looks[step], rows, points, gradient)
        eta, center = per_image(self.eta[rows], points), self.x[rows]
        z = self.ball.project(points + eta * self.ball.stride(gradient, points, left=0), center)
        if step:  # there is no momentum yet in the first
            momentum = points - self.previous[rows]
            z = self.ball.project(points + 0.75 * (z - points) + 0.25 * momentum, center)
        self.previous[rows] = points
        return z

    def _look(self, window: int, rows: Tensor, points: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        too_few = self.rises[rows] < self.rho * window
        stuck = ~self.halved[rows] & (self.best_loss[rows] <= self.best_at_look[rows])
        halve = too_few | stuck
        self.eta[rows[halve]] /= 2
        self.halved[rows] = halve
        self.best_at_look[rows] = self.best_loss[rows]
        self.rises[rows] = 0
        back = per_image(halve, points)
        points = torch.where(back, self.best[rows], points)
        return points, torch.where(back, self.best_gradient[rows], gradient)
