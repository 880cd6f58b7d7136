"""Models around models."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..oracles import Target, respond


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
        normalised = (x - self.mean.view(shape)) / self.std.view(shape)
        weight = next(self.network.parameters(), normalised)
        return self.network(normalised.to(weight.dtype))


class MinMax(nn.Module):
    """A target for tables with its columns' scale inside, so that what goes in lies in [0, 1].

    ``target(low + x · (high − low))``. An eps then means a fraction of each column's range. Whatever an oracle can ask
    can be wrapped, and the result is a module: a network answers logits, an estimator or a callable the logarithms of
    its probabilities, or labels if it tells no more. Raw values are computed in double precision and have the dtype of
    x; large numbers with small differences, such as times, need x in float64.

    Args:
        target: what sees raw rows (N, D); see `advcourse.oracles.Target`.
        low: the least value of each column (D,).
        high: the greatest (D,). Where both are equal, x is ignored.

    Raises:
        ValueError: if low and high are not equally many finite numbers with low <= high.

    Example:
        >>> rows = torch.tensor([[20.0, 1000.0], [60.0, 3000.0]])  # age, income
        >>> model = MinMax.fit(lambda rows: (rows[:, 1] > 2500).long(), rows)
        >>> x = model.scale(torch.tensor([[30.0, 2500.0]]))
        >>> x, model(x), model(x + 0.1), model.unscale(x + 0.1)
        (tensor([[0.2500, 0.7500]]), tensor([0]), tensor([1]), tensor([[  34., 2700.]]))
    """

    low: Tensor
    high: Tensor

    def __init__(self, target: Target, low: Any, high: Any) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float64).clone())
        self.register_buffer("high", torch.as_tensor(high, dtype=torch.float64).clone())
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise ValueError(
                f"low and high must have one number for each column, got {tuple(self.low.shape)} and "
                f"{tuple(self.high.shape)}"
            )
        wrong = ~((self.low <= self.high) & (self.low.abs() + self.high.abs()).isfinite())
        if wrong.any():
            column = int(wrong.nonzero()[0])
            raise ValueError(
                f"low and high must be finite and low <= high, got {self.low[column]:g} and {self.high[column]:g} in "
                f"column {column}"
            )

    @classmethod
    def fit(cls, target: Target, rows: Any) -> Self:
        """Take low and high from raw rows (N, D), a tensor or what NumPy can read as numbers."""
        table = _table(rows)
        return cls(target, table.amin(0), table.amax(0))

    def scale(self, rows: Any) -> Tensor:
        """Raw rows (N, D) as the x in [0, 1] that attacks want; its dtype is that of the rows, float64 for integers.

        Raises:
            ValueError: if a value lies outside its column's low..high; the message says which.
        """
        table = self._checked(_table(rows))
        outside = ~((self.low <= table) & (table <= self.high))
        if outside.any():
            row, column = outside.nonzero()[0].tolist()
            raise ValueError(
                f"column {column} must be in {self.low[column]:g}..{self.high[column]:g}, got {table[row, column]:g} "
                f"in row {row}: fit MinMax to rows that span it, or leave such rows out"
            )
        width = self.high - self.low
        x = (table - self.low) / width.where(width > 0, 1)
        return x.to(table.dtype) if table.is_floating_point() else x

    def unscale(self, x: Tensor) -> Tensor:
        """What x (N, D) in [0, 1] stands for: raw rows (N, D)."""
        return (self.low + self._checked(x) * (self.high - self.low)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return respond(self.target, self.unscale(x))

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.ndim != 2 or rows.shape[1] != len(self.low):
            raise ValueError(f"expected rows of {len(self.low)} columns, got shape {tuple(rows.shape)}")
        return rows


def _table(rows: Any) -> Tensor:
    table = rows if isinstance(rows, Tensor) else torch.as_tensor(np.asarray(rows))
    if table.ndim != 2 or table.numel() == 0:
        raise ValueError(f"a table must be a non-empty array of rows (N, D), got shape {tuple(table.shape)}")
    return table


class Counted(nn.Module):
    """A model that counts what passes through it: what an attack costs, whatever the attack says.

    Args:
        model: what answers with logits (N, K).

    Attributes:
        calls: forward passes, of however many images.
        images: images that went forward.
        gradients: images whose gradient came back.

    Example:
        >>> counted = Counted(nn.Linear(4, 2))
        >>> counted(torch.zeros(8, 4)).sum().backward()
        >>> counted.calls, counted.images, counted.gradients
        (1, 8, 8)
    """

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.calls = self.images = self.gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.images += len(x)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._returned)
        return logits

    def _returned(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)
