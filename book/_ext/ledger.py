"""The reproduction ledger: what the lecture states, beside what the chapters printed when they were run.

book/ledger.yml holds the statements, and no number of ours: these are found in the chapters' stored outputs, and each
links to the cell that printed it. A statement whose numbers or whose claim cannot be found stops the build.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

BOOK = Path(__file__).resolve().parent.parent
VERDICTS = {
    "holds": "holds",
    "direction": "direction holds",
    "scale": "not at this scale",
    "no": "does not hold",
    "open": "not tried here",
}


@dataclass(frozen=True)
class Entry:
    """A statement of the lecture.

    Attributes:
        topic: what it is about.
        claim: what the lecture says, in our words.
        paper: the number in the paper, with its citation, in MyST.
        setting: of our experiment.
        ours: what we found, with {} for each number that `find` captures; {2} is the second.
        verdict: a key of VERDICTS.
        chapter: the file that shows it, without a suffix; nothing if it was not tried.
        find: a regular expression for the text that a cell of the chapter has printed.
        claimed: a line of claims in that chapter that bears the verdict.
        note: why it does not hold, or why it was not tried.
    """

    topic: str
    claim: str
    paper: str
    verdict: str
    setting: str = ""
    ours: str = ""
    chapter: str = ""
    find: str = ""
    claimed: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        tried = self.verdict != "open"
        if self.verdict not in VERDICTS or tried != bool(self.chapter and self.find and self.ours and self.claimed):
            raise ExtensionError(f"ledger: incomplete, or an unknown verdict: {self.claim}")
        if self.verdict in ("scale", "no", "open") and not self.note:
            raise ExtensionError(f"ledger: a note must say why: {self.claim}")


def read_ledger() -> list[Entry]:
    """All statements, in order."""
    return [
        Entry(topic, **entry)
        for topic, entries in yaml.safe_load((BOOK / "ledger.yml").read_text(encoding="utf-8")).items()
        for entry in entries
    ]


@cache
def printed(chapter: str) -> list[str]:
    """What each cell of a chapter has printed; nothing for text."""
    notebook = nbformat.read(BOOK / "chapters" / f"{chapter}.ipynb", as_version=4)
    return [
        "".join(
            output.get("text", "") or output.get("data", {}).get("text/markdown", "")
            for output in cell.get("outputs", [])
        )
        for cell in notebook.cells
    ]


def found(entry: Entry) -> tuple[str, int]:
    """Our numbers for an entry in words, and the index of the cell that printed them.

    Raises:
        ExtensionError: if the chapter did not print such a thing, or does not make the claim.
    """
    cells = printed(entry.chapter)
    if not any(f"✓ {entry.claimed}" in line for text in cells for line in text.splitlines()):
        raise ExtensionError(f"ledger: {entry.chapter} does not claim “{entry.claimed}”")
    for index, text in enumerate(cells):
        if match := re.search(entry.find, text, re.MULTILINE | re.DOTALL):
            return entry.ours.format("", *match.groups()), index
    raise ExtensionError(f"ledger: {entry.chapter} did not print “{entry.find}”")


class Ledger(SphinxDirective):
    """A table for each topic."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(BOOK / "ledger.yml"))
        entries = read_ledger()
        for chapter in {entry.chapter for entry in entries if entry.chapter}:
            self.env.note_dependency(str(BOOK / "chapters" / f"{chapter}.ipynb"))
        lines: list[str] = []
        for topic in dict.fromkeys(entry.topic for entry in entries):
            rows = [row(entry) for entry in entries if entry.topic == topic]
            lines += [
                f"## {topic}",
                "",
                "| the lecture says | the paper found | we find | verdict |",
                "|:--|:--|:--|:--|",
                *rows,
                "",
            ]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def row(entry: Entry) -> str:
    """A line of the table, in MyST."""
    ours = entry.note
    if entry.chapter:
        numbers, index = found(entry)
        where = f'<a href="chapters/{entry.chapter}.html#cell-{index}">chapter {int(entry.chapter[:2])}</a>'
        ours = " ".join(filter(None, [f"**{numbers}**: {entry.setting} ({where}).", entry.note]))
    return f"| {entry.claim} | {entry.paper} | {ours} | {VERDICTS[entry.verdict]} |".replace("\n", " ")


def anchor_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Every code cell of a chapter can be linked to, as #cell-N."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            cell["ids"].append(f"cell-{cell['cell_index']}")


def name_tables(app: Sphinx, doctree: nodes.document) -> None:
    """The stylesheet lays the ledger's tables out in another way on a phone."""
    if app.env.docname == "book/ledger":
        for table in doctree.findall(nodes.table):
            table["classes"].append("ledger")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("ledger", Ledger)
    app.connect("doctree-read", anchor_cells)
    app.connect("doctree-read", name_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
