"""g(θ): how far the boundary is in a direction, found out by asking for labels.

Labels alone are a step function of the image, flat almost everywhere. The distance to the boundary is not (Cheng et al.
2019)::

    g(θ) = min { λ > 0 : clip(x + λ · θ / |θ|) fools }

It is a number, it changes gradually with θ, and its minimum over all θ is the distance of the nearest adversarial
example. Every method of `Rays` is a way to learn something about it from one bit an answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from ..goals import Goal
from ..oracles import Labels
from ..threat import L2, Ball, per_image


@dataclass(frozen=True)
class Trace:
    """What was found about n images, and what each had cost by then: one entry for each improvement.

    Attributes:
        images: n.
        image: whose improvement it was (M,), int64.
        queries: what that image had cost when the answer came (M,), int64.
        distance: how far the example was from it (M,).

    Example:
        >>> trace = Trace(2, torch.tensor([0, 0, 1]), torch.tensor([3, 9, 5]), torch.tensor([2.0, 1.5, 4.0]))
        >>> trace.at([1, 5, 100])
        tensor([[   inf, 2.0000, 1.5000],
                [   inf, 4.0000, 4.0000]])
    """

    images: int
    image: Tensor
    queries: Tensor
    distance: Tensor

    def at(self, budgets: Sequence[int]) -> Tensor:
        """The distance of what each image had found for so many queries, infinite for nothing: (N, budgets)."""
        columns = []
        for budget in budgets:
            by_then = self.queries <= budget
            nothing = self.distance.new_full((self.images,), math.inf)
            columns.append(nothing.scatter_reduce(0, self.image[by_then], self.distance[by_then], "amin"))
        return torch.stack(columns, 1)


class Rays:
    """What is known about the surroundings of images x, and the ways to ask for more.

    A direction θ has length 1 in the norm, a radius λ is a distance along it, and `owner` (R,) names the image that
    each of R rays starts from and that pays. Whatever was ever told to fool is remembered, and the nearest kept.

    A question that an image cannot pay for is not asked, and the answer is taken for "does not fool". So all searches
    end with the budget, on a radius that has been seen to fool, or on infinity.

    Args:
        oracle: answers labels; its ledger is open.
        x: clean images (N, ...). They are asked about at once, one query each.
        goal: when they are fooled.
        norm: measures distances and the length of directions, `L2` or `Linf`.

    Raises:
        ValueError: if the target is known to have no such label as the goal names.

    Attributes:
        best: the nearest point so far that fools (N, ...), or the clean image.
        distance: how far `best` is from x (N,): 0 if x is fooled already, infinite if nothing was found.

    Example:
        How far it is to the line x_1 + x_2 = 1, going to the right and along the diagonal:

        >>> from advcourse.goals import Untargeted
        >>> oracle = Labels(lambda rows: (rows.sum(1) > 1).long())
        >>> oracle.begin(1)
        >>> rays = Rays(oracle, torch.tensor([[0.2, 0.2]]), Untargeted(torch.tensor([0])))
        >>> theta, owner = torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]]), torch.tensor([0, 0])
        >>> rays.bisect(theta, torch.zeros(2), torch.ones(2), 1e-4, owner)
        tensor([0.6000, 0.4243])
        >>> rays.best, oracle.queries
        (tensor([[0.5000, 0.5000]]), tensor([29]))
    """

    def __init__(self, oracle: Labels, x: Tensor, goal: Goal, norm: type[Ball] = L2) -> None:
        self.oracle, self.x, self.goal, self.norm = oracle, x, goal, norm
        self.best, self.distance = x, x.new_full((len(x),), math.inf)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []
        self.every = torch.arange(len(x), device=x.device)
        self.fooled(x, self.every)
        if oracle.classes is not None and goal.largest >= oracle.classes:
            raise ValueError(f"labels must be in 0..{oracle.classes - 1} for this target, got {goal.largest}")

    @property
    def trace(self) -> Trace:
        """All improvements so far."""
        nothing = self.every[:0], self.every[:0], self.distance[:0]
        image, queries, distance = (torch.cat(parts) for parts in zip(nothing, *self.found, strict=True))
        self.found = [(image, queries, distance)]  # or the next trace would join them all again
        return Trace(len(self.x), image, queries, distance)

    def fooled(self, points: Tensor, owner: Tensor) -> Tensor:
        """Ask whether points (R, ...) fool, one query each: bool (R,)."""
        asked = self.oracle.payable(owner)
        if asked.any():
            points, who = points[asked].clamp(0, 1), owner[asked]
            hit = self.goal[who].fooled(self.oracle(points, who))
            self._keep(points[hit], who[hit])
            asked[asked.clone()] = hit
        return asked

    def _keep(self, points: Tensor, owner: Tensor) -> None:
        distance = self.norm.norm(points - self.x[owner])
        order = distance.argsort(stable=True)
        order = order[owner[order].argsort(stable=True)]  # by image, and the nearest of each first
        first = order[owner[order].diff(prepend=owner.new_tensor([-1])) != 0]
        won = first[distance[first] < self.distance[owner[first]]]
        if len(won):
            image = owner[won]
            self.best = self.best.index_copy(0, image, points[won])
            self.distance = self.distance.index_copy(0, image, distance[won])
            self.found.append((image, self.oracle.queries[image], distance[won]))

    def unit(self, theta: Tensor) -> Tensor:
        """Directions (R, ...) scaled to length 1; 0 stays 0."""
        length = self.norm.norm(theta)
        return theta / per_image(torch.where(length > 0, length, 1), theta)

    def points(self, theta: Tensor, radius: Tensor, owner: Tensor) -> Tensor:
        """Where rays are at a radius (R,), clipped to the box: (R, ...)."""
        return (self.x[owner] + per_image(radius, theta) * theta).clamp(0, 1)

    def crossed(self, theta: Tensor, radius: Tensor, owner: Tensor) -> Tensor:
        """Whether rays fool at a radius (R,), one query each: bool (R,)."""
        return self.fooled(self.points(theta, radius, owner), owner)

    def walk(self, theta: Tensor, stride: float, limit: Tensor | float, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Fine-grained search: step along rays until they fool, so that no crossing is missed that is a stride wide.

        Returns:
            The last radius that did not fool, and the first that did, infinite if there was none up to the limit (R,).
        """
        low = torch.zeros(len(owner), dtype=theta.dtype, device=theta.device)
        high = torch.full_like(low, math.inf)
        reach = torch.as_tensor(limit, dtype=low.dtype, device=low.device).expand_as(low) * (1 + 1e-6)  # 3 · 0.1 > 0.3
        for step in range(1, int(reach.max().item() / stride) + 1 if len(low) else 0):
            going = (high == math.inf) & (step * stride <= reach) & (self.oracle.remaining[owner] > 0)
            rows = going.nonzero().squeeze(1)
            if len(rows) == 0:
                break
            radius = torch.full_like(low[rows], step * stride)
            there = self.crossed(theta[rows], radius, owner[rows])
            high[rows[there]], low[rows[~there]] = radius[there], radius[~there]
        return low, high

    def bracket(
        self, theta: Tensor, guess: Tensor, owner: Tensor, ratio: float = 0.01, limit: float = 2.0
    ) -> tuple[Tensor, Tensor]:
        """Local search: from a guess (R,), outward while rays do not fool, else inward while they do, by 1 % a query.

        Returns:
            Two radii around the crossing (R,); the second is infinite if rays do not fool up to `limit` times the
            guess.
        """
        out = ~self.crossed(theta, guess, owner)
        low, high = torch.where(out, guess, 0), torch.where(out, math.inf, guess)
        rows = torch.arange(len(owner), device=owner.device)
        pace = torch.where(out, guess.new_tensor(1 + ratio), 1 - ratio)
        for step in count(1):
            radius = guess * pace**step
            inside = (radius[rows] <= limit * guess[rows]) & (radius[rows] > guess[rows] / 1e4)
            rows = rows[inside & (self.oracle.remaining[owner[rows]] > 0)]
            if len(rows) == 0:
                break
            there = self.crossed(theta[rows], radius[rows], owner[rows])
            high[rows[there]], low[rows[~there]] = radius[rows[there]], radius[rows[~there]]
            rows = rows[there != out[rows]]
        return low, high

    def bisect(self, theta: Tensor, low: Tensor, high: Tensor, tol: Tensor | float, owner: Tensor) -> Tensor:
        """Binary search between radii low (R,) and high (R,), which fools, until they are no more than `tol` apart.

        Returns:
            A radius that fools (R,), infinite where high was.
        """
        return self.narrow(lambda r, radius: self.points(theta[r], radius, owner[r]), low, high, tol, owner)

    def narrow(
        self,
        path: Callable[[Tensor, Tensor], Tensor],
        low: Tensor,
        high: Tensor,
        tol: Tensor | float,
        owner: Tensor,
    ) -> Tensor:
        """`bisect` along other paths than rays: ``path(rows, radius) -> points``, for some of the R."""
        low, high = low.clone(), high.clone()
        tol = torch.as_tensor(tol, dtype=high.dtype, device=high.device).expand_as(high)
        while True:
            middle = (low + high) / 2
            going = (high - low > tol) & (low < middle) & (middle < high) & (high < math.inf)
            rows = (going & (self.oracle.remaining[owner] > 0)).nonzero().squeeze(1)
            if len(rows) == 0:
                return high
            there = self.fooled(path(rows, middle[rows]), owner[rows])
            high[rows[there]], low[rows[~there]] = middle[rows[there]], middle[rows[~there]]

    def g(self, theta: Tensor, guess: Tensor, tol: Tensor | float, owner: Tensor, limit: float = 2.0) -> Tensor:
        """g(θ) to `tol` by local search and bisection (R,); infinite if rays do not fool up to `limit` · guess (R,)."""
        return self.bisect(theta, *self.bracket(theta, guess, owner, limit=limit), tol, owner)

    def signs(
        self, theta: Tensor, radius: Tensor, u: Tensor, beta: Tensor, owner: Tensor, quota: Tensor | None = None
    ) -> Tensor:
        """The sign of g(θ + βu) − g(θ) for directions u (R, n, ...), one query each (Cheng et al. 2020): (R, n).

        At the radius g(θ), the ray θ + βu is either still inside, so that g has grown, or already beyond the boundary,
        so that it has fallen. Of each ray the first `quota` (R,) directions are asked about, or all; the others, and
        those that cannot be paid, have sign 0.
        """
        n = u.shape[1]
        turn = torch.arange(n, device=owner.device).expand(len(owner), n)
        wanted = turn < (self.oracle.remaining[owner] if quota is None else quota)[:, None]
        wanted[wanted.clone()] = self.oracle.payable(owner[wanted.nonzero()[:, 0]])
        row = wanted.nonzero()[:, 0]
        moved = self.unit(theta[row] + per_image(beta[row], theta) * u[wanted])
        signs = torch.zeros_like(u[:, :, 0] if u.ndim == 3 else u.flatten(2)[:, :, 0])
        signs[wanted] = torch.where(self.crossed(moved, radius[row], owner[row]), -1, 1).to(u.dtype)
        return signs
