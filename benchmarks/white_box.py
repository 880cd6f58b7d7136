"""White-box attacks: same model, same images, same steps. Passes, time beside their floor, and strength."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from advcourse import models

from .harness import Row, aligned, contest, images, median_l2, recorded_run, slower, verdict
from .libraries import Task
from .measure import Batches, Entry, Pass, Passes, Run

TITLE = "White-box attacks: time and strength"

TASKS = [
    Task("FGSM", steps=1, eps=0.03),
    Task("PGD", steps=40, eps=0.03),
    Task("PGD, clean start", steps=40, eps=0.03, random_start=False),
    Task("PGD L2", steps=40, eps=0.4),
    Task("APGD-CE", steps=40, eps=0.03),
    Task("APGD-DLR", steps=40, eps=0.03),
    Task("C&W", steps=30, search_steps=5),
    Task("DeepFool", steps=50),
]
HELD = 1e-4  # a radius in which nobody is fooled, so nobody leaves early and all make the same passes
SINGLES = 16  # images, when they are attacked one at a time


@dataclass(frozen=True)
class Strength(Row):
    """Passes are those of all images, and strength is that of the judged ones."""

    held: bool = False
    forward: float = 0.0  # per image
    backward: float = 0.0
    robust: float = math.nan  # fraction of the judged images that resist
    median_l2: float = math.nan  # of attacks without a ball, over all judged images; infinite if half of them resist


def nominal(task: Task, n: int) -> Passes:
    """Forward and backward once a step, for all images; for DeepFool, which stops when it has enough, just once."""
    return (Pass(n, 1),) * (1 if task.name == "DeepFool" else task.steps * task.search_steps)


def cases(tasks: list[Task], args: argparse.Namespace) -> list[tuple[str, Callable[[], list[Strength]]]]:
    return [
        (
            f"{name} {task.name}{', held' if held else ''}, batch {batch}",
            partial(compare, Strength(name, replace(task, eps=HELD) if held else task, batch, held=held), args),
        )
        for name in args.models
        for held in (True, False)
        for task in tasks
        if not held or task.eps is not None
        for batch in args.batch
    ]


def compare(blank: Strength, args: argparse.Namespace) -> list[Strength]:
    """One task for all libraries: record the passes and judge what comes back, then race."""
    model = models.load(blank.model)
    count = max(blank.batch, min(SINGLES, args.judged))
    judged = count if blank.held or blank.batch == 1 else max(count, args.judged)
    x, y = images(model, judged)
    batches = list(zip(x.split(blank.batch), y.split(blank.batch), strict=True))
    blank = replace(blank, images=count, judged=judged)
    return contest(blank, model, batches, partial(nominal, blank.task), partial(first_run, model, batches), args)


def first_run(model: nn.Module, batches: Batches, row: Strength, run: Run, own: nn.Module) -> tuple[Strength, Entry]:
    found, entry = recorded_run(run, own, batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return judge(row, model, x, y, found, [one for made in entry.passes for one in made]), entry


def judge(row: Strength, model: nn.Module, x: Tensor, y: Tensor, found: Tensor, passes: Sequence[Pass]) -> Strength:
    """Strength, recomputed from the images that came back, and what they cost."""
    fooled, remark = verdict(row.task, model, x, y, found)
    return replace(
        row,
        forward=sum(one.rows for one in passes) / len(x),
        backward=sum(one.rows * one.backward for one in passes) / len(x),
        robust=1 - fooled.float().mean().item(),
        median_l2=math.nan if row.task.eps is not None else median_l2(x, found, fooled),
        remark=remark,
    )


def report(rows: Sequence[Strength]) -> list[str]:
    lines = ["## Where advcourse is not there", ""]
    lines += [f"- {line}" for line in shortfalls(rows)] or ["- nowhere: every aim below is met"]
    for name, held in dict.fromkeys((row.model, row.held) for row in rows):
        setting = f"nobody is fooled (eps {HELD:g}), so nobody leaves early" if held else "the attack as it is used"
        lines += ["", f"## {name}: {setting}"]
        for task in dict.fromkeys(row.task for row in rows if (row.model, row.held) == (name, held)):
            some = [row for row in rows if (row.model, row.held, row.task) == (name, held, task)]
            lines += ["", f"### {describe(task)}", "", *table(some)]
    return lines


def describe(task: Task) -> str:
    match task.name:
        case "C&W":
            detail = f"{task.search_steps} searches of {task.steps} steps, rate {task.rate}, first c {task.initial_c:g}"
        case "DeepFool":
            detail = f"at most {task.steps} steps, 10 classes, overshoot {task.overshoot}"
        case "FGSM":
            detail = f"Linf, eps {task.eps:g}"
        case _:
            detail = f"{task.norm}, eps {task.eps:g}, {task.steps} steps"
            detail += "" if task.name.startswith("APGD") else f" of {task.step_size:.3g}"
    return f"{task.name}: {detail}"


def table(rows: Sequence[Strength]) -> list[str]:
    """One task: a line for each library, four numbers for each batch size."""
    batches = list(dict.fromkeys(row.batch for row in rows))
    first = next((row.library for row in rows if row.timing), "")
    head = ["", "forward", "backward"]
    for batch in batches:
        head += [f"batch {batch}: ms", "÷ own", "÷ nominal", f"× {first}"]
    head += ["robust" if rows[0].task.eps is not None else "median L2 (fooled)"] * (not rows[0].held)
    lines = [head]
    for library in dict.fromkeys(row.library for row in rows):
        mine = [row for row in rows if row.library == library]
        if mine[0].timing is None:
            continue
        line = [library, f"{mine[0].forward:.1f}", f"{mine[0].backward:.1f}"]
        for row in mine:
            time = row.timing or mine[0].timing
            line += [f"{1e3 * time.cpu / row.images:.2f}"]
            line += [f"{ratio:.2f}" for ratio in (time.own, time.nominal, time.reference)]
        if mine[0].task.eps is None:
            line.append(f"{mine[0].median_l2:.3f} ({1 - mine[0].robust:.1%})")
        elif not mine[0].held:
            line.append(f"{mine[0].robust:.1%}")
        lines.append(line)
    return aligned(lines, rows)


def shortfalls(rows: Sequence[Strength]) -> list[str]:
    """The aims that were missed: close to the floor of our own passes, no peer faster, no peer stronger."""
    lines = []
    for ours in rows:
        if ours.library != "advcourse":
            continue
        missed = [] if ours.timing else [ours.remark]
        limit = 1.2 if ours.batch == 1 else 1.05
        if ours.timing and ours.timing.own > limit and ours.task.name != "DeepFool":
            missed.append(f"{ours.timing.own:.2f} × its own floor, aim {limit}")
        same = (ours.model, ours.task, ours.held, ours.batch)
        peers = [row for row in rows if (row.model, row.task, row.held, row.batch) == same and row.timing]
        missed += slower(ours, peers)
        for peer in peers:
            if peer.robust < ours.robust:
                missed.append(f"{peer.library} leaves {peer.robust:.1%} standing, ours {ours.robust:.1%}")
            if peer.median_l2 < 0.995 * ours.median_l2:
                missed.append(f"{peer.library} has median L2 {peer.median_l2:.3f}, ours {ours.median_l2:.3f}")
        if missed:
            held = ", held" if ours.held else ""
            lines.append(f"{ours.model}, {ours.task.name}{held}, batch {ours.batch}: {'; '.join(missed)}")
    return lines
