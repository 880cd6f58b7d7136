"""`advcourse grade`: points for a folder of submissions."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .endings import one_line


def grade(
    assignment: Annotated[
        str,
        typer.Argument(
            metavar="HW",
            help="The instructor's notebook (.md or .ipynb), or how the name of one in assignments/ begins.",
        ),
    ],
    submissions: Annotated[
        Path, typer.Argument(help="A folder of notebooks: STUDENT.ipynb, or any one notebook in a folder STUDENT.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where to write what is found; grades/HW by default.")] = None,
    seconds: Annotated[float, typer.Option(help="For a cell, and for each call of a student's function.")] = 60,
    total: Annotated[float, typer.Option(help="Seconds for all of a submission.")] = 900,
    memory: Annotated[float, typer.Option(help="For a process of a submission, in GiB.")] = 4,
    student: Annotated[
        str,
        typer.Option(
            metavar="REGEX",
            help="What in the name of a file or folder is the student: its first group, `^([^_]+)_` say.",
        ),
    ] = "(.*)",
    jobs: Annotated[int, typer.Option(min=1, help="Submissions at a time; as many as processors by default.")] = (
        os.cpu_count() or 1
    ),
) -> None:
    """Run each submission in a process of its own against the visible and the hidden tests of an assignment.

    Writes totals.csv (student, points, max), grades.csv (student, part, points, max, reason), feedback/STUDENT.md
    and, if there is a contest, leaderboard.md. Interrupt it when you like and run it again: what was graded, and has
    not changed, is kept.

    ```text
    advcourse grade hw1 submitted/ --out grades/hw1 --jobs 4
    ```
    """
    from ..contract import check_number

    with one_line("interrupted; run the same command again to go on"):
        check_number("memory", memory, 0.1)
        from ..grading import Limits, find_assignment
        from ..grading import grade as grade_all

        source = find_assignment(assignment)
        out = out or Path("grades") / source.stem
        limits = Limits(seconds, int(memory * 2**30), total)
        reports = grade_all(source, submissions, out, limits, jobs, student, progress=True)
    for refused in dict.fromkeys(refused for report in reports.values() for refused in report.refused):
        typer.echo(f"warning: on this system, {refused} by a submission", err=True)
    points = [report.points for report in reports.values()]
    written = ["totals.csv", "grades.csv", "feedback/"]
    if any(report.scores for report in reports.values()):
        written.append("leaderboard.md")
    typer.echo(
        f"{len(reports)} submission{'s' * (len(reports) > 1)}, {sum(points) / len(points):.1f} of "
        f"{next(iter(reports.values())).max:g} points on average; see {', '.join(written)} in {out}"
    )
