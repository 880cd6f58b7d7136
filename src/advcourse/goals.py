"""What an attacker wants (a goal) and how close an answer comes to it (a loss).

A goal is a batch of labels with a direction: `Untargeted` pushes the model away from them, `Targeted` towards them.
Every loss measures the model's support for those labels and carries the goal's sign, so that larger always means closer
to fooled and one formula serves both goals.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

REFUSED = -1
"""The label that stands for an answer the model refused to give. It fools nobody."""


@dataclass(frozen=True, eq=False)
class Goal(ABC):
    """Labels (N,), int64, and a direction. ``goal[rows]`` is the goal of those images."""

    labels: Tensor
    sign: ClassVar[int]

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, labels=self.labels[rows])

    @abstractmethod
    def fooled(self, labels: Tensor) -> Tensor:
        """Which of the model's answers (N,) meet the goal: bool (N,)."""

    @cached_property
    def largest(self) -> int:
        """The largest label. The model needs at least one class more."""
        return int(self.labels.max())

    def rivals(self, logits: Tensor) -> Tensor:
        """The logits that the label's own is measured against, those of all other classes: (N, R)."""
        return logits.scatter(1, self.labels[:, None], -math.inf)


class Untargeted(Goal):
    """Any label but these. A plain label tensor given to an attack means this.

    Example:
        >>> Untargeted(torch.tensor([3, 3, 3])).fooled(torch.tensor([3, 5, REFUSED]))
        tensor([False,  True, False])
    """

    sign = -1

    def fooled(self, labels: Tensor) -> Tensor:
        return (labels != self.labels) & (labels != REFUSED)


class Targeted(Goal):
    """Exactly these labels.

    Example:
        >>> Targeted(torch.tensor([3, 3, 3])).fooled(torch.tensor([3, 5, REFUSED]))
        tensor([ True, False, False])
    """

    sign = +1

    def fooled(self, labels: Tensor) -> Tensor:
        return labels == self.labels


@dataclass(frozen=True, eq=False)
class FromTo(Targeted):
    """Exactly these labels, for images whose right ones are `source` (N,), which some losses need to know.

    Example:
        >>> FromTo(torch.tensor([3, 3, 3]), source=torch.tensor([1, 1, 1])).fooled(torch.tensor([3, 5, 1]))
        tensor([ True, False, False])
    """

    source: Tensor

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, labels=self.labels[rows], source=self.source[rows])

    @cached_property
    def largest(self) -> int:
        return int(torch.maximum(self.labels, self.source).max())


class Toward(FromTo):
    """Any label but those of `source` (N,), sought in the direction of these labels (Gowal et al. 2019).

    Losses are those of a targeted attack with the source as the only rival; success is that of an untargeted one.

    Example:
        >>> goal = Toward(torch.tensor([3, 3]), source=torch.tensor([1, 1]))
        >>> goal.fooled(torch.tensor([5, 1]))
        tensor([ True, False])
    """

    def fooled(self, labels: Tensor) -> Tensor:
        return Untargeted(self.source).fooled(labels)

    def rivals(self, logits: Tensor) -> Tensor:
        return logits.gather(1, self.source[:, None])


Loss = Callable[[Tensor, Goal], Tensor]
"""``loss(logits (N, K), goal) -> (N,)``; larger is closer to fooled."""


def logit(logits: Tensor, goal: Goal) -> Tensor:
    """The label's logit: -z_y untargeted, z_t targeted (N,). Its gradient never vanishes (Zhao et al. 2021).

    Example:
        >>> logit(torch.tensor([[2.0, 5.0, 1.0]]), Untargeted(torch.tensor([1])))
        tensor([-5.])
    """
    return goal.sign * logits.gather(1, goal.labels[:, None]).squeeze(1)


def cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    """The log-probability of the label: -log p_y untargeted, log p_t targeted (N,).

    Example:
        >>> cross_entropy(torch.zeros(1, 4), Untargeted(torch.tensor([0])))
        tensor([1.3863])
    """
    return -goal.sign * F.cross_entropy(logits, goal.labels, reduction="none")


