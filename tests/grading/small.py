"""An assignment that is graded in no time, and submissions to it."""

from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

SETUP = "import torch\n\nx = torch.arange(4.0)\n\n\ndef ask(rows):\n    return rows.sum()"
DOUBLE = "def double(x):\n    return 2 * x"
SHIFT = "def shift(x):\n    return double(x) + 1"
COUNT = "def count(ask, x):\n    return ask(x), 1"


def cell(source: str, tags: tuple[str, ...] = (), **about: Any) -> NotebookNode:
    metadata: dict[str, Any] = {"tags": list(tags)} if tags else {}
    if about:
        metadata["nbgrader"] = {"grade": False, "solution": False, "locked": False, "schema_version": 3, **about}
    return new_code_cell(source, metadata=metadata)


def graded_by(name: str, source: str, points: int = 1, tags: tuple[str, ...] = ()) -> NotebookNode:
    return cell(source, tags, grade=True, grade_id=name, points=points)


def solution_of(name: str, source: str) -> NotebookNode:
    return cell(source, solution=True, grade_id=name)


def write(path: Path, cells: list[NotebookNode]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def assignment(path: Path) -> Path:
    """Three parts: double (2 + 1 points), shift (2), count (1, a contest)."""
    return write(
        path,
        [
            cell(SETUP, ("setup",)),
            solution_of("double", DOUBLE),
            graded_by("double-values", "# Values are doubled\nassert torch.equal(double(x), x + x), 'not twice'", 2),
            graded_by("double-shape", "# The shape stays\nassert double(x.view(2, 2)).shape == (2, 2)"),
            cell("print(double(x))"),
            solution_of("shift", SHIFT),
            graded_by("shift-values", "# One more than double\nassert torch.equal(shift(x), 2 * x + 1)", 2),
            solution_of("count", COUNT),
            graded_by("count-score", "# The sum\ntotal, score = count(ask, x)\nassert total == 6", 1, ("contest",)),
        ],
    )


def submission(
    path: Path, double: str = DOUBLE, shift: str = SHIFT, count: str = COUNT, more: tuple[NotebookNode, ...] = ()
) -> Path:
    """What a student hands in, with these cells; a cell that is empty is missing."""
    filled = [("double", double), ("shift", shift), ("count", count)]
    cells = [solution_of(name, source) for name, source in filled if source]
    return write(path, [cell(SETUP, ("setup",)), *more, *cells])
