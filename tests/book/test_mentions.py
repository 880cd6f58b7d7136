"""Where a page says "chapter 3", a link leads there."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "book" / "_ext" / "mentions.py"


def extension() -> ModuleType:
    """book/_ext/mentions.py, which Sphinx loads by its path, too."""
    spec = importlib.util.spec_from_file_location("mentions", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


links = extension().links


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no chapter at all, 3 of them", []),
        ("In chapter 3.", [("chapter 3", 3)]),
        ("Chapter\n12 is", [("Chapter\n12", 12)]),
        ("chapters 8 and 9", [("8", 8), ("9", 9)]),
        ("chapters 2, 3, and 11 to 12", [("2", 2), ("3", 3), ("11", 11), ("12", 12)]),
        ("Chapters 2 or 3; 4 more", [("2", 2), ("3", 3)]),
        ("chapter 7's end", [("chapter 7", 7)]),
    ],
)
def test_mentions_are_found_and_nothing_is_lost(text: str, found: list[tuple[str, int]]) -> None:
    pieces = list(links(text))
    assert "".join(words for words, _ in pieces) == text
    assert [(words, number) for words, number in pieces if number is not None] == found


def test_a_page_leads_to_the_chapters_that_it_names(site: Path) -> None:
    page = (site / "book" / "chapters" / "05_soft_label.html").read_text()
    assert re.search(r'href="03_white_box.html"><span class="doc">[Cc]hapter\s+3</span>', page)
    prose = re.sub(r"<(title|pre|h\d)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"[Cc]hapter\s+3\b(?!</span>)", prose)