def margin(logits: Tensor, goal: Goal, kappa: float = math.inf) -> Tensor:
    """The lead of the best wrong class: max over j != y of z_j - z_y, or z_t - max over j != t of z_j when targeted
    (N,).

    Positive exactly when the goal is met (but for ties), and unchanged when a constant is added to all logits. Clamped
    above at `kappa` it is the negative of the h of Carlini & Wagner (2017, section IV); kappa = 0 is the h of the
    chapter on adversarial examples.

    Example:
        >>> z = torch.tensor([[2.0, 5.0, 1.0]])
        >>> margin(z, Untargeted(torch.tensor([1]))), margin(z, Untargeted(torch.tensor([0])), kappa=0.5)
        (tensor([-3.]), tensor([0.5000]))
    """
    rivals = goal.rivals(logits).max(1).values
    lead = logit(logits, goal) - goal.sign * rivals
    return lead.clamp(max=kappa)


def dlr(logits: Tensor, goal: Goal) -> Tensor:
    """The difference of logits ratio (Croce & Hein 2020, section 4): the margin in units of the spread of the largest
    logits (N,).

    With the logits sorted downwards, the spread is z_1 − z_3, or z_1 − (z_3 + z_4) / 2 when targeted. So the loss is
    the same for a·z + b, a > 0: no scale of the logits can flatten its gradient. With three classes the targeted spread
    is the untargeted one. With two the ratio would be ±1 everywhere, and the plain margin takes its place, as it does
    where the spread is zero or infinite.

    Example:
        >>> z = torch.tensor([[2.0, 5.0, 1.0]])
        >>> dlr(z, Untargeted(torch.tensor([1]))), dlr(100 * z, Untargeted(torch.tensor([1])))
        (tensor([-0.7500]), tensor([-0.7500]))
    """
    lead, classes = margin(logits, goal), logits.shape[1]
    if classes == 2:
        return lead
    top = logits.topk(min(classes, 4 if goal.sign > 0 else 3), dim=1).values
    low = top[:, 2:].where(top[:, 2:] > -math.inf, top[:, 2:3])  # a fourth class may be ruled out
    spread = top[:, 0] - low.mean(1)
    return lead / torch.where((spread > 0) & (spread < math.inf), spread, 1)


def po_trip(logits: Tensor, goal: Goal, weight: float = 0.01, gap: float = 0.007) -> Tensor:
    """Near the target in the Poincaré ball, and nearer to it than to the right label by an angle (Li et al. 2020) (N,).

    ::

        −d(z/‖z‖₁, e_t) − weight · max(0, D(z, e_t) − D(z, e_y) + gap),    D(a, b) = 1 − |cos(a, b)|

    The space of the Poincaré ball widens towards its rim, where e_t is, so the gradient does not vanish as the target
    comes near. Published code leaves out the "1 −" of D, and so pulls towards the right label; this does not.

    Args:
        logits: (N, K).
        goal: `FromTo(t, source=y)`.
        weight: of the second term.
        gap: by how much the target is to be nearer.

    Raises:
        ValueError: for any other goal.

    Example:
        >>> goal = FromTo(torch.tensor([0]), source=torch.tensor([1]))
        >>> near, far = (po_trip(torch.tensor([z]), goal) for z in ([3.0, 0.1, 0.2], [0.1, 3.0, 0.2]))
        >>> bool(near > far)
        True
    """
    if not isinstance(goal, FromTo):
        raise ValueError(f"po_trip needs FromTo(t, source=y), target and right label; got {type(goal).__name__}")
    u = F.normalize(logits, p=1, dim=1)
    corner = F.one_hot(goal.labels, logits.shape[1]).to(logits) * (1 - 1e-5)  # the rim itself is infinitely far
    room = (1 - u.square().sum(1)).clamp_min(1e-5) * (1 - corner.square().sum(1))
    poincare = torch.acosh(1 + 2 * (u - corner).square().sum(1) / room)
    cosine = F.normalize(logits, dim=1).abs()
    angles = [1 - cosine.gather(1, labels[:, None]).squeeze(1) for labels in (goal.labels, goal.source)]
    return -poincare - weight * (angles[0] - angles[1] + gap).clamp_min(0)
