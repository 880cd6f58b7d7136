"""What all parts of the benchmark share: the contest between libraries, the command line, and how results are kept."""

import argparse
import copy
import json
import logging
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from advcourse import data, models
from advcourse.files import write_whole
from advcourse.threat import L2

from .libraries import LIBRARIES, Task
from .measure import Batches, Entry, Pass, Passes, Run, Timing, race, recorded, seed

RESULTS = Path(__file__).parent / "results"
BATCHED: Passes = (Pass(128),) * 8  # what a query costs when they are asked 128 at a time
PACKAGES = [
    "advcourse",
    "torch",
    "numpy",
    "adv-lib",
    "foolbox",
    "torchattacks",
    "torchattack",
    "adversarial-robustness-toolbox",
]


@dataclass(frozen=True)
class Row:
    """What one library did with one task. Times are those of the first `images`, strength is that of all `judged`."""

    model: str
    task: Task
    batch: int
    library: str = ""
    images: int = 0
    judged: int = 0
    timing: Timing | None = None
    remark: str = ""


@dataclass(frozen=True)
class Asking(Row):
    """What it cost to ask: the time is that of so many queries about the timed images."""

    sent: int = 0

    @property
    def batched(self) -> float:
        """CPU time of a query ÷ that of a row in a bare forward pass of 128, if the race had `BATCHED` for nominal."""
        return self.timing.nominal * sum(one.rows for one in BATCHED) / self.sent if self.timing else math.nan


R = TypeVar("R", bound=Row)


class Part(Protocol):
    """A part of the benchmark, which a module is."""

    __name__: str
    TITLE: str
    TASKS: list[Task]

    def cases(self, tasks: list[Task], args: argparse.Namespace) -> list[tuple[str, Callable[[], list[Any]]]]:
        """The lines of the tables, each with its name, as functions that fill them."""

    def report(self, rows: Sequence[Any]) -> list[str]:
        """All results so far as lines of Markdown."""


