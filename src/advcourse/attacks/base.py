"""What all attacks share: one way to be called, one way to be watched."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor

from ..ascent import State
from ..contract import (
    Hyperparameters,
    Model,
    check_goal,
    check_images,
    check_model,
    evaluating,
    modules_of,
    private_generator,
)
from ..goals import Goal

S = TypeVar("S")


class Attack(Hyperparameters, ABC):
    """An attack is a frozen dataclass of hyper-parameters. Its class writes `climb`; checks and tidying up are here."""

    def __call__(
        self, model: Model, x: Tensor, y_or_goal: Tensor | Goal, *, generator: Generator | None = None
    ) -> Tensor:
        """Attack images x and return what was found.

        Args:
            model: maps images (N, ...) in [0, 1] to logits (N, K). A module is put in eval mode for the attack and
                left as it was; a function around a network is called as it is, whatever that network's mode.
            x: clean images (N, ...), floating point, in [0, 1].
            y_or_goal: labels (N,), int64, to get away from, or a goal such as `Targeted(t)`.
            generator: the source of all randomness; by default a private one seeded 0, so that calls repeat.

        Returns:
            The images found (N, ...), with the shape, dtype and device of x.

        Raises:
            ValueError: if images, labels or the model's answers are not as described; the message says what to do.
        """
        for state in self.iterates(model, x, y_or_goal, generator=generator):
            found = state.best
        return found

    def iterates(
        self, model: Model, x: Tensor, y_or_goal: Tensor | Goal, *, generator: Generator | None = None
    ) -> Iterator[State]:
        """The same computation, one `State` at a time. Arguments and errors are those of a call."""
        check_model(model)
        x, goal = prepared(x, y_or_goal)
        return watched(model, self.climb(model, x, goal, private_generator(generator, x)))

    @abstractmethod
    def climb(self, model: Any, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        """The attack itself, on checked inputs: yields states, runs without autograd, with the model in eval mode."""


def prepared(x: Tensor, y_or_goal: Tensor | Goal) -> tuple[Tensor, Goal]:
    """The images and the goal after checking them: copies, which the caller's later writes do not reach."""
    check_images(x)
    goal = check_goal(y_or_goal, x)
    with torch.inference_mode(False):
        return own_copy(x), goal[torch.arange(len(x), device=x.device)]


def own_copy(x: Tensor) -> Tensor:
    """A copy of images that nobody else writes to, contiguous: random numbers fill memory in order, and what a seed
    draws must not depend on the layout of what was passed."""
    return x.detach().clone(memory_format=torch.contiguous_format)


def watched(model: object, states: Iterator[S]) -> Iterator[S]:
    """The same states, each computed in eval mode and without autograd, which the caller has as before in between."""
    modules = modules_of(model)
    while True:
        with evaluating(modules), torch.inference_mode(False), torch.no_grad():
            state = next(states, None)
        if state is None:
            return
        yield state
