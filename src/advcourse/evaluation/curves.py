"""Curves: accuracy against the radius of the ball, success against the distance that was needed."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Generator, Tensor

from ..attacks import Attack
from ..contract import Model
from ..threat import Ball
from .worst_case import worst_case


def accuracy_by_eps(
    model: Model, attack: Attack, x: Tensor, y: Tensor, eps: Sequence[float], *, generator: Generator | None = None
) -> Tensor:
    """Robust accuracy at growing radii.

    An image that is broken in a ball is broken in every larger one, and is not attacked again. So the curve falls, and
    the larger radii cost little.

    Args:
        model: maps images to logits (N, K).
        attack: a budget attack; its ball gets these radii in place of its own. Leave its `step_size` to its default,
            which grows with the radius.
        x: clean images (N, ...) in [0, 1].
        y: their labels (N,), int64.
        eps: the radii (E,), ascending, in units of the input range [0, 1]. At 0 stands the clean accuracy.
        generator: handed to the attack at each radius.

    Returns:
        The fraction of images that are still right at each radius (E,).

    Raises:
        ValueError: if the attack has no ball (`success_by_distance` is for those), or the radii do not ascend.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.attacks import PGD
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("test", n=20)
        >>> curve = accuracy_by_eps(models.load("cnn"), PGD(Linf(0.1), steps=5), x, y, [0, 0.02, 0.1])
        >>> curve.shape, bool((curve.diff() <= 0).all())
        (torch.Size([3]), True)
    """
    ball = getattr(attack, "ball", None)
    if not isinstance(ball, Ball):
        raise ValueError(f"accuracy_by_eps needs an attack with a ball, got {attack!r}: see success_by_distance")
    if not all(a < b for a, b in pairwise(eps)):
        raise ValueError(f"the radii must ascend, each once, got {list(eps)}")
    growing = {f"{e:g}": replace(attack, ball=replace(ball, eps=e)) for e in eps}  # type: ignore[type-var]
    rows = worst_case(model, growing, x, y, generator=generator).rows
    return torch.tensor([row.robust_accuracy for row in rows])


def success_by_distance(distance: Tensor, at: Sequence[float] | Tensor) -> Tensor:
    """The fraction of images whose adversarial example is no farther than each value: a distribution function.

    A minimum-norm attack returns the clean image where it found nothing, at a distance of 0 that is no success: such
    images have to be given infinity, as below.

    Args:
        distance: how far the example found is from its image (N,); infinity where none was found, 0 where none was
            needed.
        at: the values (D,), in the same units.

    Returns:
        Fractions (D,), which ascend if the values do.

    Raises:
        ValueError: if distances hold NaN or negative values, or there are none.

    Example:
        >>> x, x_adv = torch.zeros(4, 2), torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0], [0.0, 0.1]])
        >>> right = torch.tensor([False, False, True, False])  # correct(model, x_adv, y)
        >>> from advcourse.threat import L2
        >>> distance = L2.norm(x_adv - x).masked_fill(right, torch.inf)
        >>> success_by_distance(distance, [0.0, 0.2, 0.7, 2.0])
        tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    if distance.ndim != 1 or len(distance) == 0 or not (distance >= 0).all():
        raise ValueError(f"distance must be (N,), N >= 1, of numbers >= 0 or infinity, got {distance}")
    values = torch.as_tensor(at, dtype=distance.dtype, device=distance.device)
    return (distance[:, None] <= values).float().mean(0)
