"""All submissions of an assignment: who they are from, what they got, and the files that say so."""

import csv
import io
import json
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..files import sha256, write_whole
from .examine import Examiner, Mark, Report, Verdict, printable
from .notebooks import Assignment, answers, read_assignment, read_notebook
from .sandbox import Limits

LONGEST_NAME = 80


def find_submissions(folder: Path, pattern: str = "(.*)") -> dict[str, list[Path]]:
    """What is in a folder, by student: for each entry, a notebook or a folder, the notebooks that it is or holds.

    An entry without a notebook counts as well, with none: somebody handed in something else. Links are not followed.

    Args:
        folder: of submissions.
        pattern: a regular expression for an entry's name without its suffix. Its first group is the student: for
            ``doejane_LATE_1234_hw1.ipynb`` it may be ``^([^_]+)_``. Entries that do not match keep their name.

    Raises:
        ValueError: if the folder is empty, or this is no regular expression with a group.
    """
    try:
        names = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    if not names.groups:
        raise ValueError(f"{pattern!r} needs a group for the student's name, such as ^([^_]+)_")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("."):
            name = printable(entry.stem if entry.suffix.lower() == ".ipynb" else entry.name)
            match = names.search(name)
            student = (match and match[1]) or name
            inside = [entry, *sorted(entry.rglob("*"))] if not entry.is_symlink() else []
            found.setdefault(student[:LONGEST_NAME], []).extend(path for path in inside if _is_notebook(path, folder))
    if not found:
        raise ValueError(f"{folder} holds no submissions: expected STUDENT.ipynb, or STUDENT/ANYTHING.ipynb")
    return found


def _is_notebook(path: Path, folder: Path) -> bool:
    hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
    return path.suffix.lower() == ".ipynb" and path.is_file() and not path.is_symlink() and not hidden


def grade(
    assignment: Path,
    submissions: Path,
    out: Path,
    limits: Limits | None = None,
    jobs: int = 1,
    pattern: str = "(.*)",
    progress: bool = False,
) -> dict[str, Report]:
    """Grade a folder of submissions, and write totals.csv, grades.csv, feedback/STUDENT.md and leaderboard.md.

    A submission that was graded before is not graded again, unless it, the assignment, the limits or the libraries have
    changed. So this can be interrupted, and run again when late submissions come in.

    Args:
        assignment: the instructor's notebook, or its text.
        submissions: a folder, see `find_submissions`.
        out: a folder for what is found; it is made if need be.
        limits: for each submission.
        jobs: submissions at a time, each with a process of its own for the tests.
        pattern: finds the student in a name, see `find_submissions`.
        progress: whether to show a bar on stderr.

    Returns:
        The reports, by student.

    Raises:
        FileNotFoundError: if there is no such assignment.
        ValueError: if it is not one, if there are no submissions, or jobs is not positive.
    """
    known, limits = read_assignment(assignment), limits or Limits()
    students = find_submissions(submissions, pattern)
    out.mkdir(parents=True, exist_ok=True)
    context = get_context("forkserver")
    context.set_forkserver_preload(["advcourse.grading"])
    with ProcessPoolExecutor(jobs, context, _prepare, (known, limits)) as pool:
        waiting = {
            student: pool.submit(_graded, paths, submissions, out / "reports" / f"{student}.json")
            for student, paths in students.items()
        }
        try:
            bar = tqdm(waiting.items(), unit="submission", disable=None if progress else True)
            found = {student: report.result() for student, report in bar}
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that have begun, or are next, come to their end and are kept
            raise
    for name, text in ("totals.csv", totals(found)), ("grades.csv", table(found)):
        _write(out / name, "\ufeff" + text)  # or spreadsheets take it for another encoding
    for student, report in found.items():
        _write(out / "feedback" / f"{student}.md", feedback(known, report))
    _write(out / "leaderboard.md", leaderboard(found))
    return found


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode())


_examiner: Examiner  # of a process that grades


def _prepare(assignment: Assignment, limits: Limits) -> None:
    global _examiner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what has begun comes to its end
    _examiner = Examiner(assignment, limits)


