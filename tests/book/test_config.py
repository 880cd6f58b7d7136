"""The configuration parses, and the repository's public address has one home."""

import os
from pathlib import Path

import pytest
import yaml

from tools.execute import setup_source

from .conftest import PAGES, ROOT

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
URL = CONFIG["repository"]["url"]
OWNER, NAME = URL.removeprefix("https://github.com/").split("/")
CHAPTERS = [Path(page).with_suffix("") for page in PAGES if page.startswith("book/chapters/")]


@pytest.mark.parametrize("name", ["_config.yml", "_toc.yml", "CITATION.cff", ".github/workflows/book.yml"])
def test_parses(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), dict)


def test_binder_installs_what_the_constraints_say() -> None:
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text(encoding="utf-8"))
    assert any(str(package).startswith("python=3.") for package in environment["dependencies"])
    build = ROOT / "binder" / "postBuild"
    assert "-c constraints.txt" in build.read_text(encoding="utf-8")
    assert os.access(build, os.X_OK)


@pytest.mark.parametrize("page", CHAPTERS, ids=str)
def test_buttons_follow_the_address(site: Path, page: Path) -> None:
    html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    branch = CONFIG["repository"]["branch"]
    for url in (
        f"https://colab.research.google.com/github/{OWNER}/{NAME}/blob/{branch}/{page}.ipynb",
        f"https://mybinder.org/v2/gh/{OWNER}/{NAME}/{branch}?urlpath=lab/tree/{page}.ipynb",
        f"{URL}/edit/{branch}/{page}.md",
        f"{URL}/issues/new?title=",
        f"_sources/{page}.ipynb",
        f"_sources/{page}.md",
    ):
        assert f'href="{url}' in html or f'href="../../{url}' in html, url


def test_no_other_file_names_the_address() -> None:
    kinds = {".py", ".md", ".ipynb", ".yml", ".toml", ".txt", ".cff", ".cfg", ".css", ".js", ".svg", ".json", ""}
    folders = ["src", "book", "tests", "tools", "binder", ".github", ".ci"]
    files = [*ROOT.glob("*"), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    # The set-up cell is written from _config.yml, as the text of a chapter and as JSON.
    written = f"git+{URL}"
    assert written in setup_source()
    named = [
        file.relative_to(ROOT).as_posix()
        for file in files
        if file.is_file() and file.suffix in kinds
        if f"{OWNER}/{NAME}" in file.read_text(encoding="utf-8", errors="ignore").replace(written, "")
    ]
    assert named == ["_config.yml"]
