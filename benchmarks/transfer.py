"""Transfer attacks: same surrogate, same images, same steps. Passes, time beside their floor, and who is fooled."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from advcourse import models

from .harness import Row, aligned, contest, images, recorded_run, slower, verdict
from .libraries import Task
from .measure import Batches, Entry, Pass, Passes, Run

TITLE = "Transfer attacks: time, and who is fooled"

TASKS = [Task(name, steps=10, eps=0.1) for name in ("MI", "NI", "MDI", "MTI", "NSI", "VMI", "MAI", "MI+RAP")]
COPIES = {"NSI": 5, "VMI": 21, "MAI": 15, "MI+RAP": 9}
"""Gradients in a step, where they are several."""

TARGET = "vgg"
"""Who is to be fooled without being asked."""


@dataclass(frozen=True)
class Crafted(Row):
    """Passes are per image; the other two are fractions of the judged images."""

    forward: float = 0.0
    backward: float = 0.0
    surrogate: float = math.nan
    target: float = math.nan


def nominal(task: Task, n: int) -> Passes:
    """All gradients of a step in one batch."""
    return (Pass(COPIES.get(task.name, 1) * n, 1),) * task.steps


def cases(tasks: list[Task], args: argparse.Namespace) -> list[tuple[str, Callable[[], list[Crafted]]]]:
    batch = args.batch[0]
    return [
        (f"{name} {task.name}", partial(compare, Crafted(name, task, batch, images=batch), args))
        for name in args.models
        for task in tasks
    ]


def compare(blank: Crafted, args: argparse.Namespace) -> list[Crafted]:
    model = models.load(blank.model)
    judged = max(blank.batch, args.judged // blank.batch * blank.batch)
    x, y = images(model, judged)
    batches = list(zip(x.split(blank.batch), y.split(blank.batch), strict=True))
    blank = replace(blank, judged=judged)
    return contest(blank, model, batches, partial(nominal, blank.task), partial(first_run, model, batches), args)


def first_run(model: nn.Module, batches: Batches, row: Crafted, run: Run, own: nn.Module) -> tuple[Crafted, Entry]:
    found, entry = recorded_run(run, own, batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    fooled, remark = verdict(row.task, model, x, y, found)
    target = models.load(TARGET)
    with torch.no_grad():
        right, then = ((target(part).argmax(1) == y) for part in (x, found))
    passes = [one for made in entry.passes for one in made]
    row = replace(
        row,
        forward=sum(one.rows for one in passes) / len(x),
        backward=sum(one.rows * one.backward for one in passes) / len(x),
        surrogate=fooled.float().mean().item(),
        target=(~then[right]).float().mean().item(),
        remark=remark,
    )
    return row, entry


def report(rows: Sequence[Crafted]) -> list[str]:
    lines = ["## Where advcourse is not there", ""]
    lines += [f"- {line}" for line in shortfalls(rows)] or ["- nowhere: every aim below is met"]
    for name in dict.fromkeys(row.model for row in rows):
        lines += ["", f"## From {name} to {TARGET}"]
        for task in dict.fromkeys(row.task for row in rows if row.model == name):
            some = [row for row in rows if (row.model, row.task) == (name, task)]
            detail = f"{task.norm}, eps {task.eps:g}, {task.steps} steps of {task.step_size:.3g}"
            lines += ["", f"### {task.name}: {detail}", "", *table(some)]
    return lines


def table(rows: Sequence[Crafted]) -> list[str]:
    lines = [["", "forward", "backward", "ms", "÷ own", "÷ nominal", "× advcourse", "surrogate", "target"]]
    for row in rows:
        if (time := row.timing) is not None:
            line = [row.library, f"{row.forward:.1f}", f"{row.backward:.1f}", f"{1e3 * time.cpu / row.images:.2f}"]
            line += [f"{ratio:.2f}" for ratio in (time.own, time.nominal, time.reference)]
            lines.append([*line, f"{row.surrogate:.1%}", f"{row.target:.1%}"])
    return aligned(lines, rows)


def shortfalls(rows: Sequence[Crafted]) -> list[str]:
    """The aims that were missed: close to the floor of our own passes, and no peer faster that makes as many."""
    lines = []
    for ours in rows:
        if ours.library != "advcourse":
            continue
        missed = [] if ours.timing else [ours.remark]
        if ours.timing and ours.timing.own > 1.1:
            missed.append(f"{ours.timing.own:.2f} × its own floor, aim 1.1")
        same = (ours.model, ours.task)
        missed += slower(ours, [row for row in rows if (row.model, row.task) == same and row.backward >= ours.backward])
        if missed:
            lines.append(f"{ours.model}, {ours.task.name}: {'; '.join(missed)}")
    return lines
