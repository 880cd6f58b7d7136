"""A model behind the prediction API as a target: exact when all is well, patient and discreet when it is not."""

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import nn

from advcourse.attacks import SignOPT, Square
from advcourse.oracles import BudgetExhausted, Http, Labels, Oracle, Scores
from advcourse.serve import Ledger, create_app, running
from advcourse.threat import Linf

from .helpers import Linear, images, network

KEY = "key-of-a-student"
X = images(3, (3,), dtype=torch.float32)


@contextmanager
def served(target: Any, mode: str, shape: tuple[int, ...], **settings: Any) -> Iterator[tuple[str, Ledger]]:
    book = Ledger(budget=settings.pop("budget", None))
    with running(create_app(target, keys={KEY: "student"}, mode=mode, shape=shape, ledger=book, **settings)) as url:
        yield url, book


def says(content: Any, status: int = 200, **headers: Any) -> bytes:
    """An HTTP response."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


INFO = {"mode": "labels", "shape": [3], "max_rows": 2}
HANG_UP, HANG = b"", None


class Scripted:
    """A server that reads a request, gives the next answer of a list, and hangs up."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self.answers = list(answers)
        self.ids: list[str] = []
        self.bodies: list[bytes] = []
        self.requests = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while self.answers:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            with client, client.makefile("rb") as stream:
                lines = [line.decode().strip() for line in iter(stream.readline, b"\r\n")]
                headers = dict(line.lower().split(": ", 1) for line in lines[1:])
                self.bodies.append(stream.read(int(headers.get("content-length", 0))))
                self.ids.append(headers.get("idempotency-key", ""))
                self.requests += 1
                answer = self.answers.pop(0)
                if answer is None:
                    self.done.wait(3)
                else:
                    client.sendall(answer)


