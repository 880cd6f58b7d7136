"""Runs chapters and assignments and writes their notebooks, and chapters' first figures as covers: the only thing that
writes either.

    python tools/execute.py [book/chapters/NN_name.md ...]        (all of them when none is named)

Running an unchanged chapter again gives the same bytes, so a diff in a notebook is a change in what was found.
"""

from __future__ import annotations

import os
import re
import sys
import time
from base64 import b64decode
from hashlib import sha1
from pathlib import Path

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from advcourse.files import write_whole
from advcourse.widgets import WIDGET_VIEW

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "book" / "chapters"
COVERS = ROOT / "book" / "covers"
ASSIGNMENTS = ROOT / "assignments"

# One thread: sums in another order round otherwise. A fixed hash seed: sets print in the same order.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
# Pictures without matplotlib's version number in their metadata.
KERNEL_ARGUMENTS = ["--InlineBackend.print_figure_kwargs={'bbox_inches': 'tight', 'metadata': {'Software': None}}"]

SETUP_HEAD = ":tags: [remove-cell]\n\n"
SETUP = """\
# For Colab and the like: install the course, beside whatever PyTorch is there.
import importlib.util

if importlib.util.find_spec("advcourse") is None:
    %pip install -q scikit-learn "advcourse[serve] @ git+{url}\""""


def setup_source() -> str:
    """The first code cell of every chapter, with the address that _config.yml names."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return SETUP.format(url=config["repository"]["url"])


def refresh_setup(chapter: Path) -> None:
    """Puts the address that _config.yml names into the set-up cell of a chapter, and touches nothing else."""
    text = chapter.read_text(encoding="utf-8")
    first = re.search(r"```\{code-cell\} ipython3\n(.*?)```", text, re.DOTALL)
    if first is None or not first[1].startswith(SETUP_HEAD):
        sys.exit(f"{chapter.name}: the first code cell must be the set-up cell, begun with\n\n{SETUP_HEAD}")
    filled = text[: first.start(1)] + SETUP_HEAD + setup_source() + "\n" + text[first.end(1) :]
    if filled != text:
        write_whole(chapter, filled.encode())


def execute(chapter: Path) -> NotebookNode:
    """Runs one chapter from its text and writes the notebook beside it, which is returned."""
    source = jupytext.read(chapter)
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": source.metadata["kernelspec"]})
    for index, cell in enumerate(source.cells):
        identity = sha1(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        if any(identity == other.id for other in notebook.cells):
            identity += f"-{index}"
        notebook.cells.append(NotebookNode(cell, id=identity))

    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=KERNEL_ARGUMENTS,
        resources={"metadata": {"path": str(chapter.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        broken = [any(output.output_type == "error" for output in cell.get("outputs", [])) for cell in notebook.cells]
        sys.exit(f"{chapter.name}: cell {broken.index(True) + 1} failed; the notebook is left as it was\n\n{error}")

    notebook.metadata.pop("language_info", None)  # names the patch version of Python
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    write_whole(chapter.with_suffix(".ipynb"), text.encode())
    return notebook


def write_cover(chapter: Path, notebook: NotebookNode) -> None:
    """The first figure of a chapter, for the list of contents."""
    pictures = [
        output["data"].get("image/png")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    write_whole(COVERS / f"{chapter.stem}.png", b64decode(next(filter(None, pictures))))


def main(names: list[str]) -> None:
    os.environ |= ENVIRONMENT
    everything = [*sorted(CHAPTERS.glob("*.md")), *sorted(ASSIGNMENTS.glob("*.md"))]
    for chapter in [Path(name).resolve().with_suffix(".md") for name in names] or everything:
        start = time.perf_counter()
        refresh_setup(chapter)
        notebook = execute(chapter)
        if chapter.parent == CHAPTERS:
            write_cover(chapter, notebook)
        print(f"{chapter.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
