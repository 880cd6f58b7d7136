"""The Square attack: random search that never leaves the surface of the ball."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..ascent import State
from ..contract import check_loss, check_number
from ..goals import Goal, Loss, Untargeted, cross_entropy, margin
from ..gradients import Scored
from ..oracles import Scores
from ..threat import L2, Ball, Linf
from .query import QueryAttack, at_clean


@dataclass(frozen=True, repr=False)
class Square(QueryAttack):
    """The Square attack (Andriushchenko et al. 2020, algorithms 1 to 3): change a square, keep it if the loss rose.

    No gradient is estimated. In Linf every feature is at ±eps throughout; a proposal gives a square of random position
    one random sign per channel. In L2 it moves the length that one square has, and what is left of eps, to another one,
    as a bump whose halves have opposite signs. Squares shrink on a schedule from a share `p` of the image to 1/512 of
    that, stretched over the steps that the budget allows.

    Each proposal costs one query, and so does the clean image. An image is done as soon as it is fooled. Two things
    differ from the authors' program: squares may touch the last row and column, which theirs never do; and in L2 every
    image has squares of its own. Input that is no image is taken as a line, or a volume, of features (Linf only).

    Args:
        ball: where to stay, `Linf(eps)` or `L2(eps)`.
        steps: proposals, at most.
        p: share of the image in the first squares; the authors' 0.05 in Linf and 0.1 in L2 by default. They take 0.3 to
            0.8 where a network is robust.
        loss: what to climb, larger when closer to fooled; the margin by default, or the cross-entropy when targeted.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("test", n=20)
        >>> oracle = Scores(models.load("cnn"), budget=300)
        >>> *_, last = Square(Linf(0.1)).iterates(oracle, x, y)
        >>> last.success.float().mean().item() > 0.8, oracle.queries.max().item() <= 300
        (True, True)
    """

    ball: Ball
    steps: int = 10_000
    p: float | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Linf | L2):
            raise ValueError(f"ball must be Linf(eps) or L2(eps), got {self.ball!r}")
        check_number("steps", self.steps, 1)
        if self.p is not None:
            check_number("p", self.p, 0.0)
            if not 0 < self.p <= 1:
                raise ValueError(f"p must be a share of the image, in (0, 1], got {self.p!r}")
        if self.loss is not None:
            check_loss(self.loss)

    def climb(self, oracle: Scores, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        loss = self.loss or (margin if isinstance(goal, Untargeted) else cross_entropy)
        judge = Scored(oracle, loss, goal)
        if isinstance(self.ball, L2) and (x.ndim != 4 or min(x.shape[2:]) < 3):
            raise ValueError(f"Square in L2 needs images (N, C, H, W) of 3 x 3 or more, got {tuple(x.shape)}")
        state = at_clean(judge, x)
        yield state
        walk = Signs(self.ball, generator) if isinstance(self.ball, Linf) else Bumps(self.ball, generator)
        clean = x[:, None] if x.ndim == 2 else x
        steps = min(self.steps, int(oracle.remaining.max()))
        for step in range(steps):
            rows = (~state.success & (oracle.remaining > 0)).nonzero().squeeze(1)
            if len(rows) == 0:
                return
            center, best = clean[rows], state.best.view_as(clean)[rows]
            if step:
                proposal = walk.change(center, best, share(self.p or walk.p, step - 1, steps))
            else:
                proposal = walk.start(center)
            proposal = proposal.view(len(rows), *x.shape[1:])
            met = judge(proposal, rows)
            kept = (met.fooled | (met.loss > state.best_loss[rows])).nonzero().squeeze(1)
            if len(kept):
                state = state.met(rows[kept], proposal[kept], met[kept], better=torch.ones_like(kept))
            else:
                state = replace(state, step=state.step + 1)
            yield state


def share(p: float, step: int, steps: int) -> float:
    """The share of the image in a square at a step out of so many: halved nine times, the sooner the more often.

    Example:
        >>> [share(0.8, step, 10_000) for step in (0, 10, 11, 100, 9_999)]
        [0.8, 0.8, 0.4, 0.2, 0.0015625]
    """
    when = int(step / steps * 10_000)
    return p / 2 ** sum(when > turn for turn in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


def window(like: Tensor, side: int, generator: Generator) -> Tensor:
    """Squares of that side at random places in images like these (R, C, ...): bool (R, 1, ...)."""
    inside = torch.ones_like(like[:, :1], dtype=torch.bool)
    for dim in range(2, like.ndim):
        size = like.shape[dim]
        place = torch.arange(size, device=like.device)
        first = torch.randint(size - min(side, size) + 1, (len(like), 1), generator=generator, device=like.device)
        line = (place >= first) & (place < first + side)
        inside = inside & line.view(len(like), *[size if d == dim else 1 for d in range(1, like.ndim)])
    return inside


@dataclass(frozen=True)
class Signs:
    """Linf: every feature at ±eps, one sign for each channel of a square."""

    ball: Ball
    generator: Generator
    p: ClassVar[float] = 0.05

    def coins(self, *shape: int, like: Tensor) -> Tensor:
        return torch.randint(2, shape, generator=self.generator, device=like.device)

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The images with all features at -eps, and all at +eps, as far as the box lets them."""
        return self.ball.project(x - self.ball.eps, x), self.ball.project(x + self.ball.eps, x)

    def start(self, x: Tensor) -> Tensor:
        """Stripes: one sign for each channel and column of x (R, C, ..., W)."""
        low, high = self.ends(x)
        return torch.where(self.coins(*x.shape[:2], *[1] * (x.ndim - 3), x.shape[-1], like=x) > 0, high, low)

    def change(self, x: Tensor, best: Tensor, p: float) -> Tensor:
        """`best` (R, C, ...) with one square changed."""
        size = x[0, 0].numel()
        side = max(1, min(round((p * size) ** (1 / (x.ndim - 2))), min(x.shape[2:]) - 1))
        square, ends = window(x, side, self.generator), self.ends(x)
        changes = torch.stack([(square & (end != best)).flatten(2).any(2) for end in ends], 2)
        coins = self.coins(*x.shape[:2], like=x)
        for _ in range(50 if self.ball.eps else 0):  # a square that changes nothing would waste a query
            idle = ~changes.gather(2, coins[:, :, None]).any(1)
            if not idle.any():
                break
            coins = torch.where(idle, self.coins(*coins.shape, like=x), coins)
        signs = coins.view(*coins.shape, *[1] * (x.ndim - 2))
        return torch.where(square, torch.where(signs > 0, ends[1], ends[0]), best)


