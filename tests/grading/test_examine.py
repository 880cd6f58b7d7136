"""A mistake costs what it should, whatever the submission does, and the tests stay out of its reach."""

from pathlib import Path

import pytest
from nbformat import NotebookNode

from advcourse.grading import Cell, Examiner, Limits, Report, answers, read_assignment, read_notebook

from .small import COUNT, DOUBLE, SETUP, SHIFT, assignment, cell, graded_by, solution_of, submission, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return assignment(tmp_path / "hw.ipynb")


def examined(source: Path, *, seconds: float = 20, more: tuple[NotebookNode, ...] = (), **cells: str) -> Report:
    known = read_assignment(source)
    handed_in = read_notebook(submission(source.parent / "handed_in.ipynb", more=more, **cells))
    return Examiner(known, Limits(seconds=seconds))(answers(handed_in, known))


def points(report: Report) -> list[float]:
    return [mark.points for mark in report.marks]


def test_what_is_read(source: Path) -> None:
    known = read_assignment(source)
    assert [(part.name, part.max, part.names) for part in known.parts] == [
        ("double", 3, ["double"]),
        ("shift", 2, ["shift"]),
        ("count", 1, ["count"]),
    ]
    assert known.setup.source == SETUP
    assert known.given == {SETUP, "print(double(x))"}
    assert [test.title for test in known.parts[0].tests] == ["Values are doubled", "The shape stays"]


def test_what_is_not_an_assignment(tmp_path: Path) -> None:
    (tmp_path / "text.ipynb").write_text("{")
    with pytest.raises(ValueError, match="is not a notebook"):
        read_assignment(tmp_path / "text.ipynb")
    with pytest.raises(ValueError, match="no tests"):
        read_assignment(write(tmp_path / "a.ipynb", [cell(SETUP, ("setup",)), solution_of("double", DOUBLE)]))
    with pytest.raises(ValueError, match="comes before all"):
        read_assignment(write(tmp_path / "b.ipynb", [graded_by("double-values", "# No")]))
    with pytest.raises(FileNotFoundError):
        read_assignment(tmp_path / "nothing.ipynb")


def test_only_what_students_write_is_run(source: Path) -> None:
    known = read_assignment(source)
    given = [cell(SETUP, ("setup",)), cell("print(double(x))"), graded_by("double-values", "# Values are doubled")]
    mine = [cell("helper = 3"), solution_of("double", DOUBLE)]
    handed_in = read_notebook(write(source.parent / "handed_in.ipynb", [*given, *mine]))
    assert [(found.label, found.source) for found in answers(handed_in, known)] == [
        ("cell 4", "helper = 3"),
        ("cell double", DOUBLE),
    ]


def test_all_right(source: Path) -> None:
    report = examined(source)
    assert points(report) == [3, 2, 1]
    assert report.points == 6
    assert report.scores == {"The sum": 1.0}
    assert [mark.reason for mark in report.marks] == ["", "", ""]


def test_a_mistake_costs_once(source: Path) -> None:
    report = examined(source, double="def double(x):\n    return 3 * x")
    assert points(report) == [1, 2, 1]  # shift is tried with a correct double
    assert report.marks[0].reason == "−2: not twice"


def test_helpers_in_other_cells_are_found(source: Path) -> None:
    report = examined(
        source,
        more=(cell("%matplotlib inline\nimport math\n\n\ndef helper(x):\n    return x * math.floor(2.5)"),),
        double="def plus(x):\n    return x + 1\n\n\ndef double(x):\n    return helper(x)",
        shift="def shift(x):\n    return plus(double(x))",
    )
    assert report.points == 6


@pytest.mark.parametrize(
    ("double", "why"),
    [
        ("", "double is not defined"),
        ("def double(x):\n    return 2 *", "SyntaxError"),
        ("raise RuntimeError('no')\n" + DOUBLE, "no"),
        ("def double(x):\n    return None", "not of the kind"),
        ("def double(x):\n    return 'text'", "not of the kind"),
        ("def double(x):\n    return object()", "returned a object"),
        ("def double(x):\n    return x * float('nan')", "not twice"),
        ("def double(x):\n    return (2 * x)[:1]", "not twice"),
        ("def double():\n    return 1", "TypeError"),
        ("double = 3", "not of the kind"),
        ("import os\nos._exit(0)\n" + DOUBLE, "ended itself"),
        ("def double(x):\n    import os\n    os._exit(0)", "ended itself"),
        (
            "def double(x):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)\n    os.abort()",
            "ended itself",
        ),
        ("import sys\nsys.exit()", "SystemExit"),
        (
            "from torch import allclose\nimport torch\ntorch.equal = lambda a, b: True\ndef double(x):\n    return x",
            "not twice",
        ),
    ],
)
def test_what_goes_wrong_costs_its_part_only(source: Path, double: str, why: str) -> None:
    report = examined(source, double=double)
    assert points(report)[1:] == [2, 1]
    assert report.marks[0].points <= 1
    assert why in report.marks[0].reason


@pytest.mark.parametrize("double", ["while True:\n    pass", "def double(x):\n    while True:\n        pass"])
def test_an_endless_loop_costs_its_part_only(source: Path, double: str) -> None:
    report = examined(source, double=double, seconds=2)
    assert points(report) == [0, 2, 1]
    assert "took longer than 2 s" in report.marks[0].reason