def _graded(paths: list[Path], folder: Path, kept: Path) -> Report:
    """A report that is kept, if it is of the same things, or a new one. Whatever happens, others are graded."""
    assignment = _examiner.assignment
    try:
        if len(paths) != 1:
            names = ", ".join(str(path.relative_to(folder)) for path in paths)
            raise ValueError(f"{len(paths)} notebooks, of which one can be graded: {names}" if paths else "no notebook")
        versions = f"{__version__} {torch.__version__} {_examiner.limits}"
        of = sha256(f"{assignment.checksum} {versions} {sha256(paths[0].read_bytes())}".encode())
        if (known := _read(kept)) and known["of"] == of:
            return _report(known["report"])
        report = _examiner(answers(read_notebook(paths[0]), assignment))
        _write(kept, json.dumps({"of": of, "report": asdict(report)}, indent=1))
    except Exception as error:
        report = Report.without_marks(assignment)
        for part, mark in zip(assignment.parts, report.marks, strict=True):
            for test in part.tests:
                mark.add(test, f"could not be graded: {error}")
    return report


def _read(kept: Path) -> dict[str, Any] | None:
    """What was kept, if it can be read."""
    try:
        return json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _report(report: dict[str, Any]) -> Report:
    marks = [
        Mark(mark["part"], mark["max"], [Verdict(**verdict) for verdict in mark["verdicts"]])
        for mark in report["marks"]
    ]
    return Report(**report | {"marks": marks})


def totals(reports: Mapping[str, Report]) -> str:
    """Comma-separated values: student, points, max; a line for each student."""
    return _csv(
        ("student", "points", "max"),
        ((student, f"{report.points:g}", f"{report.max:g}") for student, report in reports.items()),
    )


def table(reports: Mapping[str, Report]) -> str:
    """Comma-separated values: student, part, points, max, reason; a line for each part."""
    return _csv(
        ("student", "part", "points", "max", "reason"),
        (
            (student, f"{number} ({mark.part})", f"{mark.points:g}", f"{mark.max:g}", mark.reason)
            for student, report in reports.items()
            for number, mark in enumerate(report.marks, 1)
        ),
    )


def _csv(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is the student, which no spreadsheet takes for a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(head)
    for student, *others in rows:
        formula = student.startswith(("=", "+", "-", "@"))
        writer.writerow([f"'{student}" if formula else student, *others])
    return text.getvalue()


def feedback(assignment: Assignment, report: Report) -> str:
    """What a student is told, in Markdown."""
    lines = [f"# {assignment.name}: {report.points:g} of {report.max:g} points", ""]
    for number, mark in enumerate(report.marks, 1):
        lines += [f"## Part {number} ({mark.part}): {mark.points:g} of {mark.max:g}", ""]
        for verdict in mark.verdicts:
            lines.append(f"- {'✗' if verdict.reason else '✓'} {verdict.title} ({verdict.points:g})")
            if verdict.reason:
                lines.append(f"  - `{verdict.reason.replace('`', chr(39))}`")
        lines.append("")
    lines += [f"Contest “{contest}”: {score:g}" for contest, score in report.scores.items()]
    return "\n".join(lines).rstrip() + "\n"


def leaderboard(reports: Mapping[str, Report]) -> str:
    """A table for each contest, the best first, in Markdown. Equal scores share a place.

    Example:
        >>> print(leaderboard({"ada": Report([], {"Least queries": -310.0}), "bob": Report([])}))
        # Least queries
        <BLANKLINE>
        | place | student | score |
        |--:|:--|--:|
        | 1 | ada | -310 |
        <BLANKLINE>
    """
    return "\n".join(_boards(reports)) or "No contest.\n"


def _boards(reports: Mapping[str, Report]) -> Iterator[str]:
    for contest in dict.fromkeys(title for report in reports.values() for title in report.scores):
        scores = {student: report.scores[contest] for student, report in reports.items() if contest in report.scores}
        yield f"# {contest}\n\n| place | student | score |\n|--:|:--|--:|"
        for student, score in sorted(scores.items(), key=lambda entry: -entry[1]):
            name = student.replace("|", "\\|")
            yield f"| {1 + sum(other > score for other in scores.values())} | {name} | {score:.4g} |"
        yield ""
