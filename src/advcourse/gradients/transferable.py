"""Parts that make a surrogate's gradient transfer: each a few lines, alone or around one another, in an `Onion`."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ascent import Gradient, Slope
from ..contract import check_fraction, check_loss, check_number, logits_of
from ..goals import Loss, Untargeted, cross_entropy
from ..threat import per_image
from .onion import Context, Part, averaged, through


@dataclass(frozen=True, repr=False)
class Normalization(Part):
    """The gradient of each image divided by its mean absolute entry, so that no step of a climb outweighs another.

    ``g / ‖g‖₁`` of Dong et al. (2018) but for the constant d, by which `Nesterov` looks ahead as far as published code.
    A gradient of 0 stays 0.
    """

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Any, context: Context
    ) -> tuple[Slope, Any]:
        slope = next(points, owner)
        size = per_image(slope.gradient.flatten(1).abs().mean(1), points)
        return replace(slope, gradient=torch.where(size > 0, slope.gradient / size, 0)), state


@dataclass(frozen=True, repr=False)
class Momentum(Part):
    """``m ← decay · m + g``, of which the step is made (MI, Dong et al. 2018, algorithm 1); 0 is no momentum.

    Args:
        decay: μ.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        check_number("decay", self.decay, 0.0)

    def init(self, context: Context) -> Tensor:
        return torch.zeros_like(context.clean)

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Tensor, context: Context
    ) -> tuple[Slope, Tensor]:
        slope = next(points, owner)
        gathered = self.decay * _of_images(state, points, self) + slope.gradient
        return replace(slope, gradient=gathered), gathered


@dataclass(frozen=True, repr=False)
class Nesterov(Momentum):
    """`Momentum`, with the gradient at the point where it will lead (NI, Lin et al. 2020).

    That is ``x + step_size · decay · m``. As published, it may leave the ball and the box.
    """

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Tensor, context: Context
    ) -> tuple[Slope, Tensor]:
        ahead = points + context.step_size * self.decay * _of_images(state, points, self)
        return super().__call__(lambda _, who: next(ahead, who), points, owner, state, context)


@dataclass(frozen=True, repr=False)
class ScaleInvariance(Part):
    """The mean gradient over copies of the image at brightness 1, 1/2, 1/4, … (SI, Lin et al. 2020).

    Args:
        scales: how many; 1 is the image alone.
    """

    scales: int = 5

    def __post_init__(self) -> None:
        check_number("scales", self.scales, 1)

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Any, context: Context
    ) -> tuple[Slope, Any]:
        if self.scales == 1:
            return next(points, owner), state
        return through(self.copies, next, points, owner), state

    def copies(self, points: Tensor) -> Tensor:
        """Points (R, ...) at every brightness, one block after the other: (scales · R, ...)."""
        return torch.cat([points / 2**i for i in range(self.scales)])


@dataclass(frozen=True, repr=False)
class Admix(ScaleInvariance):
    """`ScaleInvariance` of the image with a little of another one: ``(x + share · x') / 2ⁱ`` (Wang et al. 2021).

    x' is drawn, for every gradient and each of `partners`, from the images of the batch that have another label, as
    they stand at this step. Their labels are those of an untargeted goal; with a target, which says nothing about them,
    the model's own about the clean images (one more pass forward). An image without a partner, as every image in a
    batch of one is, stays unmixed, with a warning.

    Args:
        scales: brightnesses, as in `ScaleInvariance`.
        partners: how many others, one after the other.
        share: of the other image; 0 is `ScaleInvariance`.
    """

    partners: int = 3
    share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("partners", self.partners, 1)
        check_number("share", self.share, 0.0)

    def init(self, context: Context) -> Tensor | None:
        """Who may be mixed with whom: bool (N, N)."""
        if self.share == 0:
            return None
        untargeted = isinstance(context.goal, Untargeted)
        labels = context.goal.labels if untargeted else logits_of(context.model, context.clean).argmax(1)
        others = labels[:, None] != labels
        if not others.any(1).all():
            warnings.warn("Admix leaves images unmixed: the batch holds none of another label", stacklevel=2)
        return others

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Tensor | None, context: Context
    ) -> tuple[Slope, Tensor | None]:
        if state is None:
            return super().__call__(next, points, owner, state, context)
        alone = ~state.any(1)
        chance = (state | alone[:, None]).float()[owner][:, owner]
        chosen = torch.multinomial(chance, self.partners, replacement=True, generator=context.generator).T
        added = self.share * points[chosen] * per_image(~alone[owner], points)

        def mixed(points: Tensor) -> Tensor:
            return torch.cat([self.copies(points + other) for other in added])

        return through(mixed, next, points, owner), state


