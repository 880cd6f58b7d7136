"""The reproduction ledger says what the chapters found, and nothing else."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

BOOK = Path(__file__).parents[2] / "book"


def extension() -> ModuleType:
    """book/_ext/ledger.py, which Sphinx loads by its path, too."""
    spec = importlib.util.spec_from_file_location("ledger", BOOK / "_ext" / "ledger.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ledger = extension()
ENTRIES = ledger.read_ledger()
TRIED = [entry for entry in ENTRIES if entry.chapter]


def test_every_chapter_of_the_lecture_is_in_it() -> None:
    assert {entry.chapter[:2] for entry in TRIED} >= {f"{number:02}" for number in range(2, 12)}


@pytest.mark.parametrize("entry", TRIED, ids=lambda entry: entry.claim[:40])
def test_numbers_and_claim_are_the_chapters(entry: object) -> None:
    ours, index = ledger.found(entry)
    assert "{" not in ours
    printed = ledger.printed(entry.chapter)[index]  # type: ignore[attr-defined]
    numbers = re.findall(r"\{(\d)\}", entry.ours)  # type: ignore[attr-defined]
    assert numbers
    assert len(printed) > 5


def test_no_number_of_ours_is_typed_in() -> None:
    for entry in TRIED:
        typed = re.sub(r"\{\d\}", "", entry.ours)
        assert not re.search(r"\d+(\.\d+)? ?%", typed), entry.claim


def test_a_changed_number_changes_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in TRIED if entry.chapter == "02_adversarial_examples")
    cells = [text.replace("FGSM    31%", "FGSM    99%") for text in ledger.printed(entry.chapter)]
    monkeypatch.setattr(ledger, "printed", lambda chapter: cells)
    assert "99%" in ledger.found(entry)[0]


def test_what_cannot_be_found_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = TRIED[0]
    cells = ledger.printed(entry.chapter)
    monkeypatch.setattr(ledger, "printed", lambda chapter: [text.replace("✓", "✗") for text in cells])
    with pytest.raises(ledger.ExtensionError, match="does not claim"):
        ledger.found(entry)
    monkeypatch.setattr(
        ledger, "printed", lambda chapter: [line for text in cells for line in text.splitlines() if "✓" in line]
    )
    with pytest.raises(ledger.ExtensionError, match="did not print"):
        ledger.found(entry)


@pytest.mark.parametrize(
    "wrong",
    [{"verdict": "perhaps"}, {"verdict": "holds", "find": ""}, {"verdict": "scale", "note": ""}, {"verdict": "open"}],
)
def test_incomplete_entries_are_refused(wrong: dict[str, str]) -> None:
    whole = {"claim": "c", "paper": "p", "verdict": "holds", "ours": "o", "chapter": "02", "find": "f", "claimed": "l"}
    with pytest.raises(ledger.ExtensionError):
        ledger.Entry("topic", **whole | wrong)


def test_the_page_shows_every_row(site: Path) -> None:
    page = (site / "book" / "ledger.html").read_text(encoding="utf-8")
    assert page.count("#cell-") == len(TRIED)
    assert page.count("<tr") >= len(ENTRIES)
