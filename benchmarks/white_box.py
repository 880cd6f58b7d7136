"""White-box attacks side by side with other libraries: same model, same images, same steps, in one process.

    python -m benchmarks.white_box [--quick] [--attacks PGD C&W] [--libraries advcourse adv-lib] [--models cnn resnet]

See README.md in this folder for how to read the table.
"""

import argparse
import copy
import json
import logging
import math
import os
import platform
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from advcourse import data, models
from advcourse.files import write_whole
from advcourse.threat import L2, Linf

from .libraries import LIBRARIES, Task
from .measure import Entry, Pass, Passes, Timing, race, recorded, seed

RESULTS = Path(__file__).parent / "results"
PACKAGES = ["advcourse", "torch", "numpy", "adv-lib", "foolbox", "torchattacks", "adversarial-robustness-toolbox"]

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
class Row:
    """What one library did with one task. Passes and times are those of all `images`; strength is that of `judged`."""

    model: str
    task: Task
    held: bool
    batch: int
    library: str
    images: int
    judged: int = 0
    forward: float = 0.0  # per image
    backward: float = 0.0
    timing: Timing | None = None
    robust: float = math.nan  # fraction of the judged images that resist
    median_l2: float = math.nan  # of attacks without a ball, over all judged images; infinite if half of them resist
    remark: str = ""


