"""Models around models."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """A network with its normalisation inside, so that what goes in lies in [0, 1].

    An eps then means the same for every model, and no attack needs to know how a network was trained.

    Args:
        network: what sees ``(x - mean) / std``.
        mean: one number for each channel (or feature) of x (N, C, ...), or one for all.
        std: likewise, positive.

    Raises:
        ValueError: if mean and std differ in length or a std is not positive.

    Example:
        >>> model = Normalized(nn.Flatten(), mean=[0.5, 0.0], std=[0.5, 1.0])
        >>> model(torch.tensor([[[1.0], [1.0]]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.as_tensor(mean).float().reshape(-1))
        self.register_buffer("std", torch.as_tensor(std).float().reshape(-1))
        if len(self.mean) != len(self.std) or not (self.std > 0).all():
            raise ValueError(f"mean and std must be equally many, std positive, got mean {mean} and std {std}")

    def forward(self, x: Tensor) -> Tensor:
        if len(self.mean) not in (1, x.shape[1]):
            raise ValueError(f"normalised with {len(self.mean)} means, got images of {x.shape[1]} channels")
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return self.network((x - self.mean.view(shape)) / self.std.view(shape))
