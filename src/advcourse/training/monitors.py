"""Monitors read the history after each epoch, and may end a training."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ..contract import check_number
from .history import History


class Action(Enum):
    """What a monitor wants to happen."""

    REPORT = "go on"
    STOP = "end the training, and keep the weights"
    ROLL_BACK = "end the training, and return to the weights of the best epoch so far (`History.best`)"


@dataclass(frozen=True)
class Alarm:
    """An action and its reason, which becomes the remark of the epoch."""

    action: Action
    reason: str


Monitor = Callable[[History], Alarm | None]
"""Asked after each epoch, it answers an alarm, or nothing. It needs the robust accuracy of validation images."""


class Overfitted(UserWarning):
    """The network has learned to withstand the attack that it was trained with, and that one alone."""


@dataclass(frozen=True)
class CatastrophicOverfitting:
    """Notices a robust accuracy that falls from one epoch to the next (Wong et al. 2020, section 5.4).

    Networks trained with a single step may suddenly learn to deceive it: accuracy under that step soars, and under PGD
    falls to zero, within an epoch. A few images and five steps are enough to see it; the authors use a batch.

    Args:
        drop: by how much it must fall, as a fraction of the images; 0.2 in the authors' code.
        action: what to do then. They end the training with the weights of the epoch before.

    Raises:
        ValueError: if drop is negative.

    Example:
        >>> from advcourse.training import Epoch
        >>> history = History(9)
        >>> for robust in 0.44, 0.03:
        ...     epoch = Epoch(len(history) + 1, 2, 1.0, 0.9, 0.6, 0.1, clean_accuracy=0.8, robust_accuracy=robust)
        ...     history = history.followed_by(epoch)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     CatastrophicOverfitting()(history).reason
        'robust accuracy fell from 44.0% to 3.0% in epoch 2: catastrophic overfitting'
    """

    drop: float = 0.2
    action: Action = Action.ROLL_BACK

    def __post_init__(self) -> None:
        check_number("drop", self.drop, 0.0)

    def __call__(self, history: History) -> Alarm | None:
        before, now = ([0.0, *(epoch.robust_accuracy or 0.0 for epoch in history)])[-2:]
        if before - now <= self.drop:
            return None
        reason = (
            f"robust accuracy fell from {before:.1%} to {now:.1%} in epoch {len(history)}: catastrophic overfitting"
        )
        warnings.warn(reason, Overfitted, stacklevel=2)
        return Alarm(self.action, reason)


@dataclass(frozen=True)
class EarlyStopping:
    """Keeps the weights of the epoch with the highest robust accuracy (Rice et al. 2020).

    Robust accuracy on new images may fall long before the training ends, while that on the training images rises.

    Args:
        patience: epochs without a new best after which the training ends; by default it goes on to its end, and the
            best weights are kept then.

    Raises:
        ValueError: if patience is not a positive integer.
    """

    patience: int | None = None

    def __post_init__(self) -> None:
        if self.patience is not None:
            check_number("patience", self.patience, 1)

    def __call__(self, history: History) -> Alarm | None:
        waited = len(history) - history.best.epoch
        if waited and (history.complete or (self.patience is not None and waited >= self.patience)):
            return Alarm(Action.ROLL_BACK, f"no higher robust accuracy after epoch {history.best.epoch}")
        return None
