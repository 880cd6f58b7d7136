"""Solutions get all points, starters none, and a mistake loses the points that it should."""

from dataclasses import replace
from functools import cache
from importlib import import_module

import jupytext
import nbformat
import pytest

from advcourse.grading import Assignment, Cell, Examiner, Limits, answers, read_assignment
from tools.make_starters import SOURCES, STARTERS, starter

from .mistake import Mistake

NAMES = sorted(path.stem for path in SOURCES.glob("*.md"))
MISTAKES = [(name, mistake) for name in NAMES for mistake in import_module(f"{__package__}.{name}").MISTAKES]


@cache
def assignment(name: str) -> Assignment:
    return read_assignment(SOURCES / f"{name}.md")


@cache
def examiner_of_part(name: str, number: int) -> Examiner:
    """Of one part alone: what others cannot be changed by."""
    whole = assignment(name)
    before = [cell.source for part in whole.parts[:number] for cell in part.solution]
    setup = Cell("set-up", "\n".join([whole.setup.source, *before]))
    return Examiner(replace(whole, setup=setup, parts=whole.parts[number : number + 1]), Limits(120))


def solution(name: str) -> list[Cell]:
    return [cell for part in assignment(name).parts for cell in part.solution]


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_gets_everything(name: str) -> None:
    report = Examiner(assignment(name), Limits(120))(solution(name))
    assert [mark.reason for mark in report.marks] == [""] * len(report.marks)
    assert report.points == sum(part.max for part in assignment(name).parts) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_starter_gets_nothing(name: str) -> None:
    cells = answers(starter(SOURCES / f"{name}.md"), assignment(name))
    assert len(cells) == len(solution(name))
    report = Examiner(assignment(name))(cells)
    assert report.points == 0
    assert not report.scores
    assert all("NotImplementedError" in verdict.reason for mark in report.marks for verdict in mark.verdicts)


@pytest.mark.parametrize("name", NAMES)
def test_starters_are_made_from_the_sources(name: str) -> None:
    kept = (STARTERS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert kept == nbformat.writes(starter(SOURCES / f"{name}.md")) + "\n", "run `make starters`"


def test_no_starter_is_left_over() -> None:
    assert sorted(path.stem for path in STARTERS.glob("*.ipynb")) == NAMES


def hidden_lines(name: str) -> set[str]:
    """Lines of the solutions and the hidden tests that stand nowhere else in the source."""
    inside, outside = set(), set()
    for cell in jupytext.read(SOURCES / f"{name}.md").cells:
        secret = False
        for line in map(str.strip, cell.source.splitlines()):
            secret = (secret or line.startswith("### BEGIN")) and not line.startswith("### END")
            (inside if secret else outside).add(line)
    return {line for line in inside - outside if len(line) > 3}


@pytest.mark.parametrize("name", NAMES)
def test_starters_hold_neither_solutions_nor_hidden_tests(name: str) -> None:
    cells = nbformat.read(STARTERS / f"{name}.ipynb", as_version=4).cells
    given = {line.strip() for cell in cells for line in cell.source.splitlines()}
    assert len(hidden_lines(name)) > 20
    assert not hidden_lines(name) & given
    assert not any("outputs" in cell and cell.outputs for cell in cells)


@pytest.mark.parametrize("name", NAMES)
def test_tests_have_a_title_and_need_no_other_test(name: str) -> None:
    tests = [test for part in assignment(name).parts for test in part.tests]
    assert len({test.name for test in tests}) == len(tests)
    assert all(test.source.startswith("# ") and test.points > 0 for test in tests)


@pytest.mark.parametrize("name", NAMES)
def test_ten_mistakes_at_least(name: str) -> None:
    mistakes = [mistake for other, mistake in MISTAKES if other == name]
    assert len({mistake.name for mistake in mistakes}) == len(mistakes) >= 10


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=lambda value: getattr(value, "name", value))
def test_a_mistake_loses_what_it_should(name: str, mistake: Mistake) -> None:
    parts = assignment(name).parts
    (number,) = [n for n, part in enumerate(parts) if any(mistake.old in cell.source for cell in part.solution)]
    assert sum(cell.source.count(mistake.old) for cell in parts[number].solution) == 1
    cells = [replace(cell, source=cell.source.replace(mistake.old, mistake.new)) for cell in parts[number].solution]
    (mark,) = examiner_of_part(name, number)(cells).marks
    assert {verdict.test for verdict in mark.verdicts if verdict.reason} == mistake.lost, mark.reason
