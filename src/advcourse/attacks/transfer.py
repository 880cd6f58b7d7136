"""Transfer attacks: a climb on a surrogate whose gradient has been made to generalise."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Generator, Tensor

from ..ascent import State, ascend
from ..contract import Model, check_ball, check_loss, check_number
from ..goals import Goal, Loss, cross_entropy
from ..gradients import (
    RAP,
    Admix,
    Context,
    InputDiversity,
    Momentum,
    Nesterov,
    Normalization,
    Onion,
    Part,
    ScaleInvariance,
    TranslationKernel,
    VarianceTuning,
)
from ..threat import Ball
from .base import Attack

LETTERS: dict[str, type[Part]] = {
    "M": Momentum,
    "N": Nesterov,
    "T": TranslationKernel,
    "V": VarianceTuning,
    "S": ScaleInvariance,
    "A": Admix,
    "D": InputDiversity,
}
"""The parts that a letter of a name stands for, from the outermost to the innermost."""


@dataclass(frozen=True, repr=False)
class Transfer(Attack):
    """Iterated steepest ascent on a surrogate, its gradient taken through parts (I-FGSM, if there are none).

    ::

        x_{k+1} = Π(x_k + step_size · steepest(part_1(part_2(… ∇ℓ))(x_k)))

    It crafts: every image makes every step, whether or not the surrogate is fooled, and the last iterate is returned.
    An attack that stopped where the surrogate gives in would end just beyond the surrogate's boundary, and that is not
    the target's. Without parts it costs `steps` passes forward and backward and nothing else.

    Args:
        ball: where to stay.
        parts: around the plain gradient, the first outermost; see `Onion` and `Transfer.named`.
        steps: gradient steps.
        step_size: length of a step in the ball's norm; eps / 10 by default, however many there are.
        loss: what to climb, larger when closer to fooled.
        batch_size: rows in one pass of the model, copies included; it bounds the memory and changes no result but by
            rounding. On a processor 128 are faster than more, on a GPU more are.

    Example:
        >>> import torch
        >>> from advcourse import data, models
        >>> from advcourse.evaluation import correct
        >>> from advcourse.threat import Linf
        >>> x, y = data.fashion_mnist("test", n=20)
        >>> attack = Transfer.named("MI", Linf(0.1))
        >>> attack.parts
        (Momentum(decay=1.0), Normalization())
        >>> x_adv = attack(models.load("resnet"), x, y)
        >>> bool(correct(models.load("cnn"), x_adv, y).sum() < correct(models.load("cnn"), x, y).sum())
        True
    """

    ball: Ball
    parts: tuple[Part, ...] = ()
    steps: int = 10
    step_size: float | None = None
    loss: Loss = cross_entropy
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_ball(self.ball)
        check_loss(self.loss)
        check_number("steps", self.steps, 1)
        check_number("batch_size", self.batch_size, 1)
        if self.step_size is not None:
            check_number("step_size", self.step_size, 0.0)
        if not isinstance(self.parts, tuple) or not all(isinstance(part, Part) for part in self.parts):
            raise ValueError(
                f"parts must be a tuple of parts such as (Momentum(), Normalization()), got {self.parts!r}"
            )

    @classmethod
    def named(cls, name: str, ball: Ball, *, steps: int = 10, **settings: Any) -> Self:
        """The attack that the literature calls by this name: letters, then I, then +RAP or +RAP-LS if wanted.

        ======  =====================================================================
        letter  part
        ======  =====================================================================
        M, N    `Momentum` or `Nesterov`, either with `Normalization` within
        T       `TranslationKernel`
        V       `VarianceTuning`
        S, A    `ScaleInvariance` or `Admix`, which holds the scales
        D       `InputDiversity`
        +RAP    `RAP` with the ball's eps, between T and V; +RAP-LS after a quarter of the steps
        ======  =====================================================================

        Their order in the name does not matter; in the attack it is that of this table, from the outermost.

        Raises:
            ValueError: for a name that is none.

        Example:
            >>> from advcourse.threat import Linf
            >>> for part in Transfer.named("MTDI+RAP-LS", Linf(0.1), steps=400).parts:
            ...     print(part)
            Momentum(decay=1.0)
            Normalization()
            TranslationKernel(size=5, spread=3.0)
            RAP(eps=0.1, steps=8, step_size=None, start=100, loss=cross_entropy)
            InputDiversity(p=0.7, least=0.9)
        """
        match = re.fullmatch(r"([A-Z]*)I(\+RAP|\+RAP-LS)?", name)
        letters = match[1] if match else ""
        if match is None or set(letters) - set(LETTERS) or len(set(letters)) < len(letters):
            raise ValueError(
                f"there is no attack {name!r}: a name is some of the letters {', '.join(LETTERS)}, each once, then I, "
                "then nothing, +RAP or +RAP-LS, as in I, MI, MTDI+RAP-LS"
            )
        for one, other in ("M", "N"), ("S", "A"):
            if one in letters and other in letters:
                raise ValueError(f"{name}: {one} and {other} exclude each other, {other} does what {one} does")
        found: dict[str, tuple[Part, ...]] = {letter: (LETTERS[letter](),) for letter in letters}
        for letter in set("MN") & set(letters):
            found[letter] += (Normalization(),)
        if match[2]:
            found["R"] = (RAP(ball.eps, start=steps // 4 if match[2] == "+RAP-LS" else 0),)
        parts = tuple(part for letter in "MNTRVSAD" for part in found.get(letter, ()))
        return cls(ball, parts, steps, **settings)

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        step_size = self.ball.eps / 10 if self.step_size is None else self.step_size
        context = Context(model, self.loss, goal, self.ball, x, step_size, generator, self.batch_size)
        return ascend(Onion(self.parts, context), self.ball, x, self.steps, step_size)
