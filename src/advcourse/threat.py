"""Threat models: how far an attacker may move an input, measured in a norm, inside the box [0, 1].

A ball knows four things about its norm. `norm` measures, `project` returns the nearest allowed point, `sample` draws
an allowed point, and `steepest` is the step of length one that raises a linear function the most. The norms of the
lecture differ in nothing else, and neither do the attacks that use them.
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


def open_part(gradient: Tensor, points: Tensor) -> Tensor:
    """The gradient (N, ...) without the features that stand on a face of the box [0, 1] and have no step outward."""
    return gradient.where(torch.where(gradient > 0, points < 1, points > 0), 0)


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

    @classmethod
    def stride(cls, gradient: Tensor, points: Tensor, left: float) -> Tensor:
        """The step of length one that a climb takes from `points` (N, ...), with the fraction `left` of it to come.

        It is the steepest one that the box leaves open; in L1 only at the end, see there.
        """
        return cls.steepest(open_part(gradient, points))

    @staticmethod
    @abstractmethod
    def draw(like: Tensor, generator: Generator) -> Tensor:
        """A uniform draw from the ball of radius one around 0, without a box: (N, ...)."""

    def sample(self, center: Tensor, generator: Generator) -> Tensor:
        """A uniform draw from the ball around `center`, clipped to the box [0, 1]: (N, ...)."""
        wide = _wide(center)
        return (wide + self.eps * self.draw(wide, generator)).clamp(0, 1).to(center.dtype)

    def sample_surface(self, center: Tensor, generator: Generator) -> Tensor:
        """A draw as by `sample`, moved outward to the surface of the ball before it is clipped: (N, ...)."""
        wide = _wide(center)
        direction = self.draw(wide, generator)
        reach = self.eps / self.norm(direction)
        return (wide + per_image(reach, wide) * direction).clamp(0, 1).to(center.dtype)

    def project(self, x: Tensor, center: Tensor, box: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """The point of the ball around `center`, cut with the box, that is nearest to x in L2: (N, ...)."""
        return self._project(_wide(x), _wide(center), *box).to(x.dtype)

    @abstractmethod
    def _project(self, x: Tensor, center: Tensor, low: float, high: float) -> Tensor: ...


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

    @staticmethod
    def draw(like: Tensor, generator: Generator) -> Tensor:
        return like.new_empty(like.shape).uniform_(-1, 1, generator=generator)

    @classmethod
    def stride(cls, gradient: Tensor, points: Tensor, left: float) -> Tensor:
        return cls.steepest(gradient)  # features have nothing to share, and the projection takes a step outward back

    def _project(self, x: Tensor, center: Tensor, low: float, high: float) -> Tensor:
        # Ball and box are both boxes, so clipping to one after the other is the exact projection.
        return x.clamp(center - self.eps, center + self.eps).clamp_(low, high)


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

    @staticmethod
    def draw(like: Tensor, generator: Generator) -> Tensor:
        # A Gaussian over sqrt(its squared length + 2 * Exp(1)) is uniform in the ball (Barthe et al. 2005, Theorem 1).
        direction = like.new_empty(like.shape).normal_(generator=generator)
        extra = like.new_empty(len(like)).exponential_(generator=generator)
        return direction / per_image((L2.norm(direction).square() + 2 * extra).sqrt(), like)

    def _project(self, x: Tensor, center: Tensor, low: float, high: float) -> Tensor:
        # The nearest point is clip(center + s * (x - center)) for the one s in (0, 1] that meets the radius. From
        # below: scale the free features to the radius that the clipped ones leave over, clip again, until none is new.
        delta = (x - center).flatten(1)
        room = torch.where(delta > 0, high - center.flatten(1), center.flatten(1) - low)
        length, clipped = delta.abs(), torch.zeros_like(delta, dtype=torch.bool)
        while True:
            left = (self.eps**2 - room.square().where(clipped, 0).sum(1, keepdim=True)).clamp_min(0)
            free = length.square().where(~clipped, 0).sum(1, keepdim=True)
            scale = torch.where(left < free, (left / free).sqrt(), 1)
            more = clipped | (scale * length > room)
            if torch.equal(more, clipped):
                return center + (torch.where(clipped, room, scale * length) * delta.sign()).view_as(x)
            clipped = more


class L1(Ball):
    """The absolute changes of all features add up to at most eps.

    The steepest step puts everything on one feature, the one with the largest gradient. A climb of such steps alone
    would go back and forth between two features, so it begins with the tenth of them that have the largest gradients,
    in proportion, and narrows down to one (`stride`). Tramèr & Boneh (2019) take a fixed share throughout, all alike.

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
        return _on_the_largest(gradient, 1)

    @classmethod
    def stride(cls, gradient: Tensor, points: Tensor, left: float) -> Tensor:
        return _on_the_largest(open_part(gradient, points), max(1, math.ceil(0.1 * left**4 * points[0].numel())))

    @staticmethod
    def draw(like: Tensor, generator: Generator) -> Tensor:
        # Laplace noise over (its absolute sum + Exp(1)) is uniform in the ball (Barthe et al. 2005, Theorem 1).
        size = like.new_empty(like.shape).exponential_(generator=generator)
        sign = like.new_empty(like.shape).uniform_(-1, 1, generator=generator).sign()
        extra = like.new_empty(len(like)).exponential_(generator=generator)
        return sign * size / per_image(L1.norm(size) + extra, like)

    def _project(self, x: Tensor, center: Tensor, low: float, high: float) -> Tensor:
        # The nearest point moves each feature by clamp(|delta| - cut, 0, room). Its length falls piecewise linearly in
        # `cut`, with slope -1 gained at |delta| and lost again at |delta| - room: sort these and solve on one piece.
        delta = (x - center).flatten(1)
        room = torch.where(delta > 0, high - center.flatten(1), center.flatten(1) - low)
        length = delta.abs()
        knot, order = torch.cat([length, length - room], 1).sort(dim=1, descending=True)
        slope = torch.cat([torch.ones_like(length), -torch.ones_like(length)], 1).gather(1, order)
        weight, mass = slope.cumsum(1), (slope * knot).cumsum(1)
        piece = (mass - weight * knot < self.eps).sum(1, keepdim=True).sub(1).clamp_min(0)
        cut = ((mass.gather(1, piece) - self.eps) / weight.gather(1, piece)).nan_to_num(0, 0, 0).clamp_min(0)
        step = (length - cut).clamp_min(0).minimum(room) * delta.sign()
        overshoot = step.abs().sum(1, keepdim=True).clamp_min(self.eps)  # by rounding, when there are many features
        return center + torch.where(overshoot > 0, step * (self.eps / overshoot), 0).view_as(x)


def _on_the_largest(gradient: Tensor, features: int) -> Tensor:
    # The step of L1 length one along the largest entries, in proportion to them.
    flat = gradient.flatten(1)
    size, where = flat.abs().topk(features, dim=1)
    # Dividing by the largest first keeps tiny gradients from underflowing and huge ones from overflowing.
    share = torch.where(size > 0, size / size[:, :1], 0)
    share = torch.where(size > 0, share / share.sum(1, keepdim=True), 0)
    return torch.zeros_like(flat).scatter(1, where, share * flat.gather(1, where).sign()).view_as(gradient)
