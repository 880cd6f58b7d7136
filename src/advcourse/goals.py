"""What an attacker wants (a goal) and how close an answer comes to it (a loss).

A goal is a batch of labels with a direction: `Untargeted` pushes the model away from them, `Targeted` towards them.
Every loss measures the model's support for those labels and carries the goal's sign, so that larger always means closer
to fooled and one formula serves both goals.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

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


class Untargeted(Goal):
    """Any label but these. A plain label tensor given to an attack means this.

    Example:
        >>> import torch
        >>> Untargeted(torch.tensor([3, 3, 3])).fooled(torch.tensor([3, 5, REFUSED]))
        tensor([False,  True, False])
    """

    sign = -1

    def fooled(self, labels: Tensor) -> Tensor:
        return (labels != self.labels) & (labels != REFUSED)


class Targeted(Goal):
    """Exactly these labels.

    Example:
        >>> import torch
        >>> Targeted(torch.tensor([3, 3, 3])).fooled(torch.tensor([3, 5, REFUSED]))
        tensor([ True, False, False])
    """

    sign = +1

    def fooled(self, labels: Tensor) -> Tensor:
        return labels == self.labels


Loss = Callable[[Tensor, Goal], Tensor]
"""``loss(logits (N, K), goal) -> (N,)``; larger is closer to fooled."""


def logit(logits: Tensor, goal: Goal) -> Tensor:
    """The label's logit: -z_y untargeted, z_t targeted (N,). Its gradient never vanishes (Zhao et al. 2021).

    Example:
        >>> import torch
        >>> logit(torch.tensor([[2.0, 5.0, 1.0]]), Untargeted(torch.tensor([1])))
        tensor([-5.])
    """
    return goal.sign * logits.gather(1, goal.labels[:, None]).squeeze(1)


def cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    """The log-probability of the label: -log p_y untargeted, log p_t targeted (N,).

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(1, 4), Untargeted(torch.tensor([0])))
        tensor([1.3863])
    """
    return logit(logits.log_softmax(1), goal)


def margin(logits: Tensor, goal: Goal, kappa: float = math.inf) -> Tensor:
    """The lead of the best wrong class: max over j != y of z_j - z_y, or z_t - max over j != t of z_j when targeted
    (N,).

    Positive exactly when the goal is met (but for ties), and unchanged when a constant is added to all logits. Clamped
    above at `kappa` it is the negative of the h of Carlini & Wagner (2017, section IV); kappa = 0 is the h of the
    chapter on adversarial examples.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 5.0, 1.0]])
        >>> margin(z, Untargeted(torch.tensor([1]))), margin(z, Untargeted(torch.tensor([0])), kappa=0.5)
        (tensor([-3.]), tensor([0.5000]))
    """
    rivals = logits.scatter(1, goal.labels[:, None], -math.inf).max(1).values
    lead = logit(logits, goal) - goal.sign * rivals
    return lead.clamp(max=kappa)
