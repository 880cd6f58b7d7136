"""The attack of Carlini & Wagner: distance and margin in one objective, their balance found by bisection."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from ..ascent import State, Verdict, warn_if_flat
from ..contract import Model, check_number
from ..goals import Goal, margin
from ..gradients import Exact
from ..threat import L2, per_image
from .base import Attack
from .minimum_norm import Nearest


@dataclass(frozen=True, repr=False)
class CarliniWagner(Attack):
    """The L2 attack of Carlini & Wagner (2017, sections V and VI): the nearest image with a margin of `confidence`.

    Adam minimises, over v, ::

        |x(v) − x_0|² + c · max(confidence − margin(x(v)), 0),    x(v) = (tanh(v) + 1) / 2

    where tanh keeps x(v) inside the box. Every image has a c of its own. It begins at `initial_c`; a search that
    succeeds takes it down, half-way to the largest value that failed, and one that fails takes it up, half-way to the
    smallest that succeeded or tenfold.

    Every search begins at the clean image, whose slope is taken once for all of them. So the attack costs one pass
    forward and backward for each image, and then in each search at most ``steps − 1`` forward and backward and one
    forward. The defaults are the authors', 90,000 passes at most. With 1,000 steps the distances are nearly the same;
    with 100 the step size must be larger, 0.05 say, for pixels that are 0 or 1 begin where tanh is all but flat.

    Adam's first step moves every feature alike, by up to step_size / 2, whatever c is. Where the boundary is nearer
    than that, every c succeeds, so the bisection goes to 0, and the distance comes out too large; a smaller `step_size`
    or a larger `initial_c` gets nearer.

    An image leaves a search that no longer pays (`abort_early`) by itself; in the authors' program the batch leaves as
    one. An image that is misclassified from the start is done at distance 0, whatever its margin.

    Args:
        steps: Adam steps of one search.
        search_steps: searches.
        step_size: Adam's learning rate, in the space of v.
        initial_c: the weight of the margin in the first search.
        confidence: κ, the margin (in logits) that counts as success.
        abort_early: end an image's search when its objective has not fallen by 0.01 % within a tenth of the `steps`.
        batch_size: images in one pass of the model; it bounds the memory and changes no result but by rounding.

    Example:
        >>> from advcourse import data, models
        >>> x, y = data.fashion_mnist("test", n=10)
        >>> model = models.load("cnn")
        >>> *_, last = CarliniWagner(100, search_steps=4, step_size=0.1, initial_c=1.0).iterates(model, x, y)
        >>> last.search, bool(last.success.all()), bool(last.distance.median() < 0.7)
        (3, True, True)
    """

    steps: int = 10_000
    search_steps: int = 9
    step_size: float = 0.01
    initial_c: float = 1e-3
    confidence: float = 0.0
    abort_early: bool = True
    batch_size: int = 512

    def __post_init__(self) -> None:
        for name, least in ("steps", 1), ("search_steps", 1), ("batch_size", 1), ("confidence", 0.0):
            check_number(name, getattr(self, name), least)
        for name in "step_size", "initial_c":
            check_number(name, getattr(self, name), 0.0)
        if self.initial_c == 0:
            raise ValueError("initial_c must be positive: ten times nothing stays nothing")

    def climb(self, model: Model, x: Tensor, goal: Goal, generator: Generator) -> Iterator[State]:
        gradient = Exact(model, partial(margin, kappa=self.confidence), goal, self.batch_size)
        clean = gradient(x, torch.arange(len(x), device=x.device))
        state = Nearest.at_clean(x, Verdict(self.initial_c * (clean.loss - self.confidence), clean.fooled))
        yield state
        warn_if_flat(clean, len(x), 0)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        window = max(1, self.steps // 10)
        met: Verdict
        c = wide.new_full((len(x),), self.initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for search in range(self.search_steps):
            hit = torch.zeros_like(clean.fooled)
            rows = (~clean.fooled).nonzero().squeeze(1)
            slope, center, last = clean[rows], wide[rows], c[rows] * (self.confidence - clean.loss[rows])
            v = ((2 * center - 1) * 0.999999).atanh()  # without the factor it is infinite at 0 and 1
            image, mean, square = (v.tanh() + 1) / 2, torch.zeros_like(v), torch.zeros_like(v)
            for step in range(1, self.steps + 1):
                if len(rows) == 0:
                    break
                descent = 2 * (image - center) - per_image(c[rows], image) * slope.gradient
                descent *= 2 * image * (1 - image)  # dx/dv
                mean.lerp_(descent, 0.1)
                square.lerp_(descent.square(), 0.001)
                rate = self.step_size / (1 - 0.9**step)
                v -= rate * mean / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
                image = (v.tanh() + 1) / 2
                points = image.to(x.dtype)
                if step < self.steps:
                    met = slope = gradient(points, rows)
                else:
                    met = gradient.judge(points, rows)
                distance = L2.norm(points - center)
                objective = distance.square() + c[rows] * (self.confidence - met.loss)
                found = met.fooled & (met.loss >= self.confidence)
                hit[rows] |= found
                state = state.looked(rows, points, Verdict(-objective, found), distance, search)
                yield state
                if self.abort_early and step % window == 0:
                    pays = objective <= 0.9999 * last
                    rows, slope, last = rows[pays], slope[pays], objective[pays]
                    v, image, mean, square, center = (part[pays] for part in (v, image, mean, square, center))
            low, high = torch.where(hit, low, low.maximum(c)), torch.where(hit, high.minimum(c), high)
            c = torch.where(high < torch.inf, (low + high) / 2, (10 * c).clamp(max=1e10))
