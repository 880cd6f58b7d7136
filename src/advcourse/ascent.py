"""The one loop: projected steepest ascent, watched through states.

    x_{k+1} = Π(x_k + step_size · steepest(∇loss(x_k)))

Where the gradient comes from is not the loop's business. It asks a function about points and the images that own them,
as every attacker must, and gets back a slope: a gradient, with the loss and the verdict that were met on the way.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from .contract import check_number
from .threat import Ball


@dataclass(frozen=True)
class Verdict:
    """What judging points (R, ...) tells: the loss (R,), and which of them are fooled, bool (R,).

    ``verdict[rows]`` is that on some of the points.
    """

    loss: Tensor
    fooled: Tensor

    def __getitem__(self, rows: Tensor) -> Self:
        return type(self)(*(getattr(self, each.name)[rows] for each in fields(self)))


@dataclass(frozen=True)
class Slope(Verdict):
    """A verdict with the gradient of the loss (R, ...)."""

    gradient: Tensor

    symptom: ClassVar[str] = "the gradient is exactly zero"
    remedy: ClassVar[str] = (
        "the loss is saturated there, and failing to fool them proves nothing (the margin seldom is)"
    )

    @property
    def flat(self) -> Tensor:
        """Bool (R,), true where the gradient says nothing."""
        return self.gradient.flatten(1).abs().amax(1) == 0


Gradient = Callable[[Tensor, Tensor], Slope]
"""Asked ``gradient(points (R, ...), owner (R,))``, where row r is a point of image owner[r], it answers a `Slope`."""

Judge = Callable[[Tensor, Tensor], Verdict]
"""Asked the same as a `Gradient`, it answers a `Verdict`, which is cheaper."""


Move = Callable[[int, Tensor, Tensor, Slope], Tensor]
"""Asked ``move(step, rows (R,), points (R, ...), slope)``, it answers the next points of images rows (R, ...)."""


class ZeroGradient(UserWarning):
    """The loss is flat where the attack stands: it says nothing about robustness."""


@dataclass(frozen=True)
class State:
    """A moment of an attack on N images. Its tensors are never written again.

    Attributes:
        step: 0 for the starting point, then one more with every iterate.
        x: the iterates (N, ...); images that are done stay where they were fooled.
        best: what the attack would return now (N, ...).
        loss: the loss met at x (N,); larger is closer to fooled.
        success: which images have been fooled, bool (N,).
        best_loss: the loss at best (N,); -inf while nothing but the clean image was met.
    """

    step: int
    x: Tensor
    best: Tensor
    loss: Tensor
    success: Tensor
    best_loss: Tensor

    @classmethod
    def before(cls, x: Tensor, verdict: Verdict | None = None) -> Self:
        """The state before step 0, at clean images x; those that the verdict calls fooled are done."""
        unmet = x.new_full(x.shape[:1], -math.inf)
        met = verdict or Verdict(unmet, unmet > 0)
        loss = met.loss.to(x.dtype)
        return cls(-1, x, x, loss, met.fooled, torch.where(met.fooled, loss, unmet))

    def met(self, rows: Tensor, points: Tensor, verdict: Verdict, better: Tensor) -> Self:
        """The next state: images `rows` (R,) stand at `points` (R, ...), which are their best so far where `better`."""
        part = better.nonzero().squeeze(1)
        best = rows[part]
        return replace(
            self,
            step=self.step + 1,
            x=_put(self.x, rows, points),
            best=_put(self.best, best, points[part]),
            loss=_put(self.loss, rows, verdict.loss),
            success=_put(self.success, rows, verdict.fooled),
            best_loss=_put(self.best_loss, best, verdict.loss[part]),
        )


def ascend(
    gradient: Gradient,
    ball: Ball,
    x: Tensor,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
    judge: Judge | None = None,
    *,
    after: State | None = None,
) -> Iterator[State]:
    """Climb the loss inside the ball around x in steps of one length; `follow` says what is done with the iterates.

    A step is the steepest one that the box [0, 1] leaves open. In Linf that is the sign step of the literature; in L2
    and L1 no part of the step is spent on features that cannot move.

    Args:
        gradient: what is known about a point; see `Gradient`.
        ball: where the iterates must stay, around x.
        x: clean images (N, ...), the centres of the ball.
        steps: number of gradient steps.
        step_size: length of a step in the ball's norm.
        start, judge, after: as in `follow`.

    Yields:
        `State` after `State`, as `follow` does.

    Raises:
        ValueError: if `steps` is not a positive integer or `step_size` is negative.

    Example:
        The largest value of x_1 + 2·x_2 within 0.1 of the centre, one step:

        >>> from advcourse.threat import Linf
        >>> def gradient(points, owner):
        ...     slope = torch.tensor([1.0, 2.0])
        ...     return Slope(points @ slope, torch.zeros(len(points), dtype=torch.bool), slope.expand_as(points))
        >>> *_, last = ascend(gradient, Linf(0.1), torch.tensor([[0.5, 0.5]]), steps=1, step_size=0.1)
        >>> last.x
        tensor([[0.6000, 0.6000]])
    """
    check_number("step_size", step_size, 0.0)

    def move(step: int, rows: Tensor, points: Tensor, slope: Slope) -> Tensor:
        stride = ball.stride(slope.gradient, points, left=1 - (step + 1) / steps)
        return ball.project(points + step_size * stride, x[rows])

    return follow(gradient, move, x, steps, start, judge, after=after)


def follow(
    gradient: Gradient,
    move: Move,
    x: Tensor,
    steps: int,
    start: Tensor | None = None,
    judge: Judge | None = None,
    *,
    after: State | None = None,
) -> Iterator[State]:
    """Make `steps` moves from a starting point, and yield it and each iterate.

    Without a `judge` every image takes every step, `best` is the last iterate, and its loss and verdict are those
    that the gradient met one step before: `steps` gradients and nothing else. With a `judge`, an image is done as
    soon as it is fooled and leaves the batch, `best` is its fooled iterate or else the one of highest loss, and the
    last iterate is judged too: at most `steps` gradients and one judgement.

    Args:
        gradient: what is known about a point; see `Gradient`.
        move: where to go from there; see `Move`.
        x: clean images (N, ...).
        steps: number of moves; with a judge also none, to judge the start and no more.
        start: the first iterate (N, ...), x by default.
        judge: judges the last iterate, and makes images stop; see `Judge`.
        after: the state of an earlier climb on the same images, to carry on from; images that it fooled are done.

    Yields:
        `State` after `State`, `steps` + 1 of them, or fewer once every image is done.

    Raises:
        ValueError: if `steps` is not a positive integer.
    """
    check_number("steps", steps, 0 if judge else 1)
    state = after or State.before(x)
    rows = (~state.success).nonzero().squeeze(1)
    if len(rows) == 0:
        yield replace(state, step=state.step + 1)
        return
    point = (x if start is None else start)[rows]
    warned = False
    met: Verdict
    for k in range(steps + 1):
        if k < steps:
            slope = met = gradient(point, rows)
        elif judge is not None:
            met = judge(point, rows)
        if judge is None:
            going = better = torch.ones_like(met.fooled)
        else:
            # The start is no candidate for best: an attack that fails still hands back an iterate, not the clean image.
            going, better = ~met.fooled, met.fooled | ((met.loss >= state.best_loss[rows]) & (k > 0))
        state = state.met(rows, point, met, better)
        yield state
        left = int(going.sum())
        if k == steps or left == 0:
            return
        if left < len(rows):
            rows, point, slope = rows[going], point[going], slope[going]
        warned = warned or warn_if_flat(slope, len(x), k)
        point = move(k, rows, point, slope)


def warn_if_flat(slope: Slope, images: int, step: int) -> bool:
    """Issue a `ZeroGradient` warning, and return whether it was due."""
    flat = int(slope.flat.sum())
    if flat:
        warnings.warn(
            f"{slope.symptom} for {flat} of {images} images at step {step}: {slope.remedy}", ZeroGradient, stacklevel=3
        )
    return flat > 0


def _put(old: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    # Rows are in order, so all of them are everything.
    new = new.to(old.dtype)  # a model under autocast may answer in another one
    return new if len(rows) == len(old) else old.index_copy(0, rows, new)
