"""Poisoned labels, and poisoned images with right labels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from ..attacks.base import watched
from ..contract import Hyperparameters, check_fraction, check_images, check_number, private_generator
from .detectors import representation


def flip_labels(
    y: Tensor,
    rate: float,
    classes: int,
    *,
    pairs: Mapping[int, int] | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Labels of which exactly round(rate · n) are wrong.

    Args:
        y: labels (N,), int64, in 0 … classes − 1.
        rate: the fraction to be flipped, of all n = N labels, or of the n labels that are among the pairs.
        classes: how many there are; a label is flipped to each of the others with the same probability.
        pairs: flip a to pairs[a] instead, and no label that is not among them: ``{0: 6, 6: 0}`` swaps shirts.
        generator: the source of all randomness; by default a private one seeded 0, so that calls repeat.

    Returns:
        Labels (N,); those that are not flipped are as they were.

    Raises:
        ValueError: if labels, rate or classes are not as described, or a pair is not of two different classes.

    Example:
        >>> y = torch.arange(100) % 10
        >>> int((flip_labels(y, 0.25, classes=10) != y).sum())
        25
        >>> flip_labels(y, 1.0, classes=10, pairs={1: 7})[:3]
        tensor([0, 7, 2])
    """
    check_fraction("rate", rate)
    check_number("classes", classes, 2)
    if y.ndim != 1 or y.dtype != torch.int64 or len(y) == 0 or not 0 <= y.min() <= y.max() < classes:
        raise ValueError(f"labels must be int64 (N,) in 0..{classes - 1}, got {y.dtype} {tuple(y.shape)}")
    random = private_generator(generator, y)
    to = (y + torch.randint(1, classes, y.shape, generator=random, device=y.device)) % classes
    eligible = torch.ones_like(y, dtype=torch.bool)
    if pairs is not None:
        if not all(a != b and {a, b} <= set(range(classes)) for a, b in pairs.items()):
            raise ValueError(f"pairs must map classes 0..{classes - 1} to other ones, got {dict(pairs)}")
        partner = torch.arange(classes, device=y.device)
        partner[list(pairs)] = torch.tensor(list(pairs.values()), dtype=y.dtype, device=y.device)
        to, eligible = partner[y], partner[y] != y
    (rows,) = eligible.nonzero(as_tuple=True)
    rows = rows[torch.randperm(len(rows), generator=random, device=y.device)[: round(rate * len(rows))]]
    flipped = y.clone()
    flipped[rows] = to[rows]
    return flipped


@dataclass(frozen=True)
class Collision:
    """A moment of a feature collision. Its tensors are never written again.

    Attributes:
        step: 0 for the base images, then one more with every state.
        x: the poisons (N, ...).
        distance: of their features from those of the target (N,), squared.
    """

    step: int
    x: Tensor
    distance: Tensor


@dataclass(frozen=True, repr=False)
class FeatureCollision(Hyperparameters):
    """Poisons that look like one class and are, to a network, one image of another (Shafahi et al. 2018, algorithm 1)::

        minimise over p   ‖φ(p) − φ(t)‖² + beta · ‖p − b‖²

    by forward–backward splitting: a gradient step on the first term, ``p̂ = p − step_size · ∇‖φ(p) − φ(t)‖²``, and the
    second one's proximal step, ``p ← (p̂ + step_size · beta · b) / (1 + step_size · beta)``. φ is what the last linear
    layer is given. Whoever trains that layer on p with the label of b, which is right, moves the border past t. Each
    step is clipped to [0, 1], which the paper leaves open.

    Args:
        beta: the weight of looking like the base.
        steps: of the splitting.
        step_size: the λ of the paper.

    Raises:
        ValueError: if a number is out of range.
    """

    beta: float = 0.25
    steps: int = 200
    step_size: float = 0.01

    def __post_init__(self) -> None:
        check_number("beta", self.beta, 0.0)
        check_number("steps", self.steps, 1)
        check_number("step_size", self.step_size, 0.0)

    def __call__(self, model: nn.Module, base: Tensor, target: Tensor) -> Tensor:
        """The poisons (N, ...). Arguments and errors are those of `iterates`."""
        *_, last = self.iterates(model, base, target)
        return last.x

    def iterates(self, model: nn.Module, base: Tensor, target: Tensor) -> Iterator[Collision]:
        """The same computation, one state at a time.

        Args:
            model: maps images to logits by a last linear layer. It is put in eval mode and left as it was.
            base: images that the poisons shall look like (N, ...), in [0, 1].
            target: the image that they shall be to the network (1, ...).

        Raises:
            ValueError: if the images are not as described, or the network has no linear layer.
        """
        for images in base, target:
            check_images(images)
        if target.shape != base[:1].shape:
            raise ValueError(f"the target must be one image {tuple(base[:1].shape)}, got {tuple(target.shape)}")
        return watched(model, self._split(model, base.detach(), target.detach()))

    def _split(self, model: nn.Module, base: Tensor, target: Tensor) -> Iterator[Collision]:
        aim, p, pull = representation(model, target), base, self.step_size * self.beta
        for step in range(self.steps + 1):
            with torch.enable_grad():
                point = p.clone().requires_grad_()
                distance = (representation(model, point) - aim).square().sum(1)
                (slope,) = torch.autograd.grad(distance.sum(), point)
            yield Collision(step, p, distance.detach())
            p = ((p - self.step_size * slope + pull * base) / (1 + pull)).clamp(0, 1)
