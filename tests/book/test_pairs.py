"""The text and the notebook of every chapter and every assignment are in step and were run from top to bottom, and
chapters claim something."""

import jupytext
import nbformat
import pytest
from nbformat import NotebookNode

from tools.execute import ASSIGNMENTS, CHAPTERS, WIDGET_VIEW, setup_source

TEXTS = [*sorted(CHAPTERS.glob("*.md")), *sorted(ASSIGNMENTS.glob("*.md"))]


def test_no_chapter_lacks_its_other_half() -> None:
    assert TEXTS
    notebooks = [*CHAPTERS.glob("*.ipynb"), *ASSIGNMENTS.glob("*.ipynb")]
    assert {text.stem for text in TEXTS} == {notebook.stem for notebook in notebooks}


@pytest.fixture(params=TEXTS, ids=lambda text: text.stem)
def text(request: pytest.FixtureRequest) -> NotebookNode:
    return jupytext.read(request.param)


@pytest.fixture
def notebook(request: pytest.FixtureRequest, text: NotebookNode) -> NotebookNode:
    return nbformat.read(request.node.callspec.params["text"].with_suffix(".ipynb"), as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_in_step(text: NotebookNode, notebook: NotebookNode) -> None:
    def cells(pair: NotebookNode) -> list[tuple[str, str, dict[str, object]]]:
        return [(cell.cell_type, cell.source, cell.metadata) for cell in pair.cells]

    assert cells(notebook) == cells(text), "run `make execute`"


def test_run_once_from_top_to_bottom(notebook: NotebookNode) -> None:
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))


def test_nothing_failed_and_nothing_depends_on_a_kernel(notebook: NotebookNode) -> None:
    assert "widgets" not in notebook.metadata
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert WIDGET_VIEW not in output.get("data", {})
            assert "✗" not in str(output)


@pytest.mark.parametrize("text", sorted(CHAPTERS.glob("*.md")), indirect=True, ids=lambda text: text.stem)
def test_four_claims_in_cells_that_are_compared(notebook: NotebookNode) -> None:
    compared = [cell for cell in code(notebook) if "nbval-ignore-output" not in cell.metadata.get("tags", [])]
    printed = "".join(output.get("text", "") for cell in compared for output in cell.outputs)
    assert sum(line.startswith("✓ ") for line in printed.splitlines()) >= 4


def test_figures_are_described(notebook: NotebookNode) -> None:
    for cell in code(notebook):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), f"no alt text:\n{cell.source}"


def test_set_up_cell_is_first(text: NotebookNode) -> None:
    assert code(text)[0].metadata == {"tags": ["remove-cell"]}
    assert code(text)[0].source == setup_source(), "run `make execute`"
