"""Threat models: how far an attacker may move an input, measured in a norm, inside the box [0, 1].

A ball knows four things about its norm. `norm` measures, `project` returns the nearest allowed point, `sample` draws
an allowed point, and `steepest` is the step of length one that raises a linear function the most. The last two norms
of the lecture differ in nothing else, and neither do the attacks that use them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Generator, Tensor


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """One number per image (N,), shaped to broadcast over images `like` (N, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _wide(x: Tensor) -> Tensor:
    # Sums over many features overflow or drown in half precision.
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Ball(ABC):
    """All x in [0, 1] with ``norm(x - center) <= eps``.

    Args:
        eps: the radius, in units of the input's range [0, 1].

    Raises:
        ValueError: if eps is negative, infinite or not a number.
    """

    eps: float

    def __post_init__(self) -> None:
        if isinstance(self.eps, bool) or not isinstance(self.eps, Real) or not 0 <= self.eps < math.inf:
            raise ValueError(
                f"eps must be a finite number >= 0 in units of the input range [0, 1] (8/255, say), got {self.eps!r}"
            )

    @staticmethod
    @abstractmethod
    def norm(delta: Tensor) -> Tensor:
        """The length of each perturbation: (N, ...) -> (N,)."""

    @staticmethod
    @abstractmethod
    def dual_norm(gradient: Tensor) -> Tensor:
        """How much a step of length one can gain: max of <gradient, d> over norm(d) <= 1, (N, ...) -> (N,)."""

    @staticmethod
    @abstractmethod
    def steepest(gradient: Tensor) -> Tensor:
        """The step d of length one with ``<gradient, d> = dual_norm(gradient)``; zero where the gradient is zero."""

    def project(self, x: Tensor, center: Tensor) -> Tensor:
        """The point of the ball around `center`, cut with the box [0, 1], that is nearest to x in L2: (N, ...)."""
        return self._project(_wide(x), _wide(center)).to(x.dtype)

    def sample(self, center: Tensor, generator: Generator) -> Tensor:
        """A uniform draw from the ball around `center`, clipped to the box [0, 1]: (N, ...)."""
        return self._sample(_wide(center), generator).to(center.dtype)

    @abstractmethod
    def _project(self, x: Tensor, center: Tensor) -> Tensor: ...

    @abstractmethod
    def _sample(self, center: Tensor, generator: Generator) -> Tensor: ...


class Linf(Ball):
    """Every feature moves by at most eps.

    Example:
        >>> x = torch.tensor([[0.05, 0.50, 0.95]])
        >>> Linf(0.1).project(x + torch.tensor([[-0.3, 0.02, 0.3]]), center=x)
        tensor([[0.0000, 0.5200, 1.0000]])
        >>> Linf(0.1).steepest(torch.tensor([[-3.0, 0.0, 0.2]]))
        tensor([[-1.,  0.,  1.]])
    """

    @staticmethod
    def norm(delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    @staticmethod
    def dual_norm(gradient: Tensor) -> Tensor:
        return L1.norm(gradient)

    @staticmethod
    def steepest(gradient: Tensor) -> Tensor:
        return gradient.sign()

    def _project(self, x: Tensor, center: Tensor) -> Tensor:
        # Ball and box are both boxes, so clipping to one after the other is the exact projection.
        return x.clamp(center - self.eps, center + self.eps).clamp(0, 1)

    def _sample(self, center: Tensor, generator: Generator) -> Tensor:
        delta = center.new_empty(center.shape).uniform_(-self.eps, self.eps, generator=generator)
        return (center + delta).clamp(0, 1)


class L2(Ball):
    """The Euclidean length of the perturbation is at most eps.

    Example:
        >>> x = torch.tensor([[0.0, 0.5]])
        >>> L2(0.5).project(torch.tensor([[0.6, 1.3]]), center=x)
        tensor([[0.3000, 0.9000]])
        >>> L2.norm(torch.tensor([[3.0, 4.0]]))
        tensor([5.])
    """

    @staticmethod
    def norm(delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    @staticmethod
    def dual_norm(gradient: Tensor) -> Tensor:
        return L2.norm(gradient)

    @staticmethod
    def steepest(gradient: Tensor) -> Tensor:
        # Dividing by the largest entry first keeps tiny gradients from underflowing when they are squared.
        largest = per_image(Linf.norm(gradient), gradient)
        unit = torch.where(largest > 0, gradient / largest, 0)
        return torch.where(largest > 0, unit / per_image(L2.norm(unit), gradient), 0)

    def _project(self, x: Tensor, center: Tensor) -> Tensor:
        # The nearest point is clip(center + s * (x - center)) for the one s in (0, 1] that meets the radius. From
        # below: scale the free features to the radius that the clipped ones leave over, clip again, until none is new.
        delta = (x - center).flatten(1)
        room = torch.where(delta > 0, 1 - center.flatten(1), center.flatten(1))
        length, clipped = delta.abs(), torch.zeros_like(delta, dtype=torch.bool)
        while True:
            left = (self.eps**2 - room.square().where(clipped, 0).sum(1, keepdim=True)).clamp_min(0)
            free = length.square().where(~clipped, 0).sum(1, keepdim=True)
            scale = torch.where(left < free, (left / free).sqrt(), 1)
            more = clipped | (scale * length > room)
            if torch.equal(more, clipped):
                return center + (torch.where(clipped, room, scale * length) * delta.sign()).view_as(x)
            clipped = more

    def _sample(self, center: Tensor, generator: Generator) -> Tensor:
        # A Gaussian over sqrt(its squared length + 2 * Exp(1)) is uniform in the ball (Barthe et al. 2005, Theorem 1).
        direction = center.new_empty(center.shape).normal_(generator=generator)
        extra = center.new_empty(len(center)).exponential_(generator=generator)
        reach = self.eps / (L2.norm(direction).square() + 2 * extra).sqrt()
        return (center + per_image(reach, center) * direction).clamp(0, 1)


class L1(Ball):
    """The absolute changes of all features add up to at most eps.

    The steepest step puts everything on one feature, the one with the largest gradient. An attack that takes such steps
    needs many of them, and long ones: `PGD` with a step_size near 1, and not its default, which shrinks with `steps`.

    Example:
        >>> x = torch.tensor([[0.2, 0.5]])
        >>> L1(0.5).project(torch.tensor([[0.4, 1.2]]), center=x)
        tensor([[0.2000, 1.0000]])
        >>> L1.steepest(torch.tensor([[-3.0, 2.0]]))
        tensor([[-1.,  0.]])
    """

    @staticmethod
    def norm(delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)

    @staticmethod
    def dual_norm(gradient: Tensor) -> Tensor:
        return Linf.norm(gradient)

    @staticmethod
    def steepest(gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        largest = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(gradient)

    def _project(self, x: Tensor, center: Tensor) -> Tensor:
        # The nearest point moves each feature by clamp(|delta| - cut, 0, room). Its length falls piecewise linearly in
        # `cut`, with slope -1 gained at |delta| and lost again at |delta| - room: sort these and solve on one piece.
        delta = (x - center).flatten(1)
        room = torch.where(delta > 0, 1 - center.flatten(1), center.flatten(1))
        length = delta.abs()
        knot, order = torch.cat([length, length - room], 1).sort(dim=1, descending=True)
        slope = torch.cat([torch.ones_like(length), -torch.ones_like(length)], 1).gather(1, order)
        weight, mass = slope.cumsum(1), (slope * knot).cumsum(1)
        piece = (mass - weight * knot < self.eps).sum(1, keepdim=True).sub(1).clamp_min(0)
        cut = ((mass.gather(1, piece) - self.eps) / weight.gather(1, piece)).nan_to_num(0, 0, 0).clamp_min(0)
        step = (length - cut).clamp_min(0).minimum(room) * delta.sign()
        overshoot = step.abs().sum(1, keepdim=True).clamp_min(self.eps)  # by rounding, when there are many features
        return center + torch.where(overshoot > 0, step * (self.eps / overshoot), 0).view_as(x)

    def _sample(self, center: Tensor, generator: Generator) -> Tensor:
        # Laplace noise over (its absolute sum + Exp(1)) is uniform in the ball (Barthe et al. 2005, Theorem 1).
        size = center.new_empty(center.shape).exponential_(generator=generator)
        sign = center.new_empty(center.shape).uniform_(-1, 1, generator=generator).sign()
        extra = center.new_empty(len(center)).exponential_(generator=generator)
        reach = self.eps / (L1.norm(size) + extra)
        return (center + per_image(reach, center) * sign * size).clamp(0, 1)
