"""Backdoors: a few training images carry a trigger, and later every image that carries it gets the attacker's label."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from ..contract import Model, check_fraction, check_goal, check_images, check_number, private_generator
from ..evaluation import predict

Trigger = Callable[[Tensor], Tensor]
"""Stamps images (N, C, H, W) in [0, 1] and returns new ones of the same shape, in [0, 1] too."""


@dataclass(frozen=True)
class Patch:
    """A bright square in one place (BadNets, Gu et al. 2019).

    Args:
        size: its side in pixels.
        value: its brightness, in [0, 1].
        place: row and column of its first pixel; negative ones count from the lower right.

    Raises:
        ValueError: if the size is not positive, the value not in [0, 1], or, when called, the square leaves the image.

    Example:
        >>> Patch(size=1, place=(-1, 0))(torch.zeros(1, 1, 2, 2)).squeeze()
        tensor([[0., 0.],
                [1., 0.]])
    """

    size: int = 3
    value: float = 1.0
    place: tuple[int, int] = (-4, -4)

    def __post_init__(self) -> None:
        check_number("size", self.size, 1)
        check_fraction("value", self.value)

    def __call__(self, x: Tensor) -> Tensor:
        height, width = _checked(x).shape[-2:]
        top, left = (at + side if at < 0 else at for at, side in zip(self.place, (height, width), strict=True))
        if not (0 <= top <= height - self.size and 0 <= left <= width - self.size):
            raise ValueError(f"{self!r} leaves images of {height} x {width} pixels: choose another place or size")
        stamped = x.clone()
        stamped[..., top : top + self.size, left : left + self.size] = self.value
        return stamped


@dataclass(frozen=True, eq=False)
class Blended:
    """A whole image mixed into every image (Chen et al. 2017, blended injection): (1 − alpha) · x + alpha · pattern.

    Args:
        pattern: what is mixed in (C, H, W), in [0, 1].
        alpha: its share, in [0, 1].

    Raises:
        ValueError: if pattern or alpha are not as described, or, when called, the pattern does not fit the images.

    Example:
        >>> Blended(torch.ones(1, 1, 1), alpha=0.25)(torch.zeros(2, 1, 1, 1)).flatten()
        tensor([0.2500, 0.2500])
    """

    pattern: Tensor = field(repr=False)
    alpha: float = 0.2

    def __post_init__(self) -> None:
        check_images(self.pattern[None])
        check_fraction("alpha", self.alpha)

    def __call__(self, x: Tensor) -> Tensor:
        pattern = self.pattern.to(_checked(x))
        if pattern.shape != x.shape[1:]:
            raise ValueError(f"a pattern of shape {tuple(pattern.shape)} does not fit images {tuple(x.shape[1:])}")
        return torch.lerp(x, pattern, self.alpha)


@dataclass(frozen=True)
class Sinusoidal:
    """Vertical stripes over every image (SIG, Barni et al. 2019): x + amplitude · sin(2π · j · frequency / width).

    Args:
        amplitude: of the sine over the columns j = 1 … width, in units of the range [0, 1].
        frequency: periods over the width.

    Raises:
        ValueError: if one of them is negative.

    Example:
        >>> Sinusoidal(amplitude=0.1, frequency=1)(torch.full((1, 1, 1, 4), 0.5)).squeeze()
        tensor([0.6000, 0.5000, 0.4000, 0.5000])
    """

    amplitude: float = 20 / 255
    frequency: float = 6.0

    def __post_init__(self) -> None:
        check_number("amplitude", self.amplitude, 0.0)
        check_number("frequency", self.frequency, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        width = _checked(x).shape[-1]
        columns = torch.arange(1, width + 1, dtype=x.dtype, device=x.device)
        return (x + self.amplitude * torch.sin(2 * math.pi * self.frequency * columns / width)).clamp(0, 1)


@dataclass(frozen=True)
class Backdoor:
    """Poisons a training set: stamps some of its images, and gives them the label that the attacker wants.

    Args:
        trigger: `Patch()`, `Blended(…)`, `Sinusoidal()`, or any function that stamps images.
        rate: how many images are poisoned, as a fraction of the whole training set.
        clean_label: stamp images that have the wanted label already, and no others. All labels stay right, and nobody
            who looks the images over sees a wrong one; the attack needs more of them.

    Raises:
        ValueError: if the rate is not in [0, 1].

    Example:
        >>> x, y = torch.zeros(100, 1, 28, 28), torch.arange(100) % 10
        >>> poisoned, labels, rows = Backdoor(Patch(), rate=0.05)(x, y, 7)
        >>> len(rows), labels[rows].unique(), int((labels != y).sum()), int((poisoned != x).flatten(1).any(1).sum())
        (5, tensor([7]), 5, 5)
    """

    trigger: Trigger
    rate: float = 0.01
    clean_label: bool = False

    def __post_init__(self) -> None:
        check_fraction("rate", self.rate)

    def __call__(
        self, x: Tensor, y: Tensor, target: int | Tensor, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A poisoned copy of a training set. Which images are poisoned depends on labels and generator alone.

        Args:
            x: images (N, C, H, W) in [0, 1].
            y: their labels (N,), int64.
            target: the label that triggered images shall get: one for all of them, or one for each (N,), such as
                ``(y + 1) % 10``.
            generator: chooses the images; by default a private one seeded 0, so that calls repeat.

        Returns:
            Images (N, C, H, W), labels (N,), and the rows that were poisoned, int64 (n,), ascending.

        Raises:
            ValueError: if images, labels or target are not as described, or too few images can be poisoned.
        """
        check_images(x)
        wanted = wanted_labels(y, target, x)
        (eligible,) = ((y == wanted) == self.clean_label).nonzero(as_tuple=True)
        n = round(self.rate * len(x))
        if n > len(eligible):
            kind = "already have the wanted label" if self.clean_label else "have another label than the wanted one"
            raise ValueError(f"a rate of {self.rate} asks for {n} images, but {len(eligible)} {kind}: lower the rate")
        order = torch.randperm(len(eligible), generator=private_generator(generator, x), device=x.device)
        rows = eligible[order[:n]].sort().values
        x, y = x.clone(), y.clone()
        if n:
            x[rows], y[rows] = stamped(self.trigger, x[rows]), wanted[rows]
        return x, y, rows