@contextmanager
def scripted(*answers: Any, info: Any = INFO) -> Iterator[Scripted]:
    server = Scripted([*([] if info is None else [says(info)]), *answers])
    try:
        yield server
    finally:
        server.done.set()
        server.socket.shutdown(socket.SHUT_RDWR)
        server.socket.close()
        server.thread.join(3)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between repetitions, which are not made."""
    pauses: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=pauses.append, time=time.time))
    return pauses


@pytest.mark.parametrize("window", [Labels, Scores])
def test_an_attack_through_the_api_is_the_attack_on_the_model(window: type[Oracle]) -> None:
    shape, mode = (1, 4, 4), window.__name__.lower()
    model, x = network(shape, dtype=torch.float32), images(3, shape, dtype=torch.float32)
    y = model(x).argmax(1)
    attack: Any = SignOPT() if window is Labels else Square(Linf(0.05), steps=60)
    with served(model, mode, shape, max_rows=4) as (url, book):
        ends, queries = [], []
        for target in model, Http(url, KEY):
            oracle = window(target, budget=60)
            *_, last = attack.iterates(oracle, x, y)
            ends.append(last)
            queries.append(oracle.queries)
        assert torch.equal(ends[0].x, ends[1].x)
        assert torch.equal(ends[0].success, ends[1].success)
        assert torch.equal(*queries)
        assert book.used("student") == queries[1].sum() > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_answers_come_as_the_window_promises(dtype: torch.dtype) -> None:
    model, x = network((3,), dtype=torch.float32), images(9, (3,), dtype=dtype)
    expected = torch.cat([model(part) for part in x.float().split(4)])
    for mode in "scores", "labels":
        with served(model, mode, (3,), max_rows=4) as (url, book):
            target = Http(url, KEY)
            answers = target(x)
            if mode == "labels":
                assert torch.equal(answers, expected.argmax(1))
                assert answers.dtype == torch.int64
                continue
            assert torch.equal(answers, expected.softmax(1))
            assert (answers.dtype, answers.device) == (torch.float32, x.device)
            oracle = Scores(target)
            oracle.begin(9)
            told = oracle(x, torch.arange(9))
            assert told.dtype == dtype
            torch.testing.assert_close(told, expected.softmax(1).to(dtype))
            assert book.used("student") == 18


def test_rows_that_need_gradients_or_lie_oddly_in_memory_can_be_asked() -> None:
    with served(Linear(torch.ones(2, 3), -3.0), "labels", (2, 3)) as (url, _):
        target, x = Http(url, KEY), torch.rand(5, 3, 2)
        expected = (x.flatten(1).sum(1) > 3).long()
        assert torch.equal(target(x.transpose(1, 2).requires_grad_()), expected)
        assert torch.equal(target(x.view(5, 2, 3).expand(5, 2, 3)[:]), expected)


def test_it_splits_what_the_server_does_not_take_at_once() -> None:
    with scripted(says({"labels": [4, 5]}), says({"labels": [6]})) as server:
        assert Http(server.url, KEY)(X).tolist() == [4, 5, 6]
        assert [len(load(body)["inputs"]) for body in server.bodies[1:]] == [2, 1]
        assert torch.equal(torch.cat([load(body)["inputs"] for body in server.bodies[1:]]), X)
        assert len(set(server.ids[1:])) == 2
        assert all(0 < len(request) <= 64 for request in server.ids[1:])


TROUBLE = {
    "too fast": says({"detail": "slow down"}, 429),
    "failed": says({"detail": "failed"}, 500),
    "bad gateway": says(b"<html>", 502),
    "overloaded": says(b"", 503),
    "gateway timeout": says(b"", 504),
    "too slow": says({"detail": "slow"}, 408),
    "hung up": HANG_UP,
    "cut in the body": says({"labels": [1, 0]})[:-5],
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_trouble_is_met_with_the_same_request_later_and_later(trouble: bytes, slept: list[float]) -> None:
    with scripted(trouble, trouble, trouble, says({"labels": [1, 0]}), says({"labels": [1]})) as server:
        assert Http(server.url, KEY)(X).tolist() == [1, 0, 1]
        _, *same, last = server.ids
        assert len(same) == 4
        assert len(set(same)) == 1
        assert last not in same
        assert len(set(server.bodies[1:5])) == 1
        pauses = [pause for pause in slept if pause]
        assert pauses == sorted(pauses)
        assert 0.3 < sum(pauses) < 3


def test_a_server_that_hangs_is_asked_again(slept: list[float]) -> None:
    with scripted(HANG) as server, scripted(HANG, info=None) as silent:
        with pytest.raises(ConnectionError, match="does not answer"):
            Http(silent.url, KEY, timeout=0.1, retries=0)
        target = Http(server.url, KEY, timeout=0.3, retries=0)
        started = time.monotonic()
        with pytest.raises(ConnectionError, match="does not answer"):
            target(X[:2])
        assert time.monotonic() < started + 1
    model = Slow()
    with served(model, "labels", (3,)) as (url, book):
        model.pause = 0.5
        assert Http(url, KEY, timeout=0.2)(X).tolist() == [0, 0, 0]
        assert model.calls == 2
        assert book.used("student") == 3


class Slow(nn.Module):
    """Slow once, after its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.pause, self.calls = 0.0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        time.sleep(self.pause)
        return torch.zeros(len(x), 2)


@pytest.mark.parametrize("status", [429, 503])
def test_it_waits_as_long_as_it_is_told(status: int, slept: list[float]) -> None:
    with scripted(says({}, status, Retry_After=7), says({"labels": [1, 0]})) as server:
        assert Http(server.url, KEY)(X[:2]).tolist() == [1, 0]
    assert slept == [7]


def test_the_pace_of_a_server_with_a_rate_is_kept() -> None:
    with served(Linear(torch.ones(3)), "labels", (3,), rate=3.0, max_rows=3) as (url, book):
        target, started = Http(url, KEY), time.monotonic()
        for _ in range(2):
            target(X)
        assert 0.9 < time.monotonic() - started < 2.5
        assert book.used("student") == 6


@pytest.mark.parametrize("retries", [0, 2])
def test_it_gives_up_in_the_end(retries: int, slept: list[float]) -> None:
    failing = [says({"detail": "failed"}, 500)] * 5
    with scripted(*failing) as server:
        with pytest.raises(ConnectionError, match=r"after all retries \(500\): failed"):
            Http(server.url, KEY, retries=retries)(X[:2])
        assert server.requests == 1 + 1 + retries
    with scripted(*[HANG_UP] * 5) as server:
        with pytest.raises(ConnectionError, match="does not answer"):
            Http(server.url, KEY, retries=retries)(X[:2])
        assert server.requests == 1 + 1 + retries