@dataclass(frozen=True, repr=False)
class InputDiversity(Part):
    """The image made smaller by a random factor and put at a random place on black (DI, Xie et al. 2019).

    Published code enlarges images of 299 to at most 330, which only some networks take. Here the size stays, and the
    picture shrinks: relative to the frame it is the same. Each block of copies that comes from a part around this one
    has its own size and place, and so has every gradient.

    Args:
        p: the probability that it is done at all; 0 never.
        least: the smallest side, as a fraction of the image's.
    """

    p: float = 0.7
    least: float = 0.9

    def __post_init__(self) -> None:
        for name in "p", "least":
            check_fraction(name, getattr(self, name))

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Any, context: Context
    ) -> tuple[Slope, Any]:
        if self.p == 0:
            return next(points, owner), state
        _check_pictures(points, self)

        def diverse(points: Tensor) -> Tensor:
            return torch.cat([self._shrunk(block, context) for block in points.split(len(context.clean))])

        return through(diverse, next, points, owner), state

    def _shrunk(self, x: Tensor, context: Context) -> Tensor:
        def draw(low: int, high: int) -> int:
            device = context.generator.device
            return int(torch.randint(low, high + 1, (), generator=context.generator, device=device))

        if torch.rand((), generator=context.generator, device=context.generator.device) >= self.p:
            return x
        height, width = x.shape[2:]
        fraction = draw(max(1, round(self.least * height)), height) / height
        size = round(fraction * height), max(1, round(fraction * width))
        top, left = draw(0, height - size[0]), draw(0, width - size[1])
        small = F.interpolate(x, size=size, mode="nearest")
        return F.pad(small, (left, width - size[1] - left, top, height - size[0] - top))


