"""Attacks that are told scores: same model, same images, same budget. Queries, time per query, and success."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from advcourse import models

from .harness import BATCHED, Asking, aligned, contest, images, median_l2, recorded_run, slower, verdict
from .libraries import Task
from .measure import Batches, Entry, Run, Witness

TITLE = "Attacks that are told scores: queries, time and strength"

TASKS = [
    Task("Square", steps=1000, eps=0.05, p=0.05, budget=1000),
    Task("Square L2", steps=1000, eps=1.0, p=0.1, budget=1000),
    Task("NES", steps=19, eps=0.05, samples=25, budget=1000),
    Task("ZOO", steps=38, samples=128, rate=0.01, initial_c=1.0, budget=10_000),
    Task("GenAttack", steps=100, eps=0.1, samples=10, budget=1000, targeted=True),
]
FEW = 4  # images for ZOO, which asks thousands of times for each


@dataclass(frozen=True)
class Asked(Asking):
    """All but time is measured on the judged images."""

    success: float = math.nan  # fraction whose returned image fools the model, inside [0, 1] and the ball
    within: float = math.nan  # fraction for which one of the first `budget` points that were sent did
    mean: float = math.nan  # queries sent for an image, whatever came of it
    median: float = math.nan
    most: int = 0
    median_l2: float = math.nan  # of attacks without a ball; infinite if half of the images resist


def cases(tasks: list[Task], args: argparse.Namespace) -> list[tuple[str, Callable[[], list[Asked]]]]:
    return [
        (f"{name} {task.name}", partial(compare, Asked(name, task, args.batch[0]), args))
        for name in args.models
        for task in tasks
    ]


def compare(blank: Asked, args: argparse.Namespace) -> list[Asked]:
    """One task for all libraries: record the queries and judge what comes back, then race."""
    model, task = models.load(blank.model), blank.task
    batch, judged = (min(n, FEW) if task.name == "ZOO" else n for n in (blank.batch, max(blank.batch, args.judged)))
    x, y = images(model, judged)
    if task.targeted:
        y = (y + 1) % 10
    blank = replace(blank, batch=batch, images=batch, judged=judged)
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    return contest(blank, model, batches, lambda _: BATCHED, partial(first_run, model, batches), args)


def first_run(model: nn.Module, batches: Batches, row: Asked, run: Run, own: nn.Module) -> tuple[Asked, Entry]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    witness = Witness(x, row.task.goal(y), row.task.allowed)
    handle = own.register_forward_hook(witness)
    found, entry = recorded_run(run, own, batches)
    handle.remove()
    sent = sum(one.rows for one in entry.passes[0])
    return judge(replace(row, sent=sent), model, x, y, found, witness), entry


def judge(row: Asked, model: nn.Module, x: Tensor, y: Tensor, found: Tensor, witness: Witness) -> Asked:
    """Strength, recomputed from the images that came back, and the queries that were witnessed."""
    fooled, remark = verdict(row.task, model, x, y, found)
    fooled &= row.task.allowed(found, x)
    doubts = f"{witness.doubtful} queries are NaN or so far from all images that it is not sure whose they are"
    sent = witness.sent.double()
    return replace(
        row,
        success=fooled.double().mean().item(),
        within=(witness.found <= (row.task.budget or math.inf)).double().mean().item(),
        mean=sent.mean().item(),
        median=sent.median().item(),
        most=int(sent.max()),
        median_l2=math.nan if row.task.eps is not None else median_l2(x, found, fooled),
        remark=", ".join([remark] * bool(remark) + [doubts] * (witness.doubtful > 0)),
    )


def report(rows: Sequence[Asked]) -> list[str]:
    lines = ["## Where advcourse is not there", ""]
    lines += [f"- {line}" for line in shortfalls(rows)] or ["- nowhere: every aim below is met"]
    for name, task in dict.fromkeys((row.model, row.task) for row in rows):
        some = [row for row in rows if (row.model, row.task) == (name, task)]
        lines += ["", f"## {name}, {describe(task)}; {some[0].images} images", "", *table(some)]
    return lines


def describe(task: Task) -> str:
    detail = f"{task.norm}, eps {task.eps:g}" if task.eps is not None else "no ball"
    match task.name:
        case "NES":
            detail += f", {task.steps} steps of {task.samples} directions"
        case "ZOO":
            detail += f", {task.steps} steps of {task.samples} coordinates, rate {task.rate}, c {task.initial_c:g}"
        case "GenAttack":
            detail += f", targeted, {task.steps} generations of {task.samples}"
        case _:
            detail += f", p {task.p:g}"
    return f"{task.name}: {detail}, budget {task.budget}"


def table(rows: Sequence[Asked]) -> list[str]:
    """One task: a line for each library."""
    free = rows[0].task.eps is None
    first = next((row.library for row in rows if row.timing), "")
    head = ["", "success", f"within {rows[0].task.budget}", "queries: mean", "median", "most"]
    head += ["ms per 1000", "÷ own", "÷ batched", f"× {first}", *["median L2"] * free]
    lines = [head]
    for row in rows:
        if time := row.timing:
            line = [row.library, f"{row.success:.1%}", f"{row.within:.1%}", f"{row.mean:.1f}", f"{row.median:.0f}"]
            line += [str(row.most), f"{1e6 * time.cpu / row.sent:.1f}"]
            line += [f"{ratio:.2f}" for ratio in (time.own, row.batched, time.reference)]
            lines.append([*line, *[f"{row.median_l2:.3f}"] * free])
    return aligned(lines, rows)


def shortfalls(rows: Sequence[Asked]) -> list[str]:
    """The aims that were missed: near the floor, within the budget, no peer faster, more successful or nearer."""
    lines = []
    for ours in rows:
        if ours.library != "advcourse":
            continue
        missed = [] if ours.timing else [ours.remark]
        if ours.timing and ours.timing.own > 1.3:
            missed.append(f"{ours.timing.own:.2f} × its own floor, aim 1.3")
        if ours.most > (ours.task.budget or math.inf):
            missed.append(f"sends {ours.most} queries")
        peers = [row for row in rows if (row.model, row.task) == (ours.model, ours.task) and row.timing]
        missed += slower(ours, peers)
        for peer in peers:
            if peer.success > ours.success:
                missed.append(f"{peer.library} fools {peer.success:.1%}, ours {ours.success:.1%}")
            if peer.within > ours.within:
                missed.append(f"{peer.library} fools {peer.within:.1%} within the budget, ours {ours.within:.1%}")
            if peer.mean < ours.mean and peer.success >= ours.success:
                missed.append(f"{peer.library} sends {peer.mean:.1f} queries, ours {ours.mean:.1f}")
            if peer.median_l2 < 0.995 * ours.median_l2:
                missed.append(f"{peer.library} has median L2 {peer.median_l2:.3f}, ours {ours.median_l2:.3f}")
        if missed:
            lines.append(f"{ours.model}, {ours.task.name}: {'; '.join(missed)}")
    return lines