def test_nobody_listening_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"http://127.0.0.1:{port} does not answer") as caught:
        Http(f"http://127.0.0.1:{port}", KEY, retries=0)
    assert time.monotonic() < started + 1
    assert KEY not in str(caught.value)


def test_a_wrong_key_is_refused_at_once() -> None:
    with (
        served(Linear(torch.ones(3)), "labels", (3,)) as (url, book),
        pytest.raises(PermissionError, match=r"refuses the key \(401\)") as caught,
    ):
        Http(url, "key-of-a-stranger")
    assert "stranger" not in str(caught.value)
    assert book.clients() == []


def test_the_end_of_the_budget_is_told_with_what_is_left() -> None:
    with served(Linear(torch.ones(3)), "labels", (3,), budget=4) as (url, book):
        target = Http(url, KEY)
        target(X)
        with pytest.raises(BudgetExhausted, match="3 queries asked, 1 of 4 left"):
            target(X)
        assert book.used("student") == 3
        assert target.usage() == {"client": "student", "used": 3, "budget": 4, "remaining": 1}
        target(X[:1])
        assert target.usage()["remaining"] == 0


def test_the_fault_that_a_server_finds_is_passed_on() -> None:
    with served(Linear(torch.ones(3)), "labels", (3,)) as (url, book):
        target = Http(url, KEY)
        for rows, words in (
            (X + 1, r"\(422\): inputs must be in \[0, 1\]"),
            (X * torch.nan, r"\(422\): inputs must be in \[0, 1\]"),
            (X[:, :2], r"\(422\): inputs must be float32 \('R', 3\)"),
            (X[:0], r"\(422\): inputs must be float32"),
        ):
            with pytest.raises(ValueError, match=words):
                target(rows)
        target.max_rows = 1000
        with pytest.raises(ValueError, match=r"\(413\): a request may have"):
            target(X.repeat(100, 1))
        assert book.used("student") == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_a_redirect(status: int) -> None:
    with scripted(says(INFO), info=None) as elsewhere:
        moved = says(b"", status, Location=f"{elsewhere.url}/predict")
        with scripted(moved) as server, pytest.raises(ValueError, match=f"does not take this \\({status}\\)"):
            Http(server.url, KEY)(X[:2])
        with scripted(moved, info=None) as server, pytest.raises(ValueError, match=f"\\({status}\\)"):
            Http(server.url, KEY)
        assert elsewhere.requests == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"words",
        b"[" * 100_000,
        b"\xff\xfe",
        [1, 0],
        None,
        {},
        {"scores": [[0.5, 0.5]] * 2},
        {"labels": None},
        {"labels": 1},
        {"labels": []},
        {"labels": [1]},
        {"labels": [1, 0, 1]},
        {"labels": ["1", "0"]},
        {"labels": [1.5, 0.0]},
        {"labels": [True, False]},
        {"labels": [[1], [0]]},
        {"labels": [{}, {}]},
        {"labels": [1, None]},
        {"labels": [10**30, 0]},
        {"labels": {"0": 1}},
        {"labels": "10"},
    ],
    ids=str,
)
def test_an_answer_that_is_none_is_a_clear_error(content: Any) -> None:
    with scripted(says(content)) as server, pytest.raises(ValueError, match="answer") as caught:
        Http(server.url, KEY)(X[:2])
    assert server.url in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_answer_that_breaks_off_early_is_not_taken_for_one() -> None:
    with scripted(b"HTTP/1.1 200 OK\r\nContent-Le") as server, pytest.raises(ValueError, match="no JSON object"):
        Http(server.url, KEY)(X[:2])


@pytest.mark.parametrize("scores", [[0.5, 0.5], [[0.5, 0.5]], [[0.5], [0.5, 0.5]], [["a", "b"]] * 2, [[None]] * 2, 1.0])
def test_scores_have_a_row_for_each_row(scores: Any) -> None:
    with (
        scripted(says({"scores": scores}), info={**INFO, "mode": "scores"}) as server,
        pytest.raises(ValueError, match=f"{server.url} answered"),
    ):
        Http(server.url, KEY)(X[:2])


