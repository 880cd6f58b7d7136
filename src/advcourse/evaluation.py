"""Measuring: accuracy, clean and under attack, and claims that are checked where they are made."""

import numpy as np
import torch
from torch import Generator, Tensor

from .attacks import Attack
from .contract import Model, check_goal, check_images, check_logits, evaluating
from .goals import Goal


def predict(model: Model, x: Tensor, batch_size: int = 512) -> Tensor:
    """The model's logits (N, K) for images x (N, ...), in eval mode, without a gradient."""
    with evaluating(model), torch.no_grad():
        return torch.cat([check_logits(model(part), len(part)) for part in x.split(batch_size)])


def correct(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Which images the model labels y: bool (N,).

    Raises:
        ValueError: if images, labels or the model's answers are not as an attack demands them.
    """
    check_images(x)
    if isinstance(y, Goal):
        raise ValueError(
            "accuracy needs the right labels as a tensor, got a goal: goal.fooled(labels) tells its success"
        )
    goal = check_goal(y, x)
    return check_logits(predict(model, x), len(x), goal).argmax(1) == y


def accuracy(model: Model, x: Tensor, y: Tensor) -> float:
    """The fraction of images that the model labels y.

    Example:
        >>> from advcourse import data, models
        >>> accuracy(models.load("cnn"), *data.fashion_mnist("test", n=200)) > 0.85
        True
    """
    return correct(model, x, y).float().mean().item()


def robust_accuracy(model: Model, attack: Attack, x: Tensor, y: Tensor, *, generator: Generator | None = None) -> float:
    """The fraction of images that the model labels y after an untargeted attack. It is an upper bound: a stronger
    attack may find more.

    Args:
        model: maps images to logits (N, K).
        attack: any attack on a model.
        x: clean images (N, ...) in [0, 1].
        y: their labels (N,), int64.
        generator: handed to the attack.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.attacks import PGD
        >>> from advcourse.threat import Linf
        >>> robust_accuracy(models.load("cnn"), PGD(Linf(0.1), steps=10), *data.fashion_mnist("test", n=50)) < 0.2
        True
    """
    return accuracy(model, attack(model, x, y, generator=generator), y)


def claim(text: str, condition: object) -> None:
    """State a finding and check it: prints one stable line, or raises.

    Args:
        text: what was found, the same words whenever it holds.
        condition: True or False, of Python, NumPy or torch.

    Raises:
        AssertionError: if the condition is false.
        ValueError: if it is not one truth value: anything else, such as a forgotten `all`, would be true by accident.

    Example:
        >>> claim("two is even", 2 % 2 == 0)
        ✓ two is even
    """
    if isinstance(condition, Tensor) and condition.ndim == 0 and condition.dtype == torch.bool:
        condition = bool(condition)
    if not isinstance(condition, (bool, np.bool_)):
        raise ValueError(
            f"a claim needs one condition, true or false, got {condition!r}: combine with .all() or .any()"
        )
    if not condition:
        raise AssertionError(f"this claim does not hold here: {text}")
    print(f"✓ {text}")