@dataclass(frozen=True, repr=False)
class TranslationKernel(Part):
    """The gradient smoothed, as if averaged over shifted copies of the image (TI, Dong et al. 2019).

    Args:
        size: of the Gaussian kernel, odd; 1 is no smoothing. The paper has 15 for images of 299; 5 suits small
            ones, or 3 with a spread of 1.
        spread: how many standard deviations the kernel reaches to either side.
    """

    size: int = 5
    spread: float = 3.0

    def __post_init__(self) -> None:
        check_number("size", self.size, 1)
        check_number("spread", self.spread, 0.0)
        if self.size % 2 == 0:
            raise ValueError(f"size must be odd, got {self.size}")

    def kernel(self, like: Tensor) -> Tensor:
        """The weights (size, size), which add up to 1."""
        line = torch.linspace(-self.spread, self.spread, self.size).to(like).square().div(-2).exp()
        square = line[:, None] * line
        return square / square.sum()

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Any, context: Context
    ) -> tuple[Slope, Any]:
        slope = next(points, owner)
        if self.size == 1:
            return slope, state
        _check_pictures(points, self)
        channels = points.shape[1]
        weight = self.kernel(points).expand(channels, 1, -1, -1)
        smoothed = F.conv2d(slope.gradient, weight, padding=self.size // 2, groups=channels)
        return replace(slope, gradient=smoothed), state


@dataclass(frozen=True, repr=False)
class VarianceTuning(Part):
    """The gradient, plus how the gradients around the last point differed from it (VT, Wang and He 2021, algorithm 1).

    ::

        V ← 1/neighbours · Σ ∇L(x + r_i) − ∇L(x),    r_i ~ U(−reach · eps, reach · eps);    g + V of the step before

    Args:
        neighbours: N; each costs a gradient. 0 is no tuning.
        reach: β, how far they may be, as a multiple of the ball's eps; 0 is no tuning either.
    """

    neighbours: int = 20
    reach: float = 1.5

    def __post_init__(self) -> None:
        check_number("neighbours", self.neighbours, 0)
        check_number("reach", self.reach, 0.0)

    def init(self, context: Context) -> Tensor:
        return torch.zeros_like(context.clean)

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Tensor, context: Context
    ) -> tuple[Slope, Tensor]:
        before = _of_images(state, points, self)
        if self.neighbours == 0 or self.reach == 0:
            return next(points, owner), state
        copies = points.repeat(self.neighbours, *[1] * (points.ndim - 1))
        noise = torch.empty_like(copies).uniform_(-1, 1, generator=context.generator)
        around = copies + self.reach * context.ball.eps * noise
        slope, near = next(points, owner), next(around, owner.repeat(self.neighbours))
        variance = averaged(near, self.neighbours).gradient - slope.gradient
        return replace(slope, gradient=slope.gradient + before), variance


@dataclass(frozen=True, repr=False)
class RAP(Part):
    """Reverse adversarial perturbation: the gradient not at x, but at the worst point near it (Qin et al. 2022).

    ::

        n ~ U(−eps, eps);    steps times:  n ← clip(n − step_size · sign ∇ℓ(x + n));    then the gradient at x + n

    The attack climbs its loss, the inner loop descends it: what is climbed is the least loss around x, so that the
    attack ends on a plateau and not on a peak. The inner loop sees the model without the parts within (no input
    diversity), and x + n stays in [0, 1]. A gradient costs `steps` more from step `start` on, none before.

    Args:
        eps: ε_n, how far the worst neighbour may be in each feature; 0 is none.
        steps: T.
        step_size: eps / steps by default.
        start: K_LS, the step of the climb with which it begins; 0 is RAP, later is RAP-LS.
        loss: what the inner loop descends; published code has the cross-entropy, whatever the attack climbs.
    """

    eps: float
    steps: int = 8
    step_size: float | None = None
    start: int = 0
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        check_number("eps", self.eps, 0.0)
        check_number("steps", self.steps, 1)
        check_number("start", self.start, 0)
        check_loss(self.loss)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0.0)

    def __call__(
        self, next: Gradient, points: Tensor, owner: Tensor, state: Any, context: Context
    ) -> tuple[Slope, Any]:
        if self.eps == 0 or context.step < self.start:
            return next(points, owner), state
        plain = context.plain(self.loss)
        step_size = self.eps / self.steps if self.step_size is None else self.step_size
        low, high = (points - self.eps).clamp_min(0), (points + self.eps).clamp_max(1)
        worst = points + self.eps * torch.empty_like(points).uniform_(-1, 1, generator=context.generator)
        worst = worst.clamp(low, high)
        for _ in range(self.steps):
            worst = (worst - step_size * plain(worst, owner).gradient.sign()).clamp(low, high)
        return next(worst, owner), state


def _of_images(state: Tensor, points: Tensor, part: Part) -> Tensor:
    if len(state) != len(points):
        raise ValueError(
            f"{type(part).__name__} keeps one state for each of {len(state)} images and was asked about {len(points)} "
            "points: put it outside of the parts that make copies"
        )
    return state


def _check_pictures(points: Tensor, part: Part) -> None:
    if points.ndim != 4:
        raise ValueError(f"{type(part).__name__} needs images (N, C, H, W), got shape {tuple(points.shape)}")