@pytest.mark.parametrize("end", ["while True:\n            pass", "import os\n        os._exit(0)"])
def test_what_ends_the_process_costs_the_tests_that_meet_it(source: Path, end: str) -> None:
    report = examined(source, double=f"def double(x):\n    if x.ndim == 1:\n        {end}\n    return 2 * x", seconds=2)
    assert points(report) == [1, 2, 1]
    assert not report.marks[0].verdicts[1].reason


def test_an_endless_loop_does_not_eat_the_time_of_all_parts(tmp_path: Path) -> None:
    tests = [graded_by(f"double-{i}", f"# Test {i}\nassert double({i}) == {2 * i}") for i in range(4)]
    last = graded_by("shift-values", "# One more\nassert shift(1) == 3")
    parts = [solution_of("double", DOUBLE), *tests, solution_of("shift", SHIFT), last]
    source = write(tmp_path / "hw.ipynb", [cell(SETUP, ("setup",)), *parts])
    report = examined(source, double="def double(x):\n    while True:\n        pass", count="", seconds=1)
    assert points(report) == [0, 1]
    assert ["took longer" in verdict.reason for verdict in report.marks[0].verdicts] == [True, True, False, False]
    assert "not tried: 2 tests of this part did not end" in report.marks[0].reason


@pytest.fixture
def forbidding(tmp_path: Path) -> Path:
    setup = "from json import dumps\n\nFORBIDDEN = ['advcourse.attacks', 'json']"
    test = graded_by("double-values", "# Twice\nassert double(1) == 2")
    return write(tmp_path / "hw.ipynb", [cell(setup, ("setup",)), solution_of("double", DOUBLE), test])


@pytest.mark.parametrize(
    "line",
    [
        "from advcourse.attacks import FGSM",
        "from advcourse.attacks.fgsm import FGSM",
        "from advcourse import attacks",
        "import advcourse.attacks.fgsm as mine",
        "import math, json",
        "from json import dumps, loads",
    ],
)
def test_what_is_forbidden_cannot_be_imported(forbidding: Path, line: str) -> None:
    inside = examined(forbidding, double=f"def double(x):\n    {line}\n    return 2 * x")
    assert f"is not to be used in this assignment (cell double, line 2: {line})" in inside.marks[0].reason
    above = examined(forbidding, double=f"{line}\n{DOUBLE}")
    assert f"is not to be used in this assignment (cell double, line 1: {line})" in above.marks[0].reason
    assert examined(forbidding, more=(cell(line),)).points == 1  # somebody compared; the answer does without


@pytest.mark.parametrize(
    "line",
    [
        "import advcourse.threat, jsonschema",
        "from advcourse.threat import Linf",
        "from advcourse import evaluation",  # which needs what is forbidden
        "from json import dumps",  # which the set-up imports: somebody copied its line
    ],
)
def test_all_else_can_be_imported(forbidding: Path, line: str) -> None:
    assert examined(forbidding, double=f"{line}\n{DOUBLE}").points == 1


def test_what_has_the_same_name_is_not_the_same(tmp_path: Path) -> None:
    setup = "def FGSM(ball): ...\n\nFORBIDDEN = ['advcourse.attacks']"
    test = graded_by("double-values", "# Twice\nassert double(1) == 2")
    source = write(tmp_path / "hw.ipynb", [cell(setup, ("setup",)), solution_of("double", DOUBLE), test])
    report = examined(source, double=f"from advcourse.attacks import FGSM\n{DOUBLE}", shift="", count="")
    assert "advcourse.attacks is not to be used" in report.marks[0].reason


@pytest.mark.parametrize("forbidden", ["'json'", "None", "[1]"])
def test_what_is_forbidden_is_a_list(tmp_path: Path, forbidden: str) -> None:
    test = graded_by("double-values", "# Twice\nassert double(1) == 2")
    setup = cell(f"FORBIDDEN = {forbidden}", ("setup",))
    known = read_assignment(write(tmp_path / "hw.ipynb", [setup, solution_of("double", DOUBLE), test]))
    with pytest.raises(ValueError, match="FORBIDDEN must be a list of modules by name, got"):
        Examiner(known)


def test_all_together_is_limited(source: Path) -> None:
    known = read_assignment(source)
    sleep = [Cell(f"cell {k}", f"import time\ntime.sleep({1 + k / 10})") for k in range(9)]
    report = Examiner(known, Limits(seconds=2, total=3))(sleep)
    assert report.points == 0
    assert all("3 s in all" in verdict.reason for mark in report.marks for verdict in mark.verdicts)


def test_cells_that_break_everything_end_nothing_else(source: Path) -> None:
    report = examined(source, more=(cell("import builtins\nbuiltins.compile = None"),))
    assert report.points == 0
    assert all(mark.reason for mark in report.marks)


def test_the_assignment_cannot_be_read(source: Path) -> None:
    report = examined(source, double=f"def double(x):\n    return len(open({str(source)!r}).read())")
    if report.refused:
        pytest.skip(f"on this system {report.refused}")
    assert "PermissionError" in report.marks[0].reason


def test_a_contest_without_a_number_has_no_score(source: Path) -> None:
    assert not examined(source, count=COUNT.replace(", 1", ", float('nan')")).scores
    assert not examined(source, count=COUNT.replace("ask(x), 1", "0, 99")).scores  # its test has failed


def test_reasons_are_short(source: Path) -> None:
    report = examined(source, shift="def shift(x):\n    raise ValueError('long' * 1000)", double=SHIFT)
    assert all(len(verdict.reason) <= 300 for mark in report.marks for verdict in mark.verdicts)
