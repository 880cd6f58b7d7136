"""Attacks that are told labels: same model, same images, same queries. How near they come, and time per query."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from advcourse import models

from .harness import BATCHED, Asking, aligned, contest, images
from .libraries import Task
from .measure import Approach, Entry, Run, limited, recorded, seed

TITLE = "Attacks that are told labels: distance for queries, and time"

TASKS = [
    Task("Sign-OPT", steps=1000, samples=200, budget=10_000),
    Task("OPT", steps=1000, budget=10_000),
    Task("HopSkipJump", steps=64, budget=10_000),
    Task("Boundary", steps=25_000, budget=10_000),
]
BUDGETS = 1000, 2000, 4000, 10_000
SKIPPED = 200  # test images that other parts look at
JUDGED = 50  # images after them
TIMED = 1000  # queries an image when time is taken
SINGLY = {"ART": 4}  # libraries that attack one image at a time, and how many of them are timed


@dataclass(frozen=True)
class Quartiles:
    """Of the distances of all judged images after so many queries; infinite for those that nothing was found for."""

    queries: int
    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class Near(Asking):
    """Distances are those of the nearest points sent, on the judged images, each of which was attacked alone."""

    mean: float = 0.0  # queries sent for a judged image; less than the budget if the attack ends by itself
    distances: tuple[Quartiles, ...] = ()

    def pace(self, ours: "Near") -> float:
        """CPU time of a query ÷ that of a query of `ours`, which is the first in the race."""
        return self.timing.reference * ours.sent / self.sent if self.timing else float("nan")


def cases(tasks: list[Task], args: argparse.Namespace) -> list[tuple[str, Callable[[], list[Near]]]]:
    return [
        (f"{name} {task.name}", partial(compare, Near(name, task, args.batch[0]), args))
        for name in args.models
        for task in tasks
    ]


def compare(blank: Near, args: argparse.Namespace) -> list[Near]:
    """One task for all libraries: attack the judged images one at a time under observation, then race."""
    model, batch, judged = models.load(blank.model), blank.batch, min(args.judged, JUDGED)
    x, y = (part[SKIPPED:] for part in images(model, SKIPPED + max(batch, judged)))
    blank = replace(blank, images=batch, judged=judged)
    return contest(blank, model, [(x[:batch], y[:batch])], lambda _: BATCHED, partial(first_run, x, y), args)


def first_run(x: Tensor, y: Tensor, row: Near, run: Run, own: nn.Module) -> tuple[Near, Entry]:
    row = observed(x[: row.judged], y[: row.judged], row, run, own)
    row = replace(row, images=min(SINGLY.get(row.library, row.batch), row.batch))
    size = 1 if row.library in SINGLY else row.batch
    timed = limited(run, own, min(TIMED, row.task.budget or TIMED))

    def turn(x: Tensor, y: Tensor) -> None:
        for part in zip(x[: row.images].split(size), y[: row.images].split(size), strict=True):
            timed(*part)

    seed()
    with recorded(own) as passes:
        turn(x[: row.batch], y[: row.batch])
    return replace(row, sent=sum(one.rows for one in passes)), Entry(turn, (tuple(passes),))


def observed(x: Tensor, y: Tensor, row: Near, run: Run, own: nn.Module) -> Near:
    """Attack images one at a time, so that there is no doubt whose a query is, until each has had its budget."""
    most = row.task.budget or max(BUDGETS)
    budgets = [*(budget for budget in BUDGETS if budget < most), most]
    attack = limited(run, own, most)
    approaches, broken = [], Counter[str]()
    for i in range(len(x)):
        approach = Approach(x[i : i + 1], row.task.goal(y[i : i + 1]), row.task.allowed, budgets)
        handle = own.register_forward_hook(approach)
        seed(i)
        try:
            attack(x[i : i + 1], y[i : i + 1])
        except Exception as error:  # what was sent until then counts
            broken[type(error).__name__] += 1
        finally:
            handle.remove()
        approaches.append(approach)
    nearest = torch.stack([approach.nearest for approach in approaches])
    # Between two distances the quantile is one of them, and no mean: one may be infinite.
    quartiles = nearest.quantile(torch.tensor([0.25, 0.5, 0.75]), 0, interpolation="nearest").T.tolist()
    return replace(
        row,
        mean=sum(approach.sent for approach in approaches) / len(x),
        distances=tuple(Quartiles(budget, *three) for budget, three in zip(budgets, quartiles, strict=True)),
        remark=", ".join(f"{count} of {len(x)} images end in {name}" for name, count in broken.items()),
    )


def report(rows: Sequence[Near]) -> list[str]:
    lines = ["## Where advcourse is not there", ""]
    lines += [f"- {line}" for line in shortfalls(rows)] or ["- nowhere: every aim below is met"]
    for name in dict.fromkeys(row.model for row in rows):
        some = [row for row in rows if row.model == name and row.remark != "no such attack"]
        lines += ["", f"## {name}: L2, untargeted, {some[0].judged} images", "", *table(some)]
    return lines


def table(rows: Sequence[Near]) -> list[str]:
    """One model: a line for each attack of each library."""
    named = [replace(row, library=f"{row.library} {row.task.name}") for row in rows]
    first = next((row.library for row in rows if row.timing), "")
    marks = next((row.distances for row in rows if row.timing), ())
    head = ["", *(f"L2 at {mark.queries}" for mark in marks), "queries"]
    lines = [[*head, "images timed", "ms per 1000", "÷ own", "÷ batched", f"× {first}"]]
    for row, name in zip(rows, named, strict=True):
        if time := row.timing:
            line = [name.library]
            line += [f"{mark.median:.3f} ({mark.lower:.2f} to {mark.upper:.2f})" for mark in row.distances]
            line += [f"{row.mean:.0f}", str(row.images), f"{1e6 * time.cpu / row.sent:.1f}"]
            line += [f"{ratio:.2f}" for ratio in (time.own, row.batched)]
            line += [f"{row.pace(ours):.2f}" for ours in rows if (ours.library, ours.task) == (first, row.task)] or [""]
            lines.append(line)
    return aligned(lines, named)


def shortfalls(rows: Sequence[Near]) -> list[str]:
    """The aims that were missed: near the floor, as fast as peers with the same attack, and no peer nearer with it.

    Sign-OPT is to be nearer than every peer, whatever its attack, and five times as fast as ART's.
    """
    lines = []
    for ours in rows:
        if ours.library != "advcourse":
            continue
        missed = [] if ours.timing else [ours.remark]
        if ours.batched > 1.3:
            missed.append(f"{ours.batched:.2f} × the batched floor, aim 1.3")
        for peer in rows:
            if peer.model != ours.model or peer.library == ours.library or not (peer.timing and ours.timing):
                continue
            name = f"{peer.library}'s {peer.task.name}"
            if peer.task == ours.task:
                aim = 5 if name == "ART's Sign-OPT" else 1
                if (pace := peer.pace(ours)) < 0.98 * aim:
                    missed.append(f"a query of {name} takes {pace:.2f} × our time, aim {aim}")
            if peer.task == ours.task or ours.task.name == "Sign-OPT":
                missed += farther(ours, name, peer)
        if missed:
            lines.append(f"{ours.model}, {ours.task.name}: {'; '.join(missed)}")
    return lines


def farther(ours: Near, name: str, peer: Near) -> list[str]:
    """Where the median of a peer is smaller than ours, or the upper quartile in the end."""
    pairs = list(zip(peer.distances, ours.distances, strict=True))
    lines = [
        f"{name} has median L2 {its.median:.3f} at {its.queries}, ours {mine.median:.3f}"
        for its, mine in pairs
        if its.median < 0.995 * mine.median
    ]
    its, mine = pairs[-1]
    if its.upper < 0.995 * mine.upper:
        lines.append(f"{name} has upper quartile {its.upper:.3f} at {its.queries}, ours {mine.upper:.3f}")
    return lines
