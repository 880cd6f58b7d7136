"""DeepFool: straight to the nearest face of the decision region, as if the model were linear."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..ascent import Slope, State, follow
from ..contract import Model, check_logits, check_number
from ..goals import Goal, Untargeted, margin
from ..gradients import Exact, backpropagated, in_chunks
from ..threat import L2, per_image
from .base import Attack
from .minimum_norm import Nearest

LEAST = 1e-3
"""The least L2 length of a step, a quarter of a grey level of one pixel."""


@dataclass(frozen=True, repr=False)
class DeepFool(Attack):
    """DeepFool (Moosavi-Dezfooli et al. 2016, algorithm 2): a small L2 perturbation in a few steps. Untargeted.

    Seen from x_k, the lead of class j over the label y is about ``f_j + <w_j, r>``, with f_j = z_j − z_y and
    w_j = ∇f_j. The nearest face of the label's region is where ``|f_j| / |w_j|`` is smallest, and a step goes there and
    a little on::

        x_{k+1} = clip(x_k + (1 + overshoot) · |f_j| / |w_j|² · w_j)

    On a linear model one step does it, at 1 + overshoot times the least distance. The paper knows no box: here each
    step is clipped to [0, 1], so where w asks for what a pixel cannot give, it takes some steps more. No step is
    shorter than 0.001 (the authors' program adds 0.0001 to each). An image is done as soon as it is fooled. A step
    costs a pass forward and ``min(classes, K) − 1`` backward, and so does the last iterate unless its batch is done.

    Args:
        steps: at most so many.
        overshoot: how far to go on behind the face.
        classes: look at the faces towards the so many likeliest classes, the label included.
        batch_size: images in one pass of the model; it bounds the memory and changes no result but by rounding.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("test", n=20)
        >>> model = models.load("cnn")
        >>> *_, last = DeepFool().iterates(model, x, y)
        >>> bool(last.success.all()), last.step <= 50, bool(last.distance.median() < 1)
        (True, True, True)
    """

    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10
    batch_size: int = 512

    def __post_init__(self) -> None:
        for name, least in ("steps", 1), ("overshoot", 0.0), ("classes", 2), ("batch_size", 1):
            check_number(name, getattr(self, name), least)

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        if not isinstance(goal, Untargeted):
            raise ValueError("DeepFool is untargeted: pass labels to get away from, or use CarliniWagner")

        def face(points: Tensor, owner: Tensor) -> tuple[Tensor, ...]:
            return nearest_face(model, points, goal[owner], self.classes)

        def to_the_face(points: Tensor, owner: Tensor) -> Slope:
            return Slope(*in_chunks(face, points, owner, self.batch_size))

        def move(step: int, rows: Tensor, points: Tensor, slope: Slope) -> Tensor:
            return (points + (1 + self.overshoot) * slope.gradient).clamp(0, 1)

        judge = Exact(model, margin, goal, self.batch_size).judge
        for state in follow(to_the_face, move, x, self.steps, judge=judge):
            best = torch.where(per_image(state.success, x), state.best, x)
            distance = torch.where(state.success, L2.norm(best - x), torch.inf)
            yield Nearest(**vars(replace(state, best=best)), distance=distance)


def nearest_face(model: Model, x: Tensor, goal: Goal, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The margin at x (N,), who is fooled, and the step to the nearest face of the linearised region (N, ...)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = check_logits(model(x), len(x), goal)
        rivals = goal.rivals(logits).topk(min(classes, logits.shape[1]) - 1, dim=1).values
        leads = rivals - logits.gather(1, goal.labels[:, None])
        fooled = goal.fooled(logits.argmax(1))
        faces = [] if fooled.all() else [(lead.detach(), backpropagated(lead, x, True)) for lead in leads.unbind(1)]
    leads = leads.detach()
    nearest, step = torch.full_like(leads[:, 0], torch.inf), torch.zeros_like(x)
    for lead, slope in faces:
        direction = L2.steepest(slope)
        length = (slope * direction).flatten(1).sum(1)
        # The last steps up to the face would be ever shorter, and on it there would be none.
        distance = torch.where(length > 0, (lead.abs() / length).clamp_min(LEAST), torch.inf)
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        step = torch.where(per_image(closer, x), per_image(distance, x) * direction, step)
    return leads[:, 0], fooled, step
