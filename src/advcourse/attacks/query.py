"""What attacks that may only ask have in common: an oracle, and states that say what they have cost."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..ascent import Judge, State
from ..contract import Model, private_generator, warn
from ..goals import Goal
from ..oracles import Oracle, Scores
from ..threat import L2
from .base import Attack, prepared, watched


@dataclass(frozen=True)
class Queried(State):
    """A moment of an attack on an oracle.

    Attributes:
        distance: how far `best` is from the clean image (N,), in the norm of the attack's ball, in L2 if it has none; 0
            for images that were fooled from the start, infinity where nothing was found.
        queries: what each image has cost so far (N,), int64.
    """

    distance: Tensor
    queries: Tensor


class BudgetTooSmall(UserWarning):
    """The budget pays for a look at the clean images and for nothing else: it says nothing about robustness."""


class QueryAttack(Attack):
    """An attack that sees a model through an oracle. Its class writes `climb`, which may rely on one query per image.

    It goes on until the image is fooled, its own steps are over, or the oracle's budget does not pay for another round.
    `BudgetTooSmall` warns if it does not pay for the first one.
    """

    window: ClassVar[type[Oracle]] = Scores
    """What it needs to be told."""

    def __call__(
        self, oracle: Oracle | Model, x: Tensor, y_or_goal: Tensor | Goal, *, generator: Generator | None = None
    ) -> Tensor:
        """Attack images x and return what was found.

        Args:
            oracle: `Scores` or `Labels` around a target, as the attack demands. Its ledger begins anew. A bare target
                is asked without a budget.
            x: clean images (N, ...), floating point, in [0, 1].
            y_or_goal: labels (N,), int64, to get away from, or a goal such as `Targeted(t)`.
            generator: the source of all randomness; by default a private one seeded 0, so that calls repeat.

        Returns:
            The images found (N, ...), with the shape, dtype and device of x. Those that were misclassified from the
            start come back as they were, for one query each.

        Raises:
            ValueError: if images, labels or the target's answers are not as described; the message says what to do.
        """
        return super().__call__(oracle, x, y_or_goal, generator=generator)  # type: ignore[arg-type]

    def iterates(
        self, oracle: Oracle | Model, x: Tensor, y_or_goal: Tensor | Goal, *, generator: Generator | None = None
    ) -> Iterator[Queried]:
        """The same computation, one `Queried` state at a time. Arguments and errors are those of a call."""
        asked, x, goal = self.opened(oracle, x, y_or_goal)
        return watched(asked, self._priced(asked, x, self.climb(asked, x, goal, private_generator(generator, x))))

    def opened(self, oracle: Oracle | Model, x: Tensor, y_or_goal: Tensor | Goal) -> tuple[Oracle, Tensor, Goal]:
        """The oracle with a new ledger, and images and goal, all checked."""
        asked = oracle if isinstance(oracle, Oracle) else self.window(oracle)
        if not isinstance(asked, self.window):
            raise ValueError(f"{type(self).__name__} needs {self.window.__name__}(target, budget=...), got {oracle!r}")
        x, goal = prepared(x, y_or_goal)
        asked.begin(len(x), x.device)
        return asked, x, goal

    def warn_if_untried(self, oracle: Oracle, last: State) -> None:
        """Issue a `BudgetTooSmall` warning if there was something to attack, and no image could pay for it."""
        if oracle.budget is not None and oracle.queries.max() <= 1 and not last.success.all():
            warn(
                f"a budget of {oracle.budget} does not pay for one step of {self!r}: no image was attacked",
                BudgetTooSmall,
            )

    def _priced(self, oracle: Oracle, x: Tensor, states: Iterator[State]) -> Iterator[Queried]:
        norm = getattr(self, "ball", L2).norm
        if oracle.budget == 0:  # nothing can be told, not even about the clean images
            states = iter([replace(State.before(x), step=0)])
        best = None
        for state in states:
            if state.best is not best:  # a random search often stays where it is
                best, distance = state.best, torch.where(state.success, norm(state.best - x), torch.inf)
            yield Queried(**vars(state), distance=distance, queries=oracle.queries)
        self.warn_if_untried(oracle, state)


def at_clean(judge: Judge, x: Tensor) -> State:
    """Step 0 of an attack that begins by asking about the clean images x, one query each."""
    return replace(State.before(x, judge(x, torch.arange(len(x), device=x.device))), step=0)
