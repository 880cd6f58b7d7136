"""A folder of submissions becomes tables, and work that was done is not done again."""

import csv
import json
from pathlib import Path

import pytest

from advcourse.grading import Examiner, Limits, find_submissions, grade

from .small import COUNT, assignment, submission

WRONG = "def double(x):\n    return x"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return assignment(tmp_path / "hw.ipynb")


@pytest.fixture
def handed_in(tmp_path: Path) -> Path:
    folder = tmp_path / "submitted"
    submission(folder / "ada.ipynb")
    submission(folder / "bob" / "hw (final).ipynb", double=WRONG)
    submission(folder / "bob" / ".ipynb_checkpoints" / "hw.ipynb")
    submission(folder / "eve" / "hw.ipynb", count=COUNT.replace(", 1", ", 5"))
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "grades.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_who_handed_in(handed_in: Path, tmp_path: Path) -> None:
    assert {student: len(paths) for student, paths in find_submissions(handed_in).items()} == {
        "ada": 1,
        "bob": 1,
        "eve": 1,
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no notebooks"):
        find_submissions(tmp_path / "empty")


@pytest.mark.parametrize("jobs", [1, 3])
def test_all_that_is_written(source: Path, handed_in: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "out"
    reports = grade(source, handed_in, out, jobs=jobs)
    assert {student: report.points for student, report in reports.items()} == {"ada": 6, "bob": 4, "eve": 6}
    table = rows(out)
    assert list(table[0]) == ["student", "part", "points", "max", "reason"]
    assert [tuple(row.values())[:4] for row in table[3:6]] == [
        ("bob", "double", "1", "3"),
        ("bob", "shift", "2", "2"),
        ("bob", "count", "1", "1"),
    ]
    assert table[3]["reason"] == "−2: not twice"
    told = (out / "feedback" / "bob.md").read_text(encoding="utf-8")
    assert told.startswith("# hw: 4 of 6 points")
    assert "✗ Values are doubled (2)\n  - not twice" in told
    assert "✓ The shape stays (1)" in told
    board = (out / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    assert board[4:7] == ["| 1 | eve | 5 |", "| 2 | ada | 1 |", "| 2 | bob | 1 |"]


def test_what_was_graded_is_not_graded_again(
    source: Path, handed_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = grade(source, handed_in, out)
    graded: list[int] = []
    examine = Examiner.__call__
    monkeypatch.setattr(Examiner, "__call__", lambda self, cells: graded.append(1) or examine(self, cells))
    assert grade(source, handed_in, out) == first
    assert not graded
    submission(handed_in / "bob" / "hw (final).ipynb")  # hands in again
    submission(handed_in / "late.ipynb")
    again = grade(source, handed_in, out)
    assert len(graded) == 2
    assert [again[student].points for student in ("ada", "bob", "eve", "late")] == [6, 6, 6, 6]
    grade(source, handed_in, out, Limits(seconds=30))
    assert len(graded) == 6


def test_an_interruption_keeps_what_is_done(
    source: Path, handed_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine, out = Examiner.__call__, tmp_path / "out"

    def interrupted(self: Examiner, cells: list[object]) -> object:
        if (out / "reports" / "ada.json").exists():
            raise KeyboardInterrupt
        return examine(self, cells)  # type: ignore[arg-type]

    monkeypatch.setattr(Examiner, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grade(source, handed_in, out)
    assert json.loads((out / "reports" / "ada.json").read_text())["report"]["marks"]
    assert not (out / "grades.csv").exists()
    monkeypatch.undo()
    assert len(grade(source, handed_in, out)) == 3


def test_what_is_no_notebook_costs_its_student_only(source: Path, handed_in: Path, tmp_path: Path) -> None:
    (handed_in / "mallory.ipynb").write_text("<html>")
    submission(handed_in / "two" / "a.ipynb")
    submission(handed_in / "two" / "b.ipynb")
    reports = grade(source, handed_in, tmp_path / "out")
    assert [reports[student].points for student in ("ada", "mallory", "two")] == [6, 0, 0]
    reasons = {row["student"]: row["reason"] for row in rows(tmp_path / "out") if row["part"] == "shift"}
    assert "is not a notebook" in reasons["mallory"]
    assert "2 notebooks" in reasons["two"]
