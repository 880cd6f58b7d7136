"""`advcourse grade`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from advcourse.cli import app

from ..grading.small import assignment, submission


def grade(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["grade", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assignment(tmp_path / "hw.ipynb")
    submission(tmp_path / "submitted" / "ada.ipynb", double="")
    code, output = grade("hw.ipynb", "submitted", "--jobs", 1)
    assert code == 0
    out = Path("grades") / "hw"
    see = f"see totals.csv, grades.csv, feedback/, leaderboard.md in {out}"
    assert f"1 submission, 3.0 of 6 points on average; {see}" in output
    assert (out / "grades.csv").is_file()
    submission(tmp_path / "submitted" / "bob.ipynb", count="")
    submission(tmp_path / "submitted" / "ada.ipynb", count="")
    _, output = grade("hw.ipynb", "submitted", "--jobs", 1)
    assert "2 submissions" in output
    assert "leaderboard" not in output  # nobody has a score


def test_help_shows_the_pattern_as_it_is() -> None:
    assert "^([^_]+)_" in grade("--help")[1].replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "."), "neither a notebook nor one assignment"),
        (("hw.ipynb", "empty"), "holds no submissions"),
        (("hw.ipynb", "empty", "--seconds", 0), "seconds must be"),
        (("hw.ipynb", "empty", "--memory", 0), "memory must be"),
        (("bad.ipynb", "empty"), "is not a notebook"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assignment(tmp_path / "hw.ipynb")
    (tmp_path / "bad.ipynb").write_text("{}")
    (tmp_path / "empty").mkdir()
    code, output = grade(*arguments)
    assert code == 2
    assert message in output
    assert "Traceback" not in output


def test_names_of_assignments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assignments").mkdir()
    for name in "hw1_a", "hw1_b":
        (tmp_path / "assignments" / f"{name}.md").write_text("")
    code, output = grade("hw1", ".")
    assert code == 2
    assert "there: hw1_a, hw1_b" in output
