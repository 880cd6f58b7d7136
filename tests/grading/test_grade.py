"""A folder of submissions becomes tables, and work that was done is not done again."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advcourse.grading import Limits, find_submissions, grade

from .small import COUNT, DOUBLE, SETUP, assignment, cell, graded_by, solution_of, submission, write

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


def rows(out: Path, name: str = "grades.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_who_handed_in(handed_in: Path, tmp_path: Path) -> None:
    (handed_in / "fay.zip").write_bytes(b"")
    (handed_in / "gus").mkdir()
    (handed_in / "ida.ipynb").symlink_to(handed_in / "ada.ipynb")
    submission(handed_in / "joe.IPYNB")
    found = {student: len(paths) for student, paths in find_submissions(handed_in).items()}
    assert found == {"ada": 1, "bob": 1, "eve": 1, "fay.zip": 0, "gus": 0, "ida": 0, "joe": 1}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no submissions"):
        find_submissions(tmp_path / "empty")


def test_names_of_a_learning_platform(tmp_path: Path) -> None:
    submission(tmp_path / "doejane_LATE_1234_5678_hw1.ipynb")
    submission(tmp_path / "doejane_1234_9999_hw1-1.ipynb")
    submission(tmp_path / "müller_1234_9999_hw1.ipynb")
    submission(tmp_path / "odd.ipynb")
    submission(tmp_path / f"{'long' * 50}_1.ipynb")
    found = find_submissions(tmp_path, "^([^_]+)_")
    assert {student: len(paths) for student, paths in found.items()} == {
        "doejane": 2,
        "müller": 1,
        "odd": 1,
        ("long" * 50)[:80]: 1,
    }
    for pattern, message in ("(", "no regular expression"), ("_", "needs a group"):
        with pytest.raises(ValueError, match=message):
            find_submissions(tmp_path, pattern)


@pytest.mark.parametrize("jobs", [1, 2])
def test_all_that_is_written(source: Path, handed_in: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "out"
    reports = grade(source, handed_in, out, jobs=jobs)
    assert {student: report.points for student, report in reports.items()} == {"ada": 6, "bob": 4, "eve": 6}
    table = rows(out)
    assert list(table[0]) == ["student", "part", "points", "max", "reason"]
    assert [tuple(row.values())[:4] for row in table[3:6]] == [
        ("bob", "1 (double)", "1", "3"),
        ("bob", "2 (shift)", "2", "2"),
        ("bob", "3 (count)", "1", "1"),
    ]
    assert rows(out, "totals.csv")[1] == {"student": "bob", "points": "4", "max": "6"}
    assert table[3]["reason"] == "−2: not twice"
    told = (out / "feedback" / "bob.md").read_text(encoding="utf-8")
    assert told.startswith("# hw: 4 of 6 points\n\n## Part 1 (double): 1 of 3\n")
    assert "✗ Values are doubled (2)\n  - `not twice`" in told
    assert "✓ The shape stays (1)" in told
    board = (out / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    assert board[4:7] == ["| 1 | eve | 5 |", "| 2 | ada | 1 |", "| 2 | bob | 1 |"]


def test_what_was_graded_is_not_graded_again(source: Path, handed_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def graded() -> set[str]:
        """Students whose reports were written since the last time."""
        before = dict(seen)
        seen.update({path.stem: path.stat().st_mtime_ns for path in (out / "reports").iterdir()})
        return {student for student, time in seen.items() if before.get(student) != time}

    seen: dict[str, int] = {}
    first = grade(source, handed_in, out)
    assert graded() == {"ada", "bob", "eve"}
    assert grade(source, handed_in, out) == first
    assert not graded()
    submission(handed_in / "bob" / "hw (final).ipynb")  # hands in again
    submission(handed_in / "late.ipynb")
    (out / "reports" / "eve.json").write_text("")
    again = grade(source, handed_in, out)
    assert graded() == {"bob", "eve", "late"}
    assert [again[student].points for student in ("ada", "bob", "eve", "late")] == [6, 6, 6, 6]
    grade(source, handed_in, out, Limits(seconds=30))
    assert graded() == {"ada", "bob", "eve", "late"}


def test_an_interruption_keeps_what_is_done(source: Path, handed_in: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for student in "bob/hw (final)", "carl", "dora", "eve/hw", "fay":
        submission(handed_in / f"{student}.ipynb", more=(cell("import time\ntime.sleep(1)"),))
    command = [
        sys.executable,
        "-m",
        "advcourse",
        "grade",
        str(source),
        str(handed_in),
        "--out",
        str(out),
        "--jobs",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (out / "reports" / "ada.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        assert "run the same command again" in process.stderr.read()
    assert not (out / "reports" / "fay.json").exists()
    assert not (out / "grades.csv").exists()
    assert len(grade(source, handed_in, out)) == 6


def test_a_contest_does_not_depend_on_how_many_are_graded_at_once(tmp_path: Path) -> None:
    draw = "# Drawn\ntorch.manual_seed(3)\nscore = double(torch.rand(1000)).sum().item()"
    source = write(
        tmp_path / "hw.ipynb",
        [cell(SETUP, ("setup",)), solution_of("double", DOUBLE), graded_by("a", draw, 1, ("contest",))],
    )
    for student in "abcd":
        submission(tmp_path / "submitted" / f"{student}.ipynb", shift="", count="")
    scores = [
        {
            report.scores["Drawn"]
            for report in grade(source, tmp_path / "submitted", tmp_path / f"out{jobs}", jobs=jobs).values()
        }
        for jobs in (1, 2)
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 1


def test_what_is_no_notebook_costs_its_student_only(source: Path, handed_in: Path, tmp_path: Path) -> None:
    (handed_in / "mallory.ipynb").write_text("<html>")
    (handed_in / "zip.zip").write_bytes(b"PK")
    submission(handed_in / "two" / "a.ipynb")
    submission(handed_in / "two" / "b.ipynb")
    reports = grade(source, handed_in, tmp_path / "out")
    assert [reports[student].points for student in ("ada", "mallory", "two", "zip.zip")] == [6, 0, 0, 0]
    reasons = {row["student"]: row["reason"] for row in rows(tmp_path / "out") if row["part"] == "2 (shift)"}
    assert "mallory.ipynb is not a notebook" in reasons["mallory"]
    assert "2 notebooks, of which one can be graded: two/a.ipynb, two/b.ipynb" in reasons["two"]
    assert "no notebook" in reasons["zip.zip"]


def test_notebooks_as_editors_leave_them(source: Path, handed_in: Path, tmp_path: Path) -> None:
    text = (handed_in / "ada.ipynb").read_text(encoding="utf-8")
    (handed_in / "bom.ipynb").write_bytes(text.encode("utf-8-sig"))
    (handed_in / "windows.ipynb").write_bytes(text.replace("\n", "\r\n").encode("utf-16"))
    bare = json.loads(text)
    for each in bare["cells"]:
        each["metadata"] = {"nbgrader": None}
    (handed_in / "bare.ipynb").write_text(json.dumps(bare))
    reports = grade(source, handed_in, tmp_path / "out")
    assert [reports[student].points for student in ("bare", "bom", "windows")] == [6, 6, 6]


def test_no_name_and_no_message_gets_out_of_its_cell(source: Path, handed_in: Path, tmp_path: Path) -> None:
    loud = "def double(x):\n    raise ValueError('\\n\\n# 6 of 6\\n<img src=x> \\ud800 `| 1 |')"
    submission(handed_in / '=HYPERLINK("a").ipynb', double=loud)
    submission(handed_in / "eve |\n| 1 | mallory.ipynb")
    out = tmp_path / "out"
    grade(source, handed_in, out)
    names = {row["student"] for row in rows(out)}
    assert names == {row["student"] for row in rows(out, "totals.csv")}
    assert names == {"ada", "bob", "eve", '\'=HYPERLINK("a")', "eve | | 1 | mallory"}
    assert "| eve \\| \\| 1 \\| mallory |" in (out / "leaderboard.md").read_text(encoding="utf-8")
    told = (out / "feedback" / '=HYPERLINK("a").md').read_text(encoding="utf-8")
    assert [line for line in told.splitlines() if "img" in line]
    assert all(line.strip().startswith("- `") and line.endswith("`") for line in told.splitlines() if "img" in line)
