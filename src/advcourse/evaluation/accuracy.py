"""Accuracy, clean and under one attack, and how far it may be off because the images are few."""

import math

import torch
from torch import Generator, Tensor

from ..attacks import Attack
from ..contract import Model, check_goal, check_images, check_model, evaluating, logits_of, modules_of
from ..goals import Goal


def predict(model: Model, x: Tensor, batch_size: int = 512, goal: Goal | None = None) -> Tensor:
    """The model's logits (N, K) for images x (N, ...), in eval mode, without a gradient.

    Args:
        model: maps images to logits.
        x: images (N, ...).
        batch_size: images in one pass; it bounds the memory and changes no result but by rounding.
        goal: whose labels must be among the K.

    Raises:
        ValueError: if the model's answers are not as an attack demands them.
    """
    check_model(model)
    with evaluating(modules_of(model)), torch.no_grad():
        return logits_of(model, x, goal, batch_size)


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
    return predict(model, x, goal=check_goal(y, x)).argmax(1) == y


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
    if isinstance(attack, type):
        raise ValueError(f"got the class {attack.__name__}, expected an attack, such as {attack.__name__}(Linf(0.1))")
    return accuracy(model, attack(model, x, y, generator=generator), y)


def fooling_rate(model: Model, delta: Tensor, x: Tensor, *, own: Tensor | None = None) -> float:
    """The fraction of images that the model labels otherwise once delta is added to them, right or wrong.

    No labels are asked for: an image that was wrong before counts if its label changes, and one that is still wrong in
    the same way does not.

    Args:
        model: maps images to logits (N, K).
        delta: one perturbation (1, ...) for all images, or one for each (N, ...).
        x: clean images (N, ...) in [0, 1]; with delta on them they are clipped to [0, 1].
        own: the model's labels for x (N,), where they are known from before: that halves the passes.

    Raises:
        ValueError: if images or the model's answers are not as an attack demands them, or delta or own do not fit them.

    Example:
        >>> from advcourse import data, models
        >>> x, _ = data.fashion_mnist("test", n=50)
        >>> fooling_rate(models.load("cnn"), torch.zeros(1, 1, 28, 28), x)
        0.0
    """
    check_images(x)
    if delta.shape not in (x[:1].shape, x.shape):
        raise ValueError(f"delta must have shape {tuple(x[:1].shape)} or {tuple(x.shape)}, got {tuple(delta.shape)}")
    own = predict(model, x).argmax(1) if own is None else check_goal(own, x).labels
    return (predict(model, (x + delta).clamp(0, 1)).argmax(1) != own).float().mean().item()


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Where the fraction would lie if there were images without end: the score interval of Wilson (1927).

    The textbook's p ± z·sqrt(p(1 - p)/n) has no width at 0 % and 100 %, where robust accuracies like to be; this one
    has. It speaks of the images that were drawn and not of the attack: a stronger one may go below it.

    Args:
        successes: how many of the images, 0 to n.
        n: how many images, at least one.
        z: standard deviations; 1.96 makes it 95 %.

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        ValueError: unless 0 <= successes <= n and n >= 1.

    Example:
        >>> low, high = wilson_interval(0, 100)
        >>> f"{low:.3f} to {high:.3f}"
        '0.000 to 0.037'
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes must be in 0..n and n at least 1, got {successes} of {n}")
    fraction, weight = successes / n, z**2 / n
    center = fraction + weight / 2
    reach = math.sqrt(weight * fraction * (1 - fraction) + weight**2 / 4)
    low, high = (center - reach) / (1 + weight), (center + reach) / (1 + weight)
    return max(0.0, min(low, fraction)), min(1.0, max(high, fraction))  # at 0 and 1 the ends meet but for rounding


def mean_and_interval(values: Tensor, z: float = 1.96) -> tuple[float, float]:
    """The mean of values (N,), one for each image, and half the width of its interval, with the normal approximation.

    Args:
        values: at least two.
        z: 1.96 for 95 %.

    Raises:
        ValueError: if there are fewer than two.

    Example:
        >>> mean_and_interval(torch.tensor([0.0, 1.0, 1.0, 0.0]))[0]
        0.5
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs values (N,) with N >= 2, got shape {tuple(values.shape)}")
    return values.mean().item(), z * values.std().item() / len(values) ** 0.5
