"""Makes what students get, book/assignments/*.ipynb, out of what instructors have, assignments/*.md.

    python tools/make_starters.py

Solutions and hidden tests are taken out by nbgrader's own preprocessors, so a notebook can also go through nbgrader.
"""

from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearHiddenTests,
    ClearOutput,
    ClearSolutions,
    ComputeChecksums,
    LockCells,
)

from advcourse.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "assignments"
STARTERS = ROOT / "book" / "assignments"


def starter(source: Path) -> NotebookNode:
    """The notebook that students get.

    Args:
        source: the instructor's, as text.
    """
    notebook = jupytext.read(source)
    for step in CheckCellMetadata, LockCells, ClearSolutions, ClearOutput, ClearHiddenTests, ComputeChecksums:
        notebook, _ = step().preprocess(notebook, {})
    for number, cell in enumerate(notebook.cells):
        cell.id = cell.metadata.get("nbgrader", {}).get("grade_id", f"cell-{number}")
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    nbformat.validate(notebook)
    return notebook


def main() -> None:
    for source in sorted(SOURCES.glob("*.md")):
        text = nbformat.writes(starter(source)) + "\n"
        write_whole(STARTERS / f"{source.stem}.ipynb", text.encode())
        print(f"book/assignments/{source.stem}.ipynb")


if __name__ == "__main__":
    main()
