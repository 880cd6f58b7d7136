"""All submissions of an assignment: who they are from, what they got, and the files that say so."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..files import sha256, write_whole
from .examine import Examiner, Mark, Report, Verdict
from .notebooks import Assignment, answers, read_assignment, read_notebook
from .sandbox import Limits


def find_submissions(folder: Path) -> dict[str, list[Path]]:
    """The notebooks in a folder by student, whose name is that of the notebook, or of the folder it is in.

    Raises:
        ValueError: if there is none.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.ipynb")):
        inside = path.relative_to(folder)
        if not any(name.startswith(".") for name in inside.parts):
            found.setdefault(inside.parts[0] if len(inside.parts) > 1 else path.stem, []).append(path)
    if not found:
        raise ValueError(f"{folder} holds no notebooks: expected STUDENT.ipynb, or STUDENT/ANYTHING.ipynb")
    return found


def grade(
    assignment: Path, submissions: Path, out: Path, limits: Limits | None = None, jobs: int = 1, progress: bool = False
) -> dict[str, Report]:
    """Grade a folder of submissions, and write grades.csv, feedback/STUDENT.md and leaderboard.md.

    A submission that was graded before is not graded again, unless it, the assignment or the limits have changed. So
    this can be interrupted, and run again when late submissions come in.

    Args:
        assignment: the instructor's notebook, or its text.
        submissions: a folder, see `find_submissions`.
        out: a folder for what is found; it is made if need be.
        limits: for each submission.
        jobs: submissions at a time.
        progress: whether to show a bar on stderr.

    Returns:
        The reports, by student.

    Raises:
        FileNotFoundError: if there is no such assignment.
        ValueError: if it is not one, if there are no submissions, or jobs is not positive.
    """
    limits = limits or Limits()
    examiner = Examiner(read_assignment(assignment), limits)
    students = find_submissions(submissions)
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {
            student: pool.submit(_graded, examiner, paths, out / "reports" / f"{student}.json")
            for student, paths in students.items()
        }
        try:
            bar = tqdm(waiting.items(), unit="submission", disable=None if progress else True)
            found = {student: report.result() for student, report in bar}
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that have begun come to their end, and are kept
            raise
    write_whole(out / "grades.csv", table(found).encode())
    for student, report in found.items():
        write_whole(out / "feedback" / f"{student}.md", feedback(examiner.assignment, report).encode())
    write_whole(out / "leaderboard.md", leaderboard(found).encode())
    return found


def _graded(examiner: Examiner, paths: list[Path], kept: Path) -> Report:
    """A report that is kept, if it is of the same things, or a new one."""
    of = sha256(
        "\n".join(
            [examiner.assignment.checksum, repr(examiner.limits), *(sha256(path.read_bytes()) for path in paths)]
        ).encode()
    )
    if kept.exists() and (known := json.loads(kept.read_text()))["of"] == of:
        return _read(known["report"])
    try:
        if len(paths) > 1:
            raise ValueError(
                f"{len(paths)} notebooks, of which one is to be graded: {', '.join(path.name for path in paths)}"
            )
        report = examiner(answers(read_notebook(paths[0]), examiner.assignment))
    except ValueError as error:
        report = Report(
            [
                Mark(
                    part.name,
                    part.max,
                    [Verdict(test.name, test.title, test.points, str(error)) for test in part.tests],
                )
                for part in examiner.assignment.parts
            ]
        )
    write_whole(kept, json.dumps({"of": of, "report": asdict(report)}, indent=1).encode())
    return report


def _read(report: dict[str, Any]) -> Report:
    marks = [
        Mark(mark["part"], mark["max"], [Verdict(**verdict) for verdict in mark["verdicts"]])
        for mark in report["marks"]
    ]
    return Report(**report | {"marks": marks})


def table(reports: Mapping[str, Report]) -> str:
    """Comma-separated values: student, part, points, max, reason."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["student", "part", "points", "max", "reason"])
    for student, report in reports.items():
        for mark in report.marks:
            writer.writerow([student, mark.part, f"{mark.points:g}", f"{mark.max:g}", mark.reason])
    return text.getvalue()


def feedback(assignment: Assignment, report: Report) -> str:
    """What a student is told, in Markdown."""
    most = sum(mark.max for mark in report.marks)
    lines = [f"# {assignment.name}: {report.points:g} of {most:g} points", ""]
    for mark in report.marks:
        lines += [f"## {mark.part}: {mark.points:g} of {mark.max:g}", ""]
        for verdict in mark.verdicts:
            lines.append(f"- {'✗' if verdict.reason else '✓'} {verdict.title} ({verdict.points:g})")
            if verdict.reason:
                lines.append(f"  - {verdict.reason}")
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
            yield f"| {1 + sum(other > score for other in scores.values())} | {student} | {score:.4g} |"
        yield ""
