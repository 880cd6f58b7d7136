"""The ledger: exact under concurrency, whole after a crash."""

import multiprocessing
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advcourse.serve import Conflict, Forgotten, Ledger, Overdrawn, sketch

POINTS = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def settled(ledger: Ledger, request: str, labels: Tensor, client: str = "a", points: Tensor | None = None) -> None:
    points = torch.zeros(len(labels), 1, 4, 4) if points is None else points
    ledger.charge(client, request, b"", len(labels))
    ledger.settle(client, request, b"answer", points, labels)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5)), max_size=20), st.integers(0, 20))
def test_it_adds_up_and_stops_at_the_budget(asked: list[tuple[str, int]], budget: int) -> None:
    ledger, used = Ledger(budget=budget), {"a": 0, "b": 0}
    for number, (client, queries) in enumerate(asked):
        if used[client] + queries > budget:
            with pytest.raises(Overdrawn, match=f"{queries} queries asked, {budget - used[client]} of {budget} left"):
                ledger.charge(client, str(number), b"", queries)
        else:
            assert ledger.charge(client, str(number), b"", queries) is None
            used[client] += queries
        assert {client: ledger.used(client) for client in used} == used
    assert ledger.clients() == [client for client in "ab" if used[client]]


def test_a_known_request_is_answered_as_before_and_charged_once() -> None:
    ledger = Ledger(budget=3)
    assert ledger.charge("a", "x", b"what", 3) is None
    assert ledger.charge("a", "x", b"what", 3) is None  # its answer never came: to be computed again
    ledger.settle("a", "x", b"answer", POINTS, torch.tensor([1, 2, -1]))
    for _ in range(2):
        assert ledger.charge("a", "x", b"what", 3) == b"answer"
    assert ledger.used("a") == 3
    with pytest.raises(Conflict):
        ledger.charge("a", "x", b"another", 3)
    assert ledger.charge("b", "x", b"another", 2) is None  # ids belong to a client
    assert (ledger.used("a"), ledger.used("b")) == (3, 2)


def test_answers_are_forgotten_and_charges_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("advcourse.serve.ledger.time.time", lambda: clock[0])
    ledger = Ledger(keep=60)
    settled(ledger, "old", torch.tensor([1]))
    clock[0] += 59
    settled(ledger, "young", torch.tensor([2]))
    assert ledger.charge("a", "old", b"", 1) == b"answer"
    clock[0] += 2
    settled(ledger, "new", torch.tensor([3]))
    with pytest.raises(Forgotten, match="more than 60 seconds ago"):
        ledger.charge("a", "old", b"", 1)
    assert ledger.charge("a", "young", b"", 1) == b"answer"
    assert ledger.used("a") == 3
    assert ledger.record("a").label.tolist() == [1, 2, 3]


def test_the_record_says_what_was_asked() -> None:
    ledger = Ledger()
    settled(ledger, "1", torch.tensor([7, -1, 300]), points=POINTS)
    settled(ledger, "2", torch.tensor([4]), client="b")
    settled(ledger, "3", torch.tensor([5]), points=POINTS[:1])
    ledger.charge("a", "unanswered", b"", 2)
    record = ledger.record("a")
    assert record.label.tolist() == [7, -1, 300, 5]
    assert record.request.tolist() == [1, 1, 1, 3]
    assert (record.time.diff() >= 0).all()
    assert torch.equal(record.sketch, torch.cat([sketch(POINTS), sketch(POINTS[:1])]).float())
    nobody = ledger.record("c")
    assert nobody.label.shape == nobody.time.shape == nobody.request.shape == (0,)
    assert nobody.sketch.shape == (0, 64)


@given(st.integers(1, 3000), st.integers(0, 100))
def test_sketches_keep_distances(d: int, seed: int) -> None:
    a, b = torch.rand(2, 1, d, generator=torch.Generator().manual_seed(seed))
    apart = (sketch(a).float() - sketch(b).float()).norm()
    assert (a - b).norm() * 0.5 - 2e-2 <= apart <= (a - b).norm() * 1.6 + 2e-2
    assert torch.equal(sketch(a), sketch(a.clone()))


def test_a_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    first = Ledger(path, budget=10)
    settled(first, "x", torch.tensor([1, 2]))
    first.charge("a", "y", b"y", 3)
    first.close()
    second = Ledger(path, budget=10)
    assert second.used("a") == 5
    assert second.charge("a", "x", b"", 2) == b"answer"
    assert second.charge("a", "y", b"y", 3) is None
    with pytest.raises(Overdrawn):
        second.charge("a", "z", b"", 6)
    assert Ledger(path, budget=20).charge("a", "z", b"", 6) is None


@pytest.mark.parametrize("content", [b"not a database" * 100, None], ids=["text", "another database"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is None:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE mine (x)")
        db.commit()
        db.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes() if content else None
    with pytest.raises(ValueError, match=r"ledger"):
        Ledger(path)
    if content:
        assert path.read_bytes() == before
    else:
        assert sqlite3.connect(path).execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    with pytest.raises(ValueError, match="cannot be the ledger"):
        Ledger(tmp_path / "missing" / "file")


def asking(charge: Callable[[str], None], name: str, times: int) -> int:
    paid = 0
    for i in range(times):
        try:
            charge(f"{name}-{i}")
            paid += 1
        except Overdrawn:
            pass
    return paid


def test_threads_share_a_budget_exactly() -> None:
    ledger, paid = Ledger(budget=100), []
    threads = [
        threading.Thread(
            target=lambda n=n: paid.append(asking(lambda i: ledger.charge("a", i, b"", 1), str(n), 40))  # type: ignore[misc]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(paid) == 100
    assert ledger.used("a") == 100


def ask_from_a_process(path: Path, name: str, times: int) -> int:
    ledger = Ledger(path, budget=100)
    return asking(lambda i: ledger.charge("a", i, b"", 1), name, times)


def test_processes_share_a_file_exactly(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paid = pool.starmap(ask_from_a_process, [(path, "p", 70), (path, "q", 70)])
    assert sum(paid) == 100
    assert Ledger(path).used("a") == 100


def test_an_error_within_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    with pytest.raises(sqlite3.Error):
        ledger.charge("a", "x", None, 1)  # type: ignore[arg-type]
    assert ledger.used("a") == 0
    assert ledger.clients() == []
    assert ledger.charge("a", "x", b"", 2) is None
    assert ledger.used("a") == 2
