"""What Jupyter Book 1.x leaves to do for this book."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from shutil import copy2
from typing import Any

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles
from typer.cli import get_docs_for_click

from advcourse.cli import app as command_line


def append_help(app: Sphinx, page: str, source: list[str]) -> None:
    """The command line's page is written by the command line."""
    if page == "book/reference/cli":
        command = typer.main.get_command(command_line)
        help_text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="advcourse", indent=1)
        source[0] += "\n" + help_text.replace("```console\n$ ", "```text\n")


def offer_text(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """A chapter is edited as its .md and downloaded as either; the theme only knows the .ipynb. Starters have none."""
    notebook = context.get("sourcename", "")
    text = Path(notebook.removesuffix(".ipynb") + ".md")
    if not notebook.endswith(".ipynb") or not Path(app.srcdir, text).exists():
        return
    copy = Path(app.outdir, "_sources", text)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy2(Path(app.srcdir, text), copy)
    for group in context["header_buttons"]:
        for position, button in enumerate(group.get("buttons", [])):
            url = button.get("url", "").removesuffix(".ipynb") + ".md"
            if button.get("label") == "source-edit-button":
                button["url"] = url
            elif button.get("label") == "download-source-button":
                group["buttons"].insert(
                    position + 1, button | {"text": ".md", "url": url, "label": "download-text-button"}
                )
                break


def hide_repository(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """The repository holds the assignments' solutions: students who came for one of these are not led there."""
    if page.startswith("book/assignments/"):
        leading = "launch-buttons", "source-buttons"
        context["header_buttons"] = [each for each in context["header_buttons"] if each.get("label") not in leading]


def load_late(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Pictures below the first screen are fetched after the page, which keeps their places, so that nothing jumps."""
    files = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}

    def sized(picture: re.Match[str]) -> str:
        width, height = struct.unpack(">II", files[picture[2]].read_bytes()[16:24])  # of a PNG
        return f'{picture[1]} loading="lazy" width="{width}" height="{height}"'

    context["body"] = re.sub(r'(<img [^>]*?src="[./]*_images/([^"/]+\.png)")', sized, context.get("body", ""))


def number_by_file(assign: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """A chapter has the number of its file, in headings, figures and equations, whichever chapters are there."""

    def assign_section_numbers(collector: object, env: BuildEnvironment) -> list[str]:
        rewritten = assign(collector, env)
        for page, numbers in env.toc_secnumbers.items():
            if named := re.fullmatch(r"book/chapters/(\d\d)_\w+", page):
                for anchor, number in numbers.items():
                    numbers[anchor] = (int(named[1]), *number[1:])
                for node in [env.titles[page], *env.tocs[page].findall(nodes.reference)]:
                    if "secnumber" in node:
                        node["secnumber"] = [int(named[1]), *node["secnumber"][1:]]
        return rewritten

    return assign_section_numbers


def setup(app: Sphinx) -> dict[str, bool]:
    # Jupyter Book always loads sphinx-thebe, whose settings throw an error and whose code is on another host.
    app.setup_extension("sphinx_thebe")
    app.registry.css_files = [css for css in app.registry.css_files if css[0] != "sphinx-thebe.css"]
    for listeners in app.events.listeners.values():
        listeners[:] = [listener for listener in listeners if listener.handler.__module__ != "sphinx_thebe"]

    # Figures take their numbers from the sections as soon as these have theirs; no event comes in between.
    collector = TocTreeCollectorWithStyles
    collector.assign_section_numbers = number_by_file(collector.assign_section_numbers)

    app.connect("source-read", append_help)
    # Sphinx copies a changed stylesheet only when it writes some page: let one page always be out of date.
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: ["book/index"])
    app.connect("html-page-context", offer_text, priority=900)  # after the theme, which makes its buttons at 501
    app.connect("html-page-context", hide_repository, priority=900)
    app.connect("html-page-context", load_late)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
