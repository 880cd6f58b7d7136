"""A bar that moves while attacks climb."""

import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer
from torch import Generator, Tensor
from tqdm import tqdm

from ..ascent import State
from ..attacks import Attack
from ..contract import Model
from ..goals import Goal


@dataclass(frozen=True, repr=False)
class Watched(Attack):
    """An attack whose every state moves a bar; it writes itself as the attack it is."""

    name: str
    attack: Attack
    bar: Any

    def __repr__(self) -> str:
        return repr(self.attack)

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        climbs = math.prod(getattr(self.attack, name, 1) or 1 for name in ("restarts", "targets", "search_steps"))
        self.bar.set_description_str(self.name, refresh=False)
        self.bar.set_postfix_str("", refresh=False)
        self.bar.reset(total=climbs * (getattr(self.attack, "steps", 1) + 1))  # at most
        for state in self.attack.iterates(model, x, goal, generator=generator):
            self.bar.set_postfix_str(f"{int(state.success.sum())} of {len(x)} images broken", refresh=False)
            self.bar.update()
            yield state


@contextmanager
def watched(attacks: Mapping[str, Attack]) -> Iterator[dict[str, Attack]]:
    """The same attacks behind one bar on stderr, if that is a terminal; their warnings come out once, below it."""
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        with tqdm(unit="step", leave=False, disable=None, file=sys.stderr) as bar:
            yield {name: Watched(name, attack, bar) for name, attack in attacks.items()}
    for text in dict.fromkeys(str(warning.message) for warning in met):
        typer.echo(f"warning: {text}", err=True)