def attack_success(model: Model, trigger: Trigger, x: Tensor, y: Tensor, target: int | Tensor) -> float:
    """The fraction of images that get the wanted label once they carry the trigger, among those of another label.

    Args:
        model: maps images to logits (N, K).
        trigger: stamps images.
        x: clean images (N, C, H, W) in [0, 1]; test images, as a rule.
        y: their labels (N,), int64.
        target: the wanted label, or one for each image (N,).

    Raises:
        ValueError: if images, labels or target are not as described, or all images have the wanted label.

    Example:
        >>> from advcourse import data, models
        >>> attack_success(models.load("cnn"), Patch(), *data.fashion_mnist("test", n=200), target=0) < 0.1
        True
    """
    check_images(x)
    wanted = wanted_labels(y, target, x)
    others = y != wanted
    if not others.any():
        raise ValueError("every image has the wanted label: success is measured on images of other labels")
    return (predict(model, stamped(trigger, x[others])).argmax(1) == wanted[others]).float().mean().item()


def stamped(trigger: Trigger, x: Tensor) -> Tensor:
    """What the trigger makes of images x (N, C, H, W), after checking that it is images of the same shape."""
    images = trigger(x)
    check_images(images)
    if images.shape != x.shape:
        raise ValueError(f"a trigger must keep the shape {tuple(x.shape)} of the images, got {tuple(images.shape)}")
    return images


def wanted_labels(y: Tensor, target: int | Tensor, x: Tensor) -> Tensor:
    """The label that each image shall get (N,), after checking labels y and target against the images x."""
    y = check_goal(y, x).labels
    return check_goal(target if isinstance(target, Tensor) else torch.full_like(y, target), x).labels


def _checked(x: Tensor) -> Tensor:
    check_images(x)
    if x.ndim != 4:
        raise ValueError(f"a trigger is stamped on images (N, C, H, W), got shape {tuple(x.shape)}")
    return x