def images(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images that the model has right."""
    x, y = data.fashion_mnist("test")
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x[: 2 * n].split(256)]) == y[: 2 * n]
    return x[: 2 * n][right][:n], y[: 2 * n][right][:n]


def contest(
    blank: R,
    model: nn.Module,
    batches: Batches,
    nominal: Callable[[int], Passes],
    first: Callable[[R, Run, nn.Module], tuple[R, Entry]],
    args: argparse.Namespace,
) -> list[R]:
    """One task for all libraries: each has a first run, which is recorded and judged, and then they race.

    Args:
        blank: a row for every library to fill in.
        model: what is attacked; each library gets a copy.
        batches: images and labels; the first `blank.images` of them are timed.
        nominal: the passes that count as the attack itself on a batch of so many.
        first: runs the attack on its own copy of the model and answers the row, and what is to race: a run, and the
            passes it made on each batch.
        args: the command line.
    """
    timed = batches[: blank.images // blank.batch]
    entries: dict[str, Entry] = {}
    rows: dict[str, R] = {}
    for library in args.libraries:
        row = replace(blank, library=library)
        try:
            own = copy.deepcopy(model)
            run = LIBRARIES[library](blank.task, own, blank.batch)
            if run is None:
                rows[library] = replace(row, remark="no such attack")
                continue
            rows[library], entry = first(row, run, own)
            entries[library] = replace(entry, passes=entry.passes[: len(timed)])
        except Exception as error:  # whatever a peer raises is its own result
            rows[library] = replace(row, remark=f"failed: {error!r}"[:120])
    if entries:
        floors = tuple(nominal(len(part[0])) for part in timed)
        timings = race(model, entries, timed, floors, args.rounds, args.seconds)
        rows |= {library: replace(rows[library], timing=timing) for library, timing in timings.items()}
    return list(rows.values())


def recorded_run(run: Run, model: nn.Module, batches: Batches) -> tuple[Tensor, Entry]:
    """The images found, and the run with the passes it made on each batch."""
    found, passes = [], []
    for part in batches:
        seed()
        with recorded(model) as made:
            found.append(run(*part).detach())
        passes.append(tuple(made))
    return torch.cat(found), Entry(run, tuple(passes))


def verdict(task: Task, model: nn.Module, x: Tensor, y: Tensor, found: Tensor) -> tuple[Tensor, str]:
    """Which of the images that came back fool the model, recomputed, and whether they were allowed."""
    with torch.no_grad():
        fooled = task.goal(y).fooled(torch.cat([model(part).argmax(1) for part in found.split(256)]))
    remarks = []
    if not bool(((found >= 0) & (found <= 1)).all()):
        remarks.append("leaves [0, 1]")
    if outside := int((task.beyond(found, x) > 1e-5).sum()):
        remarks.append(f"{outside} images leave the ball")
    return fooled, ", ".join(remarks)


def median_l2(x: Tensor, found: Tensor, fooled: Tensor) -> float:
    """The median distance over all images, infinite for those that were not fooled."""
    return L2.norm(found - x).where(fooled, torch.inf).median().item()


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


def aligned(lines: list[list[str]], rows: Sequence[Row]) -> list[str]:
    """A table, its head first, with the remarks of its rows below."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * (width - 1) + ":" for width in widths], *lines[1:]]
    padded = ["| " + " | ".join(map(str.rjust, line, widths)) + " |" for line in ruled]
    remarks = {
        row.remark: [other.library for other in rows if other.remark == row.remark] for row in rows if row.remark
    }
    below = [f"- {', '.join(dict.fromkeys(libraries))}: {remark}" for remark, libraries in remarks.items()]
    return [*padded, *[""] * bool(below), *below]


def slower(ours: Row, peers: Iterable[Row]) -> list[str]:
    """Which library is fastest, if it is another one."""
    times = {row.library: row.timing.reference for row in peers if row.timing}
    fastest = min(times, key=times.__getitem__, default="")
    return [f"{fastest} takes {times[fastest]:.2f} × our time"] if ours.timing and times[fastest] < 0.98 else []


def finite(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict that JSON can hold: what is infinite or was not measured is null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in items}


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


def arguments(tasks: list[Task], argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed and strength, side by side.")
    add = parser.add_argument
    add(
        "--batch",
        type=int,
        nargs="+",
        default=[64, 1],
        help="images in one call; with 1, 16 images are attacked in turn; the first one serves for queries",
    )
    add("--rounds", type=int, default=3, help="turns that each library gets; more where a turn is short")
    add(
        "--seconds",
        type=float,
        default=15,
        help="who used more CPU time than this for one line sits the other rounds out",
    )
    add("--judged", type=int, default=128, help="images that strength is measured on")
    add("--attacks", nargs="+", default=[""], metavar="NAME", help="beginnings of names, such as fgsm pgd c&w square")
    add("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES, metavar="NAME", help=", ".join(LIBRARIES))
    add("--models", nargs="+", default=["cnn"], choices=list(models.BUNDLED))
    add("--threads", type=int, default=1)
    add("--quick", action="store_true", help="seconds instead of minutes: few images, few steps, one round")
    add("--output", type=Path, help="folder for the tables; benchmarks/results if nothing was left out")
    args = parser.parse_args(argv)
    args.tasks = [task for task in tasks if task.name.lower().startswith(tuple(a.lower() for a in args.attacks))]
    if not args.tasks:
        parser.error(f"no attack begins with {args.attacks}: there are {', '.join(task.name for task in tasks)}")
    if args.output is None and not args.quick and args.tasks == tasks and args.libraries == list(LIBRARIES):
        args.output = RESULTS
    if args.quick:
        args.batch, args.judged = [min(batch, 4) for batch in args.batch], 4
        args.rounds, args.seconds = 1, 0
        args.tasks = [task.shortened for task in args.tasks]
    return args


def run(part: Part, tasks: list[Task], args: argparse.Namespace) -> list[Any]:
    """Do one part, print its page, and write it line by line."""
    name = part.__name__.rpartition(".")[2]
    rows: list[Any] = []
    page = ""
    with quiet(args.threads), tqdm(part.cases(tasks, args), unit="line") as bar:
        for title, case in bar:
            bar.set_description(title)
            rows += case()
            page = "\n".join([f"# {part.TITLE}", "", *conditions(args), "", *part.report(rows)]) + "\n"
            if args.output:  # what there is so far
                plain = [asdict(row, dict_factory=finite) for row in rows]
                write_whole(args.output / f"{name}.md", page.encode())
                write_whole(args.output / f"{name}.json", json.dumps(plain, indent=1).encode())
    print(page)
    return rows
