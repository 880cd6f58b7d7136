"""The Boundary attack: a random walk along the boundary that only ever comes nearer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..contract import check_number
from ..gradients import Rays, gaussian
from ..threat import L2, per_image
from .hard_label import HardLabel, blended


@dataclass(frozen=True, repr=False)
class Boundary(HardLabel):
    """The Boundary attack of Brendel et al. (2018), in L2: a step around the image, a step towards it, and ask.

    ::

        θ ← (x̃ − x) / |x̃ − x|,   s ← x + |x̃ − x| · (θ + δη) / |θ + δη|,   η a random direction at right angles to θ
        x̃ ← the point with distance (1 − ε) · |x̃ − x| on the way from s to x, if it fools

    One query a proposal. Every tenth time s is asked about as well, and of each image what share of the last hundred s
    fooled: more than 1/2, and the boundary is flat enough for larger δ and ε, less than 1/5, and both get smaller. So
    does ε with the share of the last thirty proposals beside them, out of 1/10 to 1/4. An image is done when its ε has
    become too small.

    These are the rules and settings of foolbox 3, which the authors wrote; the paper gives no numbers but that about
    half of the s should fool. What differs: every image has random directions of its own; an s that fools and is
    nearer, because it was clipped, is taken; δ and ε stay at 1 or less; and the walk begins where bisection between
    noise and the image ends, not a search in fifty steps.

    Args:
        steps: proposals, at most.
        spherical_step: the first δ, a share of the distance.
        source_step: the first ε, a share of the distance.
        step_adaptation: factor by which they grow or shrink.
        check_every: so many proposals from one look at s to the next, and from one state to the next.
        least_step: an image with an ε below that is done.
        start_images: random images that are asked about where there is no start, at most.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.oracles import Labels
        >>> x, y = data.fashion_mnist("test", n=5)
        >>> oracle = Labels(models.load("cnn"), budget=300)
        >>> _, blended, *_, last = Boundary().iterates(oracle, x, y, start=1 - x)
        >>> bool((last.distance < 0.95 * blended.distance).all()), bool((oracle.queries <= 300).all())
        (True, True)
    """

    norm = L2
    steps: int = 25_000
    spherical_step: float = 1e-2
    source_step: float = 1e-2
    step_adaptation: float = 1.5
    check_every: int = 10
    least_step: float = 1e-7
    start_images: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in ("steps", 1), ("check_every", 1), ("start_images", 0), ("step_adaptation", 1.0):
            check_number(name, getattr(self, name), least)
        for name in "spherical_step", "source_step", "least_step":
            check_number(name, getattr(self, name), 0.0)
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be a share of the distance, in (0, 1), got {getattr(self, name)!r}")

    def climb(self, rays: Rays, start: Tensor | None, generator: Generator) -> Iterator[Tensor]:  # type: ignore[override]
        blended(rays, start, self.start_images, generator)
        yield rays.best  # all that is accepted is nearer than what was, so the nearest is where the walk stands
        delta, epsilon = (torch.full_like(rays.distance, step) for step in (self.spherical_step, self.source_step))
        around, inward = (rays.x.new_full((len(rays.x), length), math.nan) for length in (100, 30))
        for step in range(1, self.steps + 1):
            found = (rays.distance > 0) & (rays.distance < math.inf)
            rows = (found & (epsilon >= self.least_step) & (rays.oracle.remaining > 0)).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            x, radius = rays.x[rows], rays.distance[rows]
            eta = gaussian(x, 1, generator)[:, 0]
            sphere = rays.points(turned(rays.best[rows] - x, eta, delta[rows]), radius, rows)
            theta, reach = rays.unit(sphere - x), L2.norm(sphere - x)
            nearer = reach.minimum((1 - epsilon[rows]) * radius)
            if step % self.check_every:
                rays.crossed(theta, nearer, rows)
                continue
            hit = rays.fooled(torch.cat([rays.points(theta, nearer, rows), sphere]), torch.cat([rows, rows]))
            both = self.change(around, rows, hit[len(rows) :], 0.2, 0.5)
            delta[rows] = (delta[rows] * both).clamp_max(1)
            epsilon[rows] = (epsilon[rows] * both * self.change(inward, rows, hit[: len(rows)], 0.1, 0.25)).clamp_max(1)
            yield rays.best
        yield rays.best

    def change(self, recent: Tensor, rows: Tensor, hit: Tensor, low: float, high: float) -> Tensor:
        """Note in `recent` (N, n) what images `rows` (R,) met, and tell by which factor their steps should change."""
        recent[rows] = torch.cat([recent[rows, 1:], hit[:, None].to(recent)], 1)
        share = recent[rows].mean(1)  # NaN, which is neither large nor small, until there are n
        factor = torch.where(share > high, self.step_adaptation, torch.ones_like(share))
        factor = torch.where(share < low, 1 / self.step_adaptation, factor)
        recent[rows[factor != 1]] = math.nan
        return factor


def turned(theta: Tensor, eta: Tensor, step: Tensor) -> Tensor:
    """Directions θ (R, ...) after a step of so many times their length (R,) at right angles, towards η; of length 1.

    Example:
        >>> turned(torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 1.0]]), torch.tensor([0.75]))
        tensor([[0.8000, 0.6000]])
    """
    theta = L2.steepest(theta)
    along = (eta * theta).flatten(1).sum(1)
    sideways = L2.steepest(eta - per_image(along, eta) * theta)
    return L2.steepest(theta + per_image(step, eta) * sideways)
