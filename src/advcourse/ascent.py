"""The one loop: projected steepest ascent, watched through states.

    x_{k+1} = Π(x_k + step_size · steepest(∇loss(x_k)))

Where the gradient comes from is not the loop's business. It asks a function about points and the images that own them,
as every attacker must, and gets back a slope: a gradient, with the loss and the verdict that were met on the way.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from .contract import check_number
from .threat import Ball


@dataclass(frozen=True)
class Verdict:
    """What judging points (R, ...) tells: the loss (R,), and which of them are fooled, bool (R,)."""

    loss: Tensor
    fooled: Tensor


@dataclass(frozen=True)
class Slope(Verdict):
    """A verdict with the gradient of the loss (R, ...)."""

    gradient: Tensor


Gradient = Callable[[Tensor, Tensor], Slope]
"""Asked ``gradient(points (R, ...), owner (R,))``, where row r is a point of image owner[r], it answers a `Slope`."""

Judge = Callable[[Tensor, Tensor], Verdict]
"""Asked the same as a `Gradient`, it answers a `Verdict`, which is cheaper."""


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
        return cls(-1, x, x, met.loss, met.fooled, torch.where(met.fooled, met.loss, unmet))

    def met(self, rows: Tensor, points: Tensor, verdict: Verdict, better: Tensor) -> Self:
        """The next state: images `rows` (R,) stand at `points` (R, ...), which are their best so far where `better`."""
        best = rows[better]
        return type(self)(
            self.step + 1,
            self.x.index_copy(0, rows, points),
            self.best.index_copy(0, best, points[better]),
            self.loss.index_copy(0, rows, verdict.loss),
            self.success.index_copy(0, rows, verdict.fooled),
            self.best_loss.index_copy(0, best, verdict.loss[better]),
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
    """Climb the loss inside the ball around x, and yield the starting point and each of the `steps` iterates.

    A step is the steepest one that the box [0, 1] leaves open. In Linf that is the sign step of the literature; in L2
    and L1 no part of the step is spent on features that cannot move.

    Without a `judge` every image takes every step, `best` is the last iterate, and its loss and verdict are those
    that the gradient met one step before: `steps` gradients and nothing else. With a `judge`, an image is done as
    soon as it is fooled and leaves the batch, `best` is its fooled iterate or else the one of highest loss, and the
    last iterate is judged too: at most `steps` gradients and one judgement.

    Args:
        gradient: what is known about a point; see `Gradient`.
        ball: where the iterates must stay, around x.
        x: clean images (N, ...), the centres of the ball.
        steps: number of gradient steps.
        step_size: length of a step in the ball's norm.
        start: the first iterate (N, ...), x by default.
        judge: judges the last iterate, and makes images stop; see `Judge`.
        after: the state of an earlier climb on the same images, to carry on from; images that it fooled are done.

    Yields:
        `State` after `State`, `steps` + 1 of them, or fewer once every image is done.

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
    check_number("steps", steps, 1)
    check_number("step_size", step_size, 0.0)
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
        if k == steps or not going.any():
            return
        rows, point, climb = rows[going], point[going], slope.gradient[going]
        warned = warned or _warn_if_flat(climb, len(x), k)
        # A feature on a face of the box has no step outward: the steepest step is sought among the others.
        open_ = torch.where(climb > 0, point < 1, point > 0)
        point = ball.project(point + step_size * ball.steepest(climb.where(open_, 0)), x[rows])


def _warn_if_flat(gradient: Tensor, images: int, step: int) -> bool:
    flat = int((gradient.flatten(1) == 0).all(1).sum())
    if flat:
        warnings.warn(
            f"the gradient is exactly zero for {flat} of {images} images at step {step}: the loss is saturated there, "
            "and failing to fool them proves nothing (try loss=margin)",
            ZeroGradient,
            stacklevel=3,
        )
    return flat > 0