@dataclass(frozen=True)
class Bumps:
    """L2: length eps throughout, in bumps whose halves have opposite signs."""

    ball: Ball
    generator: Generator
    p: ClassVar[float] = 0.1

    def bumps(self, x: Tensor, side: int) -> Tensor:
        """A bump for each channel of images like x (R, C, H, W), upright or lying, of either sign: (R, C, s, s)."""
        coins = torch.rand(2, *x.shape[:2], 1, 1, generator=self.generator, device=x.device, dtype=x.dtype)
        upright = bump(side).to(x)
        return torch.where(coins[0, :, :1] < 0.5, upright, upright.T) * (2 * coins[1] - 1).sign()

    def start(self, x: Tensor) -> Tensor:
        """A bump in each of some five by five tiles of x."""
        height, width = x.shape[2:]
        side = min(max(3, height // 5), width)
        delta = torch.zeros_like(x)
        for top in range(height % side // 2, height - side + 1, side):
            for left in range(width % side // 2, width - side + 1, side):
                delta[:, :, top : top + side, left : left + side] = self.bumps(x, side)
        return (x + self.ball.eps * L2.steepest(delta)).clamp(0, 1)

    def change(self, x: Tensor, best: Tensor, p: float) -> Tensor:
        """`best` (R, C, H, W) with the length of one square moved to another (algorithm 3)."""
        side = max(3, round((p * x[0, 0].numel()) ** 0.5))
        side = min(side + 1 - side % 2, *x.shape[2:])
        here, there = window(x, side, self.generator), window(x, side, self.generator)
        delta = best - x
        used, total = length(delta.where(here | there, 0)), delta.square().sum((1, 2, 3), keepdim=True)
        bumps = torch.zeros_like(x).masked_scatter(here, self.bumps(x, side))
        # A bump that meets its own negative is turned over: what is left of it must be more than noise.
        old, noise = delta.where(here, 0), torch.finfo(x.dtype).eps ** 0.5
        fresh = bumps + old / (length(old) + noise)
        left = (self.ball.eps**2 - total).clamp_min(0) / x.shape[1]
        fresh *= (left + used.square()).sqrt() / length(fresh)
        delta = torch.where(here, fresh, delta.where(~there, 0))
        return (x + self.ball.eps * L2.steepest(delta)).clamp(0, 1)


def length(delta: Tensor) -> Tensor:
    """The L2 length of each channel of (R, C, H, W): (R, C, 1, 1)."""
    return delta.square().sum((2, 3), keepdim=True).sqrt()


@cache
def bump(side: int) -> Tensor:
    """Two peaks side by side, one up and one down, of L2 length 1 together (section 3.4): (side, side)."""
    halves = []
    for sign, height in (1, side // 2), (-1, side - side // 2):
        rows, columns = torch.arange(height), torch.arange(side)
        rings = torch.maximum((rows - height // 2).abs()[:, None], (columns - side // 2).abs())
        tails = (1 / torch.arange(1, side // 2 + 2).double().square()).flip(0).cumsum(0).flip(0)
        peak = tails[rings]
        halves.append(sign * peak / peak.norm())
    both = torch.cat(halves)
    return both / both.norm()
