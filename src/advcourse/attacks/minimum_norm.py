"""What minimum-norm attacks report: the nearest adversarial example met so far, and how far away it is."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..ascent import State, Verdict


@dataclass(frozen=True)
class Nearest(State):
    """A moment of an attack that looks for the nearest adversarial example. `best` is that, or the clean image.

    Attributes:
        distance: L2 distance of `best` from the clean image (N,): 0 for images that were fooled from the start,
            infinity where nothing was found.
        search: to which of the attack's searches the iterate belongs, counted from 0.
    """

    distance: Tensor
    search: int = 0

    @classmethod
    def at_clean(cls, x: Tensor, verdict: Verdict) -> Self:
        """Step 0, at the clean images x."""
        state = replace(State.before(x, verdict), step=0)
        return cls(**vars(state), distance=torch.where(verdict.fooled, 0, torch.inf).to(x.dtype))

    def looked(self, rows: Tensor, points: Tensor, verdict: Verdict, distance: Tensor, search: int) -> Self:
        """The next state: images `rows` (R,) stand at `points` (R, ...), so far away from clean (R,)."""
        better = verdict.fooled & (distance < self.distance[rows])
        ever = Verdict(verdict.loss, verdict.fooled | self.success[rows])
        nearest = self.distance.index_copy(0, rows[better], distance[better].to(self.distance.dtype))
        return replace(self.met(rows, points, ever, better), distance=nearest, search=search)
