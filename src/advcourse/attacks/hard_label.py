"""What attacks that are told labels alone have in common: the nearest example so far, and what it has cost."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..contract import Model, check_images, private_generator
from ..goals import Goal
from ..gradients import Rays, Trace
from ..oracles import Labels, Oracle
from ..threat import L2, Ball, Linf, per_image
from .base import own_copy, watched
from .query import Queried, QueryAttack


@dataclass(frozen=True)
class Traced(Queried):
    """A moment of an attack on labels. `loss` is all that they tell: 1 for images that were fooled, else 0.

    Attributes:
        trace: when each image came nearer, to the query. States are further apart.
    """

    trace: Trace


class HardLabel(QueryAttack):
    """An attack of minimum norm that sees labels alone. Its class writes `climb`, which asks through `Rays`.

    It goes on until its own steps are over or the oracle's budget is. `best` is the nearest point that ever fooled; all
    distances are those of points clipped to [0, 1].
    """

    window: ClassVar[type[Oracle]] = Labels
    norm: type[Ball]

    def __post_init__(self) -> None:
        if self.norm not in (L2, Linf):
            raise ValueError(f"norm must be L2 or Linf, the class and not a ball of some eps, got {self.norm!r}")

    def __call__(
        self,
        oracle: Oracle | Model,
        x: Tensor,
        y_or_goal: Tensor | Goal,
        *,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Attack images x and return the nearest adversarial examples found.

        Args:
            oracle: `Labels` around a target. Its ledger begins anew. A bare target is asked without a budget.
            x: clean images (N, ...), floating point, in [0, 1].
            y_or_goal: labels (N,), int64, to get away from, or a goal such as `Targeted(t)`.
            start: images (N, ...) in [0, 1] that meet the goal, to come nearer from; one query each. Where one does
                not meet it, and without any, the attack looks for a start among random images or directions, which
                for a targeted goal seldom helps.
            generator: the source of all randomness; by default a private one seeded 0, so that calls repeat.

        Returns:
            The images found (N, ...), with the shape, dtype and device of x. Where none was found, the clean image;
            those that were misclassified from the start come back as they were, for one query each.

        Raises:
            ValueError: if images, labels, the start or the target's answers are not as described.
        """
        for state in self.iterates(oracle, x, y_or_goal, start=start, generator=generator):
            found = state.best
        return found

    def iterates(
        self,
        oracle: Oracle | Model,
        x: Tensor,
        y_or_goal: Tensor | Goal,
        *,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Iterator[Traced]:
        """The same computation, one `Traced` state at a time. Arguments and errors are those of a call."""
        asked, x, goal = self.opened(oracle, x, y_or_goal)
        if start is not None:
            check_images(start)
            if start.shape != x.shape or start.dtype != x.dtype or start.device != x.device:
                raise ValueError(
                    f"start must have the shape, dtype and device of the images, {tuple(x.shape)} {x.dtype} on "
                    f"{x.device}, got {tuple(start.shape)} {start.dtype} on {start.device}"
                )
            start = own_copy(start)
        return watched(asked, self._states(asked, x, goal, start, private_generator(generator, x)))

    def _states(
        self, oracle: Any, x: Tensor, goal: Goal, start: Tensor | None, generator: Generator
    ) -> Iterator[Traced]:
        rays = Rays(oracle, x, goal, self.norm)
        done = rays.distance == 0
        steps = self.climb(rays, start, generator) if (~done & (oracle.remaining > 0)).any() else iter(())
        for step, points in enumerate(_told(rays, steps)):
            success = rays.distance < math.inf
            state = Traced(
                step=step,
                x=points,
                best=rays.best,
                loss=success.to(x.dtype),
                success=success,
                best_loss=torch.where(success, 1, -torch.inf).to(x.dtype),
                distance=rays.distance,
                queries=oracle.queries,
                trace=rays.trace,
            )
            yield state
        self.warn_if_untried(oracle, state)

    @abstractmethod
    def climb(self, rays: Rays, start: Tensor | None, generator: Generator) -> Iterator[Tensor]:  # type: ignore[override]
        """The attack itself: asks through `rays`, and yields its iterates (N, ...) whenever they have moved.

        The clean images have been asked about; those at a distance of 0 are done.
        """


def _told(rays: Rays, steps: Iterator[Tensor]) -> Iterator[Tensor]:
    """The clean images, the steps, and one more if they ended with questions that no state tells of."""
    told = rays.oracle.queries
    yield rays.x
    for points in steps:
        told = rays.oracle.queries
        yield points
    if not torch.equal(told, rays.oracle.queries):
        yield rays.best


def random_images(rays: Rays, start: Tensor | None, tries: int, generator: Generator) -> Tensor:
    """For each image one that fools: its `start` if that does, else the first of so many of uniform noise: (N, ...).

    Where none does, or the image is done, the clean image.
    """
    found, missing = rays.x, rays.distance > 0
    noise = (torch.empty_like(rays.x).uniform_(generator=generator) for _ in range(tries))
    for image in noise if start is None else chain([start], noise):
        rows = (missing & (rays.oracle.remaining > 0)).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        hit = rows[rays.fooled(image[rows], rows)]
        found, missing = found.index_copy(0, hit, image[hit]), missing.index_fill(0, hit, False)
    return found


def blended(rays: Rays, start: Tensor | None, tries: int, generator: Generator, tol: float = 1e-3) -> Tensor:
    """`random_images`, brought nearer by bisection between them and the clean ones, to `tol` of that way: (N, ...)."""
    image = random_images(rays, start, tries, generator)
    theta, reach = rays.unit(image - rays.x), rays.norm.norm(image - rays.x)
    radius = rays.bisect(theta, torch.zeros_like(reach), reach, tol * reach, rays.every)
    # At `reach` itself the ray meets the image up to rounding only, and the image is what fools.
    return torch.where(per_image(radius < reach, image), rays.points(theta, radius, rays.every), image)
