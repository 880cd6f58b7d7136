"""Every link inside the built book leads somewhere, and no page needs another host."""

from collections import defaultdict
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from .conftest import PAGES


class Page(HTMLParser):
    """The names in a page that a link can point at, and what the page links to and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = defaultdict(str, {name: value or "" for name, value in attributes})
        self.anchors |= {found["id"], found["name"]} - {""}
        if tag == "a" and found["href"]:
            self.links.append(found["href"])
        elif tag == "link" and set(found["rel"].split()) & {"stylesheet", "preload", "icon", "modulepreload"}:
            self.loads.append(found["href"])
        elif found["src"]:
            self.loads.append(found["src"])


read = cache(Page)


@pytest.fixture(params=PAGES)
def path(request: pytest.FixtureRequest, site: Path) -> Path:
    return site / request.param


def test_internal_links_resolve(path: Path) -> None:
    dead = []
    for link in read(path).links + read(path).loads:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            continue
        target = (path.parent / unquote(url.path)).resolve() if url.path else path
        known = target.is_file() and (target.suffix != ".html" or unquote(url.fragment) in read(target).anchors)
        if not known:
            dead.append(link)
    assert dead == []


def test_nothing_is_loaded_from_another_host(path: Path) -> None:
    assert [load for load in read(path).loads if urlsplit(load).netloc] == []


def test_a_page_is_light(path: Path) -> None:
    pictures = {(path.parent / unquote(load)).resolve() for load in read(path).loads if load.endswith(".png")}
    weight = sum(file.stat().st_size for file in [path, *(picture for picture in pictures if picture.is_file())])
    assert weight < 3e6, f"{weight / 1e6:.1f} MB"


def test_external_links_are_well_formed(path: Path) -> None:
    for link in read(path).links:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            assert url.scheme in {"http", "https", "mailto"}, link
            assert url.scheme == "mailto" or "." in url.netloc, link
            assert " " not in link


def test_stylesheets_load_nothing_from_another_host(site: Path) -> None:
    for sheet in site.glob("_static/**/*.css"):
        text = sheet.read_text(encoding="utf-8").replace('"', "").replace("'", "")
        assert not any(f"{word}{host}" in text for word in ("url(", "@import ") for host in ("http", "//")), sheet


def test_assignments_do_not_lead_to_their_solutions(path: Path) -> None:
    if path.parent.name == "assignments":
        assert [link for link in read(path).links if "advcourse" in urlsplit(link).path] == []
