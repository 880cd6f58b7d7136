"""An assignment: one notebook with its solutions and tests, in the format of nbgrader."""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ..files import sha256


@dataclass(frozen=True)
class Cell:
    """Code, and what messages call it."""

    label: str
    source: str


@dataclass(frozen=True)
class Test:
    """A cell that passes or raises. In a contest it binds `score`, of which more is better.

    Attributes:
        name: its `grade_id`.
        title: its first line, a comment.
        source: all of it.
        points: what passing it gives.
        contest: whether its score goes to the leaderboard.
    """

    name: str
    title: str
    source: str
    points: float
    contest: bool


@dataclass(frozen=True)
class Part:
    """A task: cells to fill in, and the tests that follow them.

    Attributes:
        name: the `grade_id` of its first cell.
        solution: the instructor's cells.
        tests: in order.
    """

    name: str
    solution: tuple[Cell, ...]
    tests: tuple[Test, ...]

    @property
    def max(self) -> float:
        return sum(test.points for test in self.tests)

    @property
    def names(self) -> list[str]:
        """What the solution defines, and the tests may use."""
        found: list[str] = []
        for statement in ast.parse("\n".join(cell.source for cell in self.solution)).body:
            if isinstance(statement, ast.FunctionDef):
                found.append(statement.name)
            if isinstance(statement, ast.Assign):
                found += [target.id for target in statement.targets if isinstance(target, ast.Name)]
        return found


@dataclass(frozen=True)
class Assignment:
    """What an instructor's notebook asks for.

    Attributes:
        name: of its file.
        setup: the cells tagged `setup`, which both sides run.
        parts: in order; each may use those before it.
        given: the text of all cells that students get as they are.
        checksum: of the file.
    """

    name: str
    setup: Cell
    parts: tuple[Part, ...]
    given: frozenset[str]
    checksum: str


def read_notebook(path: Path) -> NotebookNode:
    """A notebook, or the text that it is paired with.

    Raises:
        ValueError: if it is neither.
    """
    try:
        if path.suffix.lower() == ".ipynb":
            raw = path.read_bytes()
            return nbformat.reads(raw.decode(json.detect_encoding(raw)), as_version=4)
        import jupytext

        return jupytext.read(path)
    except (OSError, ImportError):
        raise
    except Exception as error:  # a library for each format, and each raises as it likes
        raise ValueError(f"{path.name} is not a notebook: {error}") from None


def find_assignment(name: str, folder: Path = Path("assignments")) -> Path:
    """The path of that name, or else the one text in the folder whose name begins so.

    Raises:
        FileNotFoundError: if there is none, or several.
    """
    if Path(name).is_file():
        return Path(name)
    found = sorted(folder.glob(f"{name}*.md"))
    if len(found) != 1:
        there = ", ".join(path.stem for path in sorted(folder.glob("*.md"))) or "none"
        raise FileNotFoundError(f"{name} is neither a notebook nor one assignment in {folder}/ (there: {there})")
    return found[0]


def grading(cell: NotebookNode) -> dict[str, str | float | bool]:
    """What nbgrader knows about a cell: `grade_id`, `solution`, `grade`, `points`. Nothing for others."""
    return cell.metadata.get("nbgrader") or {}


def code_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def read_assignment(path: Path) -> Assignment:
    """An instructor's notebook.

    Cells to fill in have nbgrader's `solution`, tests its `grade` and `points`. Tests belong to the cells to fill in
    before them. Code that both sides need is in cells tagged `setup`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a notebook, or one without tests, or a test comes before all tasks.
    """
    setup, given = [], set()
    parts: list[tuple[list[Cell], list[Test]]] = []
    for cell in code_cells(read_notebook(path)):
        about, tags = grading(cell), cell.metadata.get("tags", [])
        if about.get("solution"):
            if not parts or parts[-1][1]:
                parts.append(([], []))
            parts[-1][0].append(Cell(str(about["grade_id"]), cell.source))
        elif about.get("grade"):
            if not parts:
                raise ValueError(f"{path}: the test {about['grade_id']} comes before all cells to fill in")
            title = cell.source.partition("\n")[0].lstrip("# ")
            parts[-1][1].append(
                Test(str(about["grade_id"]), title, cell.source, float(about["points"]), "contest" in tags)
            )
        else:
            given.add(cell.source.strip())
            if "setup" in tags:
                setup.append(cell.source)
    if not any(tests for _, tests in parts):
        raise ValueError(f"{path} has no tests: mark them with nbgrader's 'autograder tests'")
    return Assignment(
        path.stem,
        Cell("set-up", "\n".join(setup)),
        tuple(Part(cells[0].label, tuple(cells), tuple(tests)) for cells, tests in parts),
        frozenset(given),
        sha256(path.read_bytes()),
    )


def answers(submission: NotebookNode, assignment: Assignment) -> list[Cell]:
    """What a student wrote: all code but what was given, and tests."""
    found = []
    for number, cell in enumerate(code_cells(submission), 1):
        about = grading(cell)
        if cell.source.strip() not in assignment.given and (about.get("solution") or not about.get("grade")):
            found.append(Cell(f"cell {about.get('grade_id', number)}", cell.source))
    return found