def images(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images that the model has right."""
    x, y = data.fashion_mnist("test")
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x[: 2 * n].split(256)]) == y[: 2 * n]
    return x[: 2 * n][right][:n], y[: 2 * n][right][:n]


def nominal(task: Task, n: int) -> Passes:
    """Forward and backward once a step, for all images; for DeepFool, which stops when it has enough, just once."""
    return (Pass(n, 1),) * (1 if task.name == "DeepFool" else task.steps * task.search_steps)


def compare(
    name: str, task: Task, held: bool, batch: int, libraries: Sequence[str], args: argparse.Namespace
) -> list[Row]:
    """One task for all libraries: record the passes and judge what comes back, then race."""
    model = models.load(name)
    count = max(batch, min(SINGLES, args.judged))
    judged = count if held or batch == 1 else max(count, args.judged)
    x, y = images(model, judged)
    task = replace(task, eps=HELD) if held else task
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    timed = batches[: count // batch]
    entries: dict[str, Entry] = {}
    rows: dict[str, Row] = {}
    for library in libraries:
        row = Row(name, task, held, batch, library, count, judged)
        try:
            own = copy.deepcopy(model)
            run = LIBRARIES[library](task, own, batch)
            if run is None:
                rows[library] = replace(row, remark="does not have it")
                continue
            found, passes = [], []
            for part in batches:
                seed()
                with recorded(own) as made:
                    found.append(run(*part).detach())
                passes.append(tuple(made))
            rows[library] = judge(row, model, x, y, torch.cat(found), [one for made in passes for one in made])
            entries[library] = Entry(run, tuple(passes[: len(timed)]))
        except Exception as error:  # whatever a peer raises is its own result
            rows[library] = replace(row, remark=f"failed: {error!r}"[:120])
    if entries:
        floors = tuple(nominal(task, len(part[0])) for part in timed)
        timings = race(model, entries, timed, floors, args.rounds, args.seconds)
        rows |= {library: replace(rows[library], timing=timing) for library, timing in timings.items()}
    return list(rows.values())


def judge(row: Row, model: nn.Module, x: Tensor, y: Tensor, found: Tensor, passes: Iterable[Pass]) -> Row:
    """Strength, recomputed from the images that came back, and whether they were allowed."""
    passes = list(passes)
    with torch.no_grad():
        resists = torch.cat([model(part).argmax(1) for part in found.split(256)]) == y
    remarks = []
    if not bool(((found >= 0) & (found <= 1)).all()):
        remarks.append("leaves [0, 1]")
    distance = L2.norm(found - x)
    if row.task.eps is not None:
        far = distance if row.task.norm == "L2" else Linf.norm(found - x)
        if outside := int((far > row.task.eps + 1e-5).sum()):
            remarks.append(f"{outside} images leave the ball")
    return replace(
        row,
        forward=sum(one.rows for one in passes) / len(x),
        backward=sum(one.rows * one.backward for one in passes) / len(x),
        robust=resists.float().mean().item(),
        median_l2=math.nan if row.task.eps is not None else distance.where(~resists, torch.inf).median().item(),
        remark=", ".join(remarks),
    )


def report(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """All results as one page of Markdown."""
    lines = ["# White-box attacks: time and strength", "", *conditions(args), "", "## Where advcourse is not there", ""]
    lines += [f"- {line}" for line in shortfalls(rows)] or ["- nowhere: every aim below is met"]
    for name in args.models:
        for held in (True, False):
            setting = f"nobody is fooled (eps {HELD:g}), so nobody leaves early" if held else "the attack as it is used"
            lines += ["", f"## {name}: {setting}"]
            for task in TASKS:
                if some := [row for row in rows if (row.model, row.held, row.task.name) == (name, held, task.name)]:
                    lines += ["", f"### {describe(some[0].task)}", "", *table(some)]
    return "\n".join(lines) + "\n"


def conditions(args: argparse.Namespace) -> list[str]:
    def known(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} missing"

    return [
        f"{', '.join(map(known, PACKAGES))}; Python {platform.python_version()}, {platform.system()} on "
        f"{platform.machine()} with {os.cpu_count()} cores, {args.threads} thread(s); {args.rounds} round(s).",
        "How to read this: benchmarks/README.md.",
    ]


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


def table(rows: Sequence[Row]) -> list[str]:
    """One task: a line for each library, four numbers for each batch size."""
    batches = list(dict.fromkeys(row.batch for row in rows))
    first = next((row.library for row in rows if row.timing), "")
    head = ["", "forward", "backward"]
    for batch in batches:
        head += [f"batch {batch}: ms", "÷ own", "÷ nominal", f"× {first}"]
    head += ["robust" if rows[0].task.eps is not None else "median L2 (fooled)"] * (not rows[0].held)
    lines, remarks = [head], list[str]()
    for library in dict.fromkeys(row.library for row in rows):
        mine = [row for row in rows if row.library == library]
        remarks += dict.fromkeys(f"{library}: {row.remark}" for row in mine if row.remark)
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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    padded = ["| " + " | ".join(map(str.rjust, line, widths)) + " |" for line in lines]
    return padded + [""] * bool(remarks) + [f"- {remark}" for remark in remarks]


def shortfalls(rows: Sequence[Row]) -> list[str]:
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
        fastest = min(peers, key=lambda row: row.timing.reference if row.timing else math.inf, default=ours)
        if ours.timing and fastest.timing and fastest.timing.reference < 0.98:
            missed.append(f"{fastest.library} takes {fastest.timing.reference:.2f} × our time")
        for peer in peers:
            if peer.robust < ours.robust:
                missed.append(f"{peer.library} leaves {peer.robust:.1%} standing, ours {ours.robust:.1%}")
            if peer.median_l2 < 0.995 * ours.median_l2:
                missed.append(f"{peer.library} has median L2 {peer.median_l2:.3f}, ours {ours.median_l2:.3f}")
        if missed:
            held = ", held" if ours.held else ""
            lines.append(f"{ours.model}, {ours.task.name}{held}, batch {ours.batch}: {'; '.join(missed)}")
    return lines


def finite(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict that JSON can hold: what is infinite or was not measured is null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in items}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.white_box", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--batch",
        type=int,
        nargs="+",
        default=[64, 1],
        help="images in one call; with 1, 16 images are attacked in turn",
    )
    add("--rounds", type=int, default=3, help="turns that each library gets; more where a turn is short")
    add(
        "--seconds",
        type=float,
        default=15,
        help="who used more CPU time than this for one line sits the other rounds out",
    )
    add("--judged", type=int, default=128, help="images that robust accuracy and distances are measured on")
    add("--attacks", nargs="+", default=[""], metavar="NAME", help="beginnings of names, such as fgsm pgd c&w")
    add("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES, metavar="NAME", help=", ".join(LIBRARIES))
    add("--models", nargs="+", default=["cnn"], choices=list(models.ZOO))
    add("--threads", type=int, default=1)
    add("--quick", action="store_true", help="seconds instead of minutes: few images, few steps, one round")
    add("--output", type=Path, help="folder for the tables; benchmarks/results if nothing was left out")
    args = parser.parse_args(argv)
    args.tasks = [task for task in TASKS if task.name.lower().startswith(tuple(a.lower() for a in args.attacks))]
    if not args.tasks:
        parser.error(f"no attack begins with {args.attacks}: there are {', '.join(task.name for task in TASKS)}")
    if args.quick:
        args.batch, args.judged = [min(batch, 4) for batch in args.batch], 4
        args.rounds, args.seconds = 1, 0
        args.tasks = [
            replace(task, steps=min(task.steps, 3), search_steps=min(task.search_steps, 2)) for task in args.tasks
        ]
    if args.output is None and args.tasks == TASKS and args.libraries == list(LIBRARIES):
        args.output = RESULTS
    return args


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    """So many threads, and no warnings and log lines, of which some libraries are full."""
    before = torch.get_num_threads()
    logging.disable()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)
        logging.disable(logging.NOTSET)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    args = arguments(argv)
    cases = [
        (name, task, held, batch)
        for name in args.models
        for held in (True, False)
        for task in args.tasks
        if not held or task.eps is not None
        for batch in args.batch
    ]
    rows: list[Row] = []
    with quiet(args.threads), tqdm(cases, unit="line") as bar:
        for name, task, held, batch in bar:
            bar.set_description(f"{name} {task.name}{', held' if held else ''}, batch {batch}")
            rows += compare(name, task, held, batch, args.libraries, args)
            page = report(rows, args)
            if args.output:  # what there is so far
                plain = [asdict(row, dict_factory=finite) for row in rows]
                write_whole(args.output / "white_box.md", page.encode())
                write_whole(args.output / "white_box.json", json.dumps(plain, indent=1).encode())
    print(page)
    return rows


if __name__ == "__main__":
    main()
