"""Training: what an epoch costs beside the passes that it cannot do without."""

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from advcourse import data, models

from .harness import Row, aligned
from .libraries import Task
from .measure import Entry, Pass, race, seed
from .trainers import TRAINERS

TITLE = "Training: time of an epoch"

TASKS = [
    Task("train standard", steps=0),
    Task("train PGD", steps=7, eps=0.1),
    Task("train Free", steps=8, eps=0.1),
    Task("train Fast", steps=1, eps=0.1),
    Task("train N-FGSM", steps=1, eps=0.1),
    Task("train GradAlign", steps=2, eps=0.1),
    Task("train TRADES", steps=10, eps=0.1),
]
UPDATES = 8
"""Batches of an epoch."""


def cases(tasks: list[Task], args: argparse.Namespace) -> list[tuple[str, Callable[[], list[Row]]]]:
    batch = args.batch[0]
    return [
        (f"{name} {task.name}", partial(compare, Row(name, task, batch, images=UPDATES * batch), args))
        for name in args.models
        for task in tasks
    ]


def compare(blank: Row, args: argparse.Namespace) -> list[Row]:
    """Every trainer has a first epoch, which sets things up, and then they race."""
    model, epoch = models.load(blank.model), data.fashion_mnist("train", blank.images)
    passes = ((Pass(blank.batch, 1),) * UPDATES,)  # a yardstick: one pass for each image, back to the input
    rows: dict[str, Row] = {}
    entries: dict[str, Entry] = {}
    for name, trainer in TRAINERS.items():
        if name in ("advcourse", "ART") and name not in args.libraries:
            continue
        rows[name] = replace(blank, library=name)
        try:
            train = trainer(blank.task, copy.deepcopy(model), blank.batch)
            if train is None:
                rows[name] = replace(rows[name], remark="no such method")
                continue
            seed()
            train(*epoch)
            entries[name] = Entry(train, passes)
        except Exception as error:  # whatever a peer raises is its own result
            rows[name] = replace(rows[name], remark=f"failed: {error!r}"[:120])
    timings = race(model, entries, [epoch], passes, args.rounds, args.seconds)
    return [replace(row, timing=timings.get(name)) for name, row in rows.items()]


def report(rows: Sequence[Row]) -> list[str]:
    lines = ["## Where advcourse is not there", ""]
    lines += [f"- {line}" for line in shortfalls(rows)] or ["- nowhere: every aim below is met"]
    for name in dict.fromkeys(row.model for row in rows):
        for task in dict.fromkeys(row.task for row in rows if row.model == name):
            some = [row for row in rows if (row.model, row.task) == (name, task)]
            detail = "" if task.eps is None else f": Linf, eps {task.eps:g}"
            lines += ["", f"## {name}, {task.name}{detail}, batches of {some[0].batch}", "", *table(some)]
    return lines


def table(rows: Sequence[Row]) -> list[str]:
    lines = [["", "ms per image", "passes' worth", "÷ passes alone"]]
    for row in rows:
        if (time := row.timing) is not None:
            line = [row.library, f"{1e3 * time.cpu / row.images:.3f}", f"{time.nominal:.1f}", f"{time.reference:.2f}"]
            lines.append(line)
    return aligned(lines, rows)


def pace(row: Row) -> float:
    """Time of an epoch ÷ that of its passes alone."""
    return row.timing.reference if row.timing else math.nan


def shortfalls(rows: Sequence[Row]) -> list[str]:
    """The aims that were missed: close to the floor, and nobody faster."""
    lines = []
    for ours in rows:
        if ours.library != "advcourse":
            continue
        missed = [] if ours.timing else [ours.remark]
        if pace(ours) > 1.05:
            missed.append(f"{pace(ours):.2f} × the passes alone, aim 1.05")
        for row in rows:
            same = (row.model, row.task) == (ours.model, ours.task)
            if same and row.library in ("scripts", "ART") and pace(row) < 0.98 * pace(ours):
                missed.append(f"{row.library} takes {pace(row) / pace(ours):.2f} × our time")
        if missed:
            lines.append(f"{ours.model}, {ours.task.name}: {'; '.join(missed)}")
    return lines
