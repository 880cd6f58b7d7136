"""The white-box gradient: backpropagation to the input, and to nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ascent import Slope, Verdict
from ..contract import Model, check_logits
from ..goals import Goal, Loss


@dataclass(frozen=True)
class Exact:
    """The loss and its gradient at points (R, ...), by one forward and one backward pass of the model.

    Losses are summed over the batch and never averaged, so that an image's gradient does not depend on its
    neighbours. The parameters' `.grad` is not touched. The model's mode is the caller's business.

    Args:
        model: maps images (N, ...) to logits (N, K).
        loss: ``loss(logits, goal) -> (N,)``.
        goal: the goal of the whole batch; points bring along which of its images own them.
        batch_size: images in one pass; it bounds the memory and changes no result but by rounding.

    Raises:
        ValueError: when the model's answer is unusable (`check_logits`) or does not depend on its input differentiably,
            when the loss is not one number per image, and when a gradient is NaN.

    Example:
        >>> from advcourse.goals import Untargeted, logit
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> gradient = Exact(model, logit, Untargeted(torch.tensor([1])))
        >>> slope = gradient(torch.tensor([[0.3, 0.4]]), owner=torch.tensor([0]))
        >>> torch.equal(slope.gradient[0], -model.weight[1]), model.weight.grad
        (True, None)
    """

    model: Model
    loss: Loss
    goal: Goal
    batch_size: int = 512

    def __call__(self, points: Tensor, owner: Tensor) -> Slope:
        """Loss, verdict and gradient at points (R, ...) of images owner (R,)."""
        return Slope(*in_chunks(self._climb, points, owner, self.batch_size))

    def judge(self, points: Tensor, owner: Tensor) -> Verdict:
        """Loss and verdict at points (R, ...) of images owner (R,), by a forward pass alone."""
        with torch.no_grad():
            return Verdict(*in_chunks(self._look, points, owner, self.batch_size))

    def _look(self, points: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        goal = self.goal[owner]
        logits = check_logits(self.model(points), len(points), self.goal)
        loss = self.loss(logits, goal)
        if not isinstance(loss, Tensor) or loss.shape != owner.shape:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must give one number per image, shape ({len(points)},), got {got}")
        return loss.to(points.dtype), goal.fooled(logits.argmax(1))

    def _climb(self, points: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            loss, fooled = self._look(points, owner)
            gradient = backpropagated(loss, points)
        return loss.detach(), fooled, gradient


def in_chunks(
    ask: Callable[[Tensor, Tensor], tuple[Tensor, ...]], points: Tensor, owner: Tensor, batch_size: int
) -> tuple[Tensor, ...]:
    """What `ask` answers about points (R, ...) of images owner (R,), so many at a time."""
    if len(points) <= batch_size:
        return ask(points, owner)
    chunks = zip(points.split(batch_size), owner.split(batch_size), strict=True)
    return tuple(torch.cat(values) for values in zip(*(ask(*chunk) for chunk in chunks), strict=True))


def backpropagated(loss: Tensor, points: Tensor, again: bool = False) -> Tensor:
    """The gradient of the summed losses (R,) with respect to points (R, ...); `again` keeps the graph for another.

    Raises:
        ValueError: if there is none, or it holds NaN.
    """
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss.sum(), points, allow_unused=True, retain_graph=again)
    if gradient is None:
        raise ValueError(
            "the model's logits do not depend on its input differentiably, so there is no gradient to follow: it "
            "detaches, rounds or leaves torch on the way; attack it through an oracle instead"
        )
    if gradient.amax().isnan():
        raise ValueError("the gradient of the loss holds NaN: the model or the loss divides 0 by 0 on the way back")
    return gradient
