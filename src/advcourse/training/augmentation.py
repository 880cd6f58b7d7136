"""What is done to images before they are trained on: functions of a batch and a generator."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..contract import check_number
from ..threat import per_image

Augmentation = Callable[[Tensor, Generator], Tensor]
"""From images (N, C, H, W) and a generator on their device to images of the same shape."""


@dataclass(frozen=True)
class Mirror:
    """Every other image, by chance, is mirrored left to right."""

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
        return torch.where(per_image(mirrored, x), x.flip(3), x)


@dataclass(frozen=True)
class Crop:
    """Every image is moved by as much as `margin` pixels in both directions, and black comes in from the sides."""

    margin: int = 4

    def __post_init__(self) -> None:
        check_number("margin", self.margin, 0)

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = x.shape
        padded = F.pad(x, [self.margin] * 4)
        top, left = torch.randint(2 * self.margin + 1, (2, n, 1), generator=generator, device=x.device)
        rows, columns = (start + torch.arange(size, device=x.device) for start, size in ((top, height), (left, width)))
        everyone = torch.arange(n, device=x.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[everyone, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