@pytest.mark.parametrize(
    "info",
    [
        {},
        [],
        "words",
        b"<html>",
        {**INFO, "mode": "logits"},
        {**INFO, "mode": None},
        {**INFO, "max_rows": 0},
        {**INFO, "max_rows": "many"},
        {**INFO, "max_rows": math.inf},
        {**INFO, "shape": None},
        {**INFO, "shape": 3},
        {**INFO, "shape": ["a"]},
    ],
    ids=str,
)
def test_another_server_is_told_apart(info: Any) -> None:
    with scripted(info=info) as server, pytest.raises(ValueError, match=f"{server.url} answers") as caught:
        Http(server.url, KEY)
    assert KEY not in str(caught.value)


def test_a_page_that_is_missing_is_no_such_server() -> None:
    with scripted(says(b"<html>", 404), info=None) as server, pytest.raises(ValueError, match=r"\(404\): Words"):
        Http(server.url, KEY)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://:80", "http://[::1", "http://a:99999", "http://a b"],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url must look like"):
        Http(url, KEY, retries=0)


@pytest.mark.parametrize("settings", [{"timeout": 0.0}, {"timeout": -1.0}, {"timeout": math.inf}, {"timeout": "1"}])
def test_a_timeout_is_a_time(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Http("http://127.0.0.1:1", KEY, **settings)


@pytest.mark.parametrize("retries", [-1, 1.5, True, None])
def test_retries_are_a_number(retries: Any) -> None:
    with pytest.raises(ValueError, match="retries must be"):
        Http("http://127.0.0.1:1", KEY, retries=retries)


@pytest.mark.parametrize("key", ["", "secret\n", "secret\r\nX-Other: 1", "secret\x00", "sécret", "секрет"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with scripted() as server:
        with pytest.raises(ValueError, match="key must be") as caught:
            Http(server.url, key)
        assert not key or key not in str(caught.value)
        assert caught.value.__cause__ is None
        assert server.requests == 0


def test_the_key_is_never_shown(slept: list[float]) -> None:
    with scripted(says({}, 500), HANG_UP, says({}, 429, Retry_After="soon"), says({}, 418), says([])) as server:
        target = Http(server.url + "/", KEY, retries=0)
        assert repr(target) == f"Http('{server.url}')"
        assert KEY not in f"{target} {Labels(target)!r}"
        for _ in range(5):
            with pytest.raises((ConnectionError, ValueError)) as caught:
                target(X[:2])
            error: BaseException | None = caught.value
            while error is not None:
                assert KEY not in f"{error} {error!r}"
                error = error.__cause__ or error.__context__


def test_scores_of_a_server_of_labels_are_refused_clearly() -> None:
    with served(Linear(torch.ones(3)), "labels", (3,)) as (url, _):
        oracle = Scores(Http(url, KEY))
        oracle.begin(3)
        with pytest.raises(ValueError, match="answers labels and no scores: attack it through Labels"):
            oracle(X, torch.arange(3))


def test_labels_of_a_server_of_scores_and_refusals_come_through() -> None:
    with served(Linear(torch.ones(3), -1.5), "scores", (3,)) as (url, _):
        oracle = Labels(Http(url, KEY))
        oracle.begin(3)
        assert torch.equal(oracle(X, torch.arange(3)), (X.sum(1) > 1.5).long())
    with served(lambda rows: torch.full((len(rows),), -1), "labels", (3,)) as (url, _):
        oracle = Labels(Http(url, KEY))
        oracle.begin(3)
        assert oracle(X, torch.arange(3)).tolist() == [-1, -1, -1]


def test_the_ledgers_agree_when_the_server_fails_half_way() -> None:
    with served(FailsAt(3), "labels", (3,), max_rows=2) as (url, book):
        oracle = Labels(Http(url, KEY, retries=0), batch_size=2)
        oracle.begin(4)
        x = torch.rand(7, 3)
        owner = torch.tensor([0, 0, 1, 2, 3, 3, 3])
        with pytest.raises(ConnectionError, match="500"):
            oracle(x, owner)
        assert oracle.queries.tolist() == [2, 1, 1, 0]
        assert book.used("student") == 4


class FailsAt(nn.Module):
    """Fails at one of its calls."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call, self.calls = call, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.call:
            raise RuntimeError("out of memory")
        return torch.zeros(len(x), 2)


def test_a_model_that_fails_once_is_asked_again_and_paid_once() -> None:
    with served(FailsAt(2), "labels", (3,)) as (url, book):
        assert Http(url, KEY)(X).tolist() == [0, 0, 0]
        assert book.used("student") == 3
