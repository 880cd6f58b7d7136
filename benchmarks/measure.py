"""Measuring an attack in units of the model: which passes it made, and how long those passes alone would have taken.

An attack is timed beside its *floor*: a bare loop of the same forward and backward passes on as many rows, and nothing
else. Time ÷ floor is what the library adds, on any machine. Contestants and floors take turns in one process, so a
machine that slows down slows all of them, and medians are taken over the rounds.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcourse.goals import Goal
from advcourse.threat import L2

Run = Callable[[Tensor, Tensor], Tensor]
"""An attack that is ready to go: images (N, ...) and labels (N,) to images (N, ...)."""

Batches = Sequence[tuple[Tensor, Tensor]]
"""Images and labels, one call each."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of the model on so many rows, and the backward passes through it."""

    rows: int
    backward: int = 0


Passes = tuple[Pass, ...]


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Pass]]:
    """Notes every pass of the model inside the block, in order."""
    passes: list[Pass] = []

    def forward(_: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        k = len(passes)
        passes.append(Pass(len(inputs[0])))
        if logits.requires_grad:
            logits.register_hook(partial(backward, k))

    def backward(k: int, _: Tensor) -> None:  # once for every gradient that comes back to the logits of pass k
        passes[k] = Pass(passes[k].rows, passes[k].backward + 1)

    handle = model.register_forward_hook(forward)
    try:
        yield passes
    finally:
        handle.remove()


class Witness:
    """Counts the queries that a model gets about each of the images x (N, ...), and notes when it was first fooled.

    A row is about the clean image that is nearest. That is certain as long as it is nearer than half the way from one
    clean image to another; rows for which it is not are counted in `doubtful`.

    Attributes:
        sent: queries so far (N,), int64.
        found: the queries that it took to fool the model at a point that was allowed (N,); infinite if it never was.
    """

    def __init__(self, x: Tensor, goal: Goal, allowed: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.x, self.goal, self.allowed = x, goal, allowed
        self.reach = torch.pdist(x.flatten(1)).min().item() / 2 if len(x) > 1 else math.inf
        self.sent = torch.zeros(len(x), dtype=torch.int64)
        self.found = torch.full((len(x),), math.inf)
        self.doubtful = 0

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        rows = inputs[0].detach()
        distance, owner = torch.cdist(rows.flatten(1), self.x.flatten(1)).min(1)
        self.doubtful += int((~(distance < self.reach)).sum())  # NaN too
        mine = F.one_hot(owner, len(self.x))
        turn = self.sent[owner] + mine.cumsum(0).gather(1, owner[:, None]).squeeze(1)
        hit = self.goal[owner].fooled(logits.argmax(1)) & self.allowed(rows, self.x[owner])
        self.found.scatter_reduce_(0, owner[hit], turn[hit].to(self.found.dtype), "amin")
        self.sent += mine.sum(0)


class Approach:
    """Watches how near to one image x (1, ...) an attack comes, and for how many queries. Every row is about it.

    Attributes:
        sent: queries so far.
        nearest: the L2 distance of the nearest of the first so many rows, for each of `budgets`, that fooled the model
            and was allowed (B,); infinite if none was.
    """

    def __init__(
        self, x: Tensor, goal: Goal, allowed: Callable[[Tensor, Tensor], Tensor], budgets: Sequence[int]
    ) -> None:
        self.x, self.goal, self.allowed, self.budgets = x, goal, allowed, budgets
        self.sent = 0
        self.nearest = torch.full((len(budgets),), math.inf, dtype=x.dtype)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        rows = inputs[0].detach()
        hit = self.goal.fooled(logits.argmax(1)) & self.allowed(rows, self.x)
        distance = L2.norm(rows - self.x).where(hit, torch.inf)
        for k, budget in enumerate(self.budgets):
            if budget > self.sent:
                self.nearest[k] = torch.minimum(self.nearest[k], distance[: budget - self.sent].amin())
        self.sent += len(rows)


class Enough(Exception):
    """Ends an attack from within the model."""


def limited(run: Run, model: nn.Module, budget: int) -> Callable[[Tensor, Tensor], None]:
    """The run, ended when it sends another row after the budget of all its images together has been sent."""

    def until(x: Tensor, y: Tensor) -> None:
        left = budget * len(x)

        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal left
            if left <= 0:
                raise Enough
            left -= len(inputs[0])

        handle = model.register_forward_pre_hook(count)
        try:
            run(x, y)
        except Enough:
            pass
        finally:
            handle.remove()

    return until


class Floor:
    """The bare loop: for each pass a forward, and the gradient of the summed cross-entropy with respect to the input
    as often as there were backward passes. It starts from images like those that are attacked."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, passes: Passes) -> None:
        rows = {one.rows: torch.arange(one.rows) % len(x) for one in passes}
        self.model, self.passes = model, passes
        self.batches = {n: (x[row].contiguous(), y[row]) for n, row in rows.items()}

    def __call__(self) -> None:
        for one in self.passes:
            x, y = self.batches[one.rows]
            if not one.backward:
                with torch.no_grad():
                    self.model(x)
                continue
            point = x.detach().requires_grad_()
            loss = F.cross_entropy(self.model(point), y, reduction="sum")
            for left in reversed(range(one.backward)):
                torch.autograd.grad(loss, point, retain_graph=left > 0)


@dataclass(frozen=True)
class Entry:
    """A contestant: an attack on its own copy of the model, and the passes it makes on each of the batches."""

    run: Callable[[Tensor, Tensor], object]
    passes: tuple[Passes, ...]


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds, for all batches together.

    Attributes:
        cpu: process CPU time in seconds.
        wall: seconds on the clock.
        own: CPU time ÷ that of the floor of its own passes.
        nominal: CPU time ÷ that of the nominal passes, which are the same for every contestant.
        reference: CPU time ÷ that of the first contestant in the same round.
        rounds: how many rounds there was time for.
    """

    cpu: float
    wall: float
    own: float
    nominal: float
    reference: float
    rounds: int


def race(
    model: nn.Module,
    entries: Mapping[str, Entry],
    batches: Batches,
    nominal: tuple[Passes, ...],
    rounds: int,
    seconds: float = math.inf,
) -> dict[str, Timing]:
    """Time contestants and floors in turn.

    Args:
        model: what the floors run on.
        entries: the contestants; the others are compared with the first.
        batches: the images and labels that each of them attacks in its turn, one call a batch.
        nominal: for each batch, the passes that count as the attack itself.
        rounds: how many turns each gets, or up to ten times as many while a round takes less than a second. The order
            rotates from round to round.
        seconds: who has used more CPU time than this sits the remaining rounds out.
    """
    jobs: dict[object, list[Callable[[], object]]] = {}
    for passes in {nominal, *(entry.passes for entry in entries.values())}:  # most libraries share a floor
        jobs[passes] = [Floor(model, x, y, one) for (x, y), one in zip(batches, passes, strict=True)]
        for (x, y), one in zip(batches, passes, strict=True):
            # The first pass of a kind sets things up; contestants had theirs when they were recorded.
            Floor(model, x, y, tuple(dict.fromkeys(one)))()
    for name, entry in entries.items():
        jobs[name] = [partial(entry.run, x, y) for x, y in batches]

    times: dict[object, list[np.ndarray]] = {key: [] for key in jobs}  # (cpu, wall), one a round
    begin = time.perf_counter()
    for r in range(10 * rounds):
        turns = [key for key in jobs if r == 0 or sum(cpu for cpu, _ in times[key]) < seconds]
        if not turns or (r >= rounds and time.perf_counter() - begin > rounds):
            break
        gc.collect()
        first = 3 * r % len(turns)
        for key in turns[first:] + turns[:first]:
            times[key].append(np.sum([_stopwatch(call) for call in jobs[key]], axis=0))

    def ratio(name: str, to: object) -> float:  # of CPU times in the same round
        return float(np.median([mine[0] / its[0] for mine, its in zip(times[name], times[to], strict=False)]))

    def timing(name: str, entry: Entry) -> Timing:
        cpu, wall = np.median(times[name], axis=0).tolist()
        ratios = ratio(name, entry.passes), ratio(name, nominal), ratio(name, next(iter(entries)))
        return Timing(cpu, wall, *ratios, len(times[name]))

    return {name: timing(name, entry) for name, entry in entries.items()}


def seed(number: int = 0) -> None:
    """The same draws in every run: most libraries draw from the global generators."""
    torch.default_generator.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002


def _stopwatch(call: Callable[[], object]) -> np.ndarray:
    """CPU and wall seconds of one call."""
    seed()
    begin = time.process_time(), time.perf_counter()
    call()
    return np.subtract((time.process_time(), time.perf_counter()), begin)
