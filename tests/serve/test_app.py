"""The prediction API under clients that err, cheat, hurry, dawdle and disappear."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
import urllib3
from safetensors.torch import save
from torch import Tensor, nn

from advcourse.serve import Ledger, create_app, running

from ..helpers import Linear, images, network

KEY, OTHER = "key-of-a-student", "key-of-another"
JSON, TENSORS = "application/json", "application/octet-stream"
X = images(2, (3,), dtype=torch.float32)
ROW = json.dumps({"inputs": [[0.25, 0.5, 0.75]]}).encode()


class Gate(nn.Module):
    """A model that counts its calls, waits at a gate while that is closed, and raises while it is ill."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.ill = 0, False
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(5)
        if self.ill:
            raise ZeroDivisionError(f"{KEY} met {Path(__file__)}")
        return torch.stack([0 * x.sum(1), x.sum(1) - 1], 1)


@contextmanager
def served(target: Any = None, budget: int | None = None, **settings: Any) -> Iterator[tuple[str, Ledger]]:
    book = settings.pop("ledger", None) or Ledger(budget=budget)
    target = Linear(torch.ones(3), -1.0) if target is None else target
    settings = {"keys": {KEY: "student", OTHER: "other"}, "shape": (3,), **settings}
    with running(create_app(target, ledger=book, **settings)) as url:
        yield url, book


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[str, Ledger]]:
    with served(max_rows=4) as both:
        yield both


def send(
    url: str, body: Any = None, kind: str = JSON, key: str | bytes | None = KEY, request: str | None = None
) -> urllib3.BaseHTTPResponse:
    headers: dict[str, Any] = {"Content-Type": kind}
    headers |= {} if key is None else {"X-API-Key": key}
    headers |= {} if request is None else {"Idempotency-Key": request}
    with urllib3.PoolManager(retries=False, timeout=5) as pool:
        return pool.request("GET" if body is None else "POST", url, body=body, headers=headers)


def predict(url: str, body: Any = ROW, *args: Any, **kwargs: Any) -> tuple[int, Any]:
    response = send(f"{url}/predict", body, *args, **kwargs)
    return response.status, response.json()


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=5)


def head(length: int, key: str = KEY, request: str = "x") -> bytes:
    lines = "POST /predict HTTP/1.1", "Host: x", f"X-API-Key: {key}", f"Idempotency-Key: {request}"
    return "\r\n".join([*lines, f"Content-Type: {JSON}", f"Content-Length: {length}", "", ""]).encode()


def status(connection: socket.socket) -> int:
    return int(connection.recv(4096).split()[1])


def soon(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 2
    while not condition():
        assert time.monotonic() < end, "not within two seconds"
        time.sleep(0.01)


def tensors(entry: dict[str, Any], size: int = 24) -> bytes:
    header = json.dumps({"inputs": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


NO_JSON = {
    "empty": b"",
    "cut": b'{"inputs": [[0.1',
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "list": b"[[0, 0, 0]]",
    "number": b'{"inputs": 1}',
    "no inputs": b"{}",
    "no rows": b'{"inputs": []}',
    "no features": b'{"inputs": [[]]}',
    "deep and cut": b'{"inputs": ' + b"[" * 4000,
    "deeper than the parser goes": b'{"inputs": ' + b"[" * 1500 + b"]" * 1500 + b"}",
    "deeper than a tensor can be": b'{"inputs": ' + b"[" * 150 + b"1" + b"]" * 150 + b"}",
    "deep": b'{"inputs": ' + b"[" * 60 + b"1" + b"]" * 60 + b"}",
    "strings": b'{"inputs": [["0", "0", "0"]]}',
    "string": b'{"inputs": ["abc"]}',
    "nulls": b'{"inputs": [[null, null, null]]}',
    "objects": b'{"inputs": [{}]}',
    "ragged": b'{"inputs": [[0, 0, 0], [0, 0]]}',
    "ragged within": b'{"inputs": [[0, [0], 0]]}',
    "flat": b'{"inputs": [0, 0, 0]}',
    "wrong shape": b'{"inputs": [[0, 0]]}',
    "nested": b'{"inputs": [[[0, 0, 0]]]}',
    "not a number": b'{"inputs": [[NaN, 0, 0]]}',
    "infinity": b'{"inputs": [[Infinity, 0, 0]]}',
    "beyond floats": b'{"inputs": [[1e999, 0, 0]]}',
    "beyond integers": b'{"inputs": [[1' + b"0" * 400 + b", 0, 0]]}",
    "too many digits": b'{"inputs": [[1' + b"0" * 4300 + b", 0, 0]]}",
    "just above": b'{"inputs": [[1.0000002, 0, 0]]}',
    "just below": b'{"inputs": [[0, 0, -1e-40]]}',
}

NO_TENSORS = {
    "empty": b"",
    "short": b"abc",
    "zeros": bytes(100),
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "long header": struct.pack("<Q", 2**40) + b"{}",
    "cut": save({"inputs": X})[:-1],
    "too long": save({"inputs": X}) + b"0",
    "wrong name": save({"input": X}),
    "no tensors": struct.pack("<Q", 2) + b"{}",
    "float64": save({"inputs": X.double()}),
    "float16": save({"inputs": X.half()}),
    "bfloat16": save({"inputs": X.bfloat16()}),
    "int64": save({"inputs": X.long()}),
    "bool": save({"inputs": X.bool()}),
    "complex": save({"inputs": X.to(torch.complex64)}),
    "no rows": save({"inputs": X[:0]}),
    "a number": save({"inputs": X[0, 0].clone()}),
    "one row": save({"inputs": X[0]}),
    "wrong shape": save({"inputs": X.reshape(3, 2)}),
    "not a number": save({"inputs": X * torch.nan}),
    "above": save({"inputs": X + 1}),
    "unknown type": tensors({"dtype": "F99", "shape": [2, 3], "data_offsets": [0, 24]}),
    "negative": tensors({"dtype": "F32", "shape": [-2, 3], "data_offsets": [0, 24]}),
    "more than there is": tensors({"dtype": "F32", "shape": [2**40, 3], "data_offsets": [0, 24]}),
    "an end far off": tensors({"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 2**63]}),
    "endless and empty": tensors({"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}, 0),
    "many dimensions": tensors({"dtype": "F32", "shape": [*[1] * 70, 2, 3], "data_offsets": [0, 24]}),
}


@pytest.mark.parametrize("kind", [JSON, TENSORS])
def test_what_is_not_understood_is_told_and_costs_nothing(shared: tuple[str, Ledger], kind: str) -> None:
    url, book = shared
    before = book.used("student")
    for name, body in (NO_JSON if kind == JSON else NO_TENSORS).items():
        code, answer = predict(url, body, kind)
        assert code == 422, name
        assert isinstance(answer["detail"], str), name
        assert 10 < len(answer["detail"]) < 500, name
    assert book.used("student") == before
    assert predict(url)[0] == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/jsonp", "application/octet-streams", "é" * 2000])
def test_another_content_type_is_refused(shared: tuple[str, Ledger], kind: str) -> None:
    code, answer = predict(shared[0], kind=kind.encode("latin-1"))
    assert (code, len(answer["detail"]) < 300) == (422, True)
    assert "content type must be" in answer["detail"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/json ;a=b"])
def test_a_content_type_may_be_written_in_every_way(shared: tuple[str, Ledger], kind: str) -> None:
    assert predict(shared[0], kind=kind)[0] == 200


@pytest.mark.parametrize("path", ["/info", "/usage", "/predict"])
@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", KEY.upper(), "schlüssel".encode("latin-1")])
def test_without_a_key_that_is_known_nothing_is_told(
    shared: tuple[str, Ledger], path: str, key: str | bytes | None
) -> None:
    response = send(shared[0] + path, ROW if path == "/predict" else None, key=key)
    assert response.status == 401
    assert set(response.json()) == {"detail"}


def test_a_stranger_is_turned_away_before_the_body_is_read(shared: tuple[str, Ledger]) -> None:
    with connect(shared[0]) as stranger:
        stranger.sendall(head(10**9, key="wrong"))
        assert status(stranger) == 401


@pytest.mark.parametrize("request_id", ["x" * 65, "x" * 5000])
def test_an_id_has_bounds(shared: tuple[str, Ledger], request_id: str) -> None:
    assert predict(shared[0], request=request_id)[0] == 422


@pytest.mark.parametrize("chunked", [False, True])
def test_too_many_bytes_are_not_taken(shared: tuple[str, Ledger], chunked: bool) -> None:
    url, book = shared
    before, body = book.used("student"), [b" " * 1000] * 50
    code, answer = predict(url, iter(body) if chunked else b"".join(body))
    assert (code, "bytes at most" in answer["detail"]) == (413, True)
    assert book.used("student") == before


def test_an_endless_body_ends_early(shared: tuple[str, Ledger]) -> None:
    with connect(shared[0]) as client:
        client.sendall(head(10**12) + b" " * 10**6)
        assert status(client) == 413


def test_too_many_rows_are_refused_and_as_many_as_there_may_be_are_not(shared: tuple[str, Ledger]) -> None:
    url, book = shared
    before = book.used("student")
    row = [1 / 3, 0.1234567890123456789, 5e-324]
    assert predict(url, json.dumps({"inputs": [row] * 5}).encode())[0] == 413
    assert predict(url, save({"inputs": X[:1].repeat(5, 1)}), TENSORS)[0] == 413
    assert book.used("student") == before
    code, answer = predict(url, json.dumps({"inputs": [row] * 4}, indent=2).encode())
    assert (code, len(answer["labels"])) == (200, 4)
    assert book.used("student") == before + 4


def test_the_longest_numbers_fit() -> None:
    with served(shape=(28, 28), target=lambda x: x.flatten(1).sum(1).long(), max_rows=8) as (url, _):
        row = [[1 / 3 + 1e-16] * 28] * 28
        assert predict(url, json.dumps({"inputs": [row] * 8}, indent=1).replace(" ", "").encode())[0] == 200


def test_a_slow_client_is_stopped_and_does_not_stop_the_others() -> None:
    with served(patience=0.3) as (url, book), connect(url) as slow, connect(url) as slower:
        slow.sendall(head(len(ROW)) + ROW[:5])
        slower.sendall(head(len(ROW)) + ROW[:5])
        started = time.monotonic()
        while time.monotonic() < started + 0.2:
            slower.sendall(b" ")
            assert predict(url, key=OTHER)[0] == 200
            time.sleep(0.02)
        assert (status(slow), status(slower)) == (408, 408)
        assert time.monotonic() < started + 1
        assert book.used("student") == 0


def test_idle_connections_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advcourse.serve.web.IDLE", 0.3)
    with served() as (url, _):
        idle = [connect(url) for _ in range(70)]
        for client in idle[::2]:
            client.sendall(b"GET /health HTTP/1.1\r\nHost:")
        started = time.monotonic()
        soon(lambda: send(f"{url}/health").status == 200)
        assert time.monotonic() < started + 1.5
        for client in idle:
            client.close()


def test_a_request_that_takes_long_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advcourse.serve.web.IDLE", 0.1)
    model = Gate()
    with served(model) as (url, _), ThreadPoolExecutor(1) as pool:
        model.open.clear()
        answer = pool.submit(predict, url)
        time.sleep(0.5)
        model.open.set()
        assert answer.result()[0] == 200


def test_a_client_lost_within_its_request_is_charged_nothing() -> None:
    model = Gate()
    with served(model) as (url, book):
        calls = model.calls
        for sent in 0, 5, len(ROW):
            with connect(url) as client:
                client.sendall(head(len(ROW) + 5) + ROW[:sent])
                time.sleep(0.05)
        time.sleep(0.1)
        assert predict(url, key=OTHER)[0] == 200
        assert (book.used("student"), model.calls) == (0, calls + 1)


def test_a_client_lost_before_the_answer_is_charged_once_and_can_have_it_later() -> None:
    model = Gate()
    with served(model) as (url, book):
        calls = model.calls
        model.entered.clear()
        model.open.clear()
        with connect(url) as client:
            client.sendall(head(len(ROW), request="mine") + ROW)
            assert model.entered.wait(2)
        assert book.used("student") == 1
        model.open.set()
        assert predict(url, request="mine") == (200, {"labels": [1]})
        assert (book.used("student"), model.calls) == (1, calls + 1)


def test_clients_at_once_pay_for_exactly_what_is_answered() -> None:
    def client(number: int) -> int:
        answered = 0
        for i in range(12):
            n = 1 + (number + i) % 4
            code, answer = predict(url, save({"inputs": torch.rand(n, 3)}), TENSORS)
            assert code in (200, 402)
            answered += len(answer["labels"]) if code == 200 else 0
            assert book.used("student") <= 100
        return answered

    with served(budget=100) as (url, book), ThreadPoolExecutor(6) as pool:
        answered = sum(pool.map(client, range(6)))
        assert answered == book.used("student")
        assert 97 <= answered <= 100
        assert len(book.record("student").label) == answered
        assert book.used("other") == 0


def test_one_id_from_many_threads_is_computed_and_charged_once() -> None:
    model = Gate()
    with served(model, budget=1) as (url, book), ThreadPoolExecutor(8) as pool:
        calls = model.calls
        model.entered.clear()
        model.open.clear()
        answers = [pool.submit(predict, url, request="same") for _ in range(8)]
        assert model.entered.wait(2)
        time.sleep(0.1)
        model.open.set()
        assert [answer.result() for answer in answers] == [(200, {"labels": [1]})] * 8
        assert (book.used("student"), model.calls) == (1, calls + 1)


def test_an_id_stands_for_one_question_of_one_client() -> None:
    with served() as (url, book):
        assert predict(url, request="x") == (200, {"labels": [1]})
        other = json.dumps({"inputs": [[0, 0, 0]]}).encode()
        code, answer = predict(url, other, request="x")
        assert (code, "another" in answer["detail"]) == (409, True)
        assert predict(url, save({"inputs": torch.tensor([[0.25, 0.5, 0.75]])}), TENSORS, request="x")[0] == 200
        assert predict(url, other, key=OTHER, request="x") == (200, {"labels": [0]})
        assert (book.used("student"), book.used("other")) == (1, 1)


def test_a_request_without_an_id_is_a_new_one_each_time() -> None:
    with served() as (url, book):
        for request in None, None, "", "":
            assert predict(url, request=request)[0] == 200
        assert book.used("student") == 4


def test_an_old_answer_is_gone_and_not_charged_again() -> None:
    with served(ledger=Ledger(keep=0.05)) as (url, book):
        predict(url, request="old")
        time.sleep(0.1)
        predict(url, request="new")
        assert predict(url, request="old")[0] == 410
        assert book.used("student") == 2


def test_the_budget_is_met_exactly() -> None:
    with served(budget=5) as (url, book):
        assert predict(url, save({"inputs": X}), TENSORS, request="first")[0] == 200
        code, answer = predict(url, save({"inputs": torch.rand(4, 3)}), TENSORS)
        assert (code, answer["detail"]) == (402, "budget used up: 4 queries asked, 3 of 5 left")
        assert send(f"{url}/usage").json() == {"client": "student", "used": 2, "budget": 5, "remaining": 3}
        assert predict(url, save({"inputs": torch.rand(3, 3)}), TENSORS)[0] == 200
        code, answer = predict(url)
        assert (code, answer["detail"]) == (402, "budget used up: 1 queries asked, 0 of 5 left")
        assert predict(url, save({"inputs": X}), TENSORS, request="first")[0] == 200
        assert predict(url, key=OTHER)[0] == 200
        assert book.used("student") == 5


def test_a_budget_of_nothing_buys_nothing() -> None:
    model = Gate()
    with served(model, budget=0) as (url, book):
        calls = model.calls
        assert predict(url)[0] == 402
        assert (model.calls, book.used("student"), book.clients()) == (calls, 0, [])
        assert send(f"{url}/usage").json()["remaining"] == 0


def test_a_budget_below_what_was_used_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).charge("student", "x", b"", 7)
    with served(ledger=Ledger(path, budget=5)) as (url, _):
        assert send(f"{url}/usage").json() == {"client": "student", "used": 7, "budget": 5, "remaining": 0}
        assert predict(url)[1]["detail"] == "budget used up: 1 queries asked, 0 of 5 left"


def test_who_waits_as_told_is_served() -> None:
    with served(rate=8.0, max_rows=4) as (url, book):
        body = save({"inputs": torch.rand(4, 3)})
        assert predict(url, body, TENSORS)[0] == 200
        response = send(f"{url}/predict", body, TENSORS)
        assert response.status == 429
        assert predict(url, key=OTHER)[0] == 200
        time.sleep(int(response.headers["Retry-After"]))
        assert predict(url, body, TENSORS)[0] == 200
        assert book.used("student") == 8


def test_the_rate_holds_over_time() -> None:
    with served(rate=40.0, max_rows=2) as (url, book):
        started, answered = time.monotonic(), 0
        while time.monotonic() < started + 1:
            answered += predict(url)[0] == 200
        took = time.monotonic() - started
        assert book.used("student") == answered <= 2 + 40 * took
        assert answered > 10


def test_a_failing_model_tells_nothing_of_itself_and_costs_once(capfd: pytest.CaptureFixture[str]) -> None:
    model = Gate()
    with served(model, budget=1) as (url, book):
        model.ill = True
        for _ in range(2):
            response = send(f"{url}/predict", ROW, request="x")
            assert response.status == 500
            assert response.headers["Content-Type"] == JSON
            assert response.json() == {"detail": "the server failed"}
            assert book.used("student") == 1
        model.ill = False
        assert predict(url, request="x") == (200, {"labels": [1]})
        assert predict(url, request="x") == (200, {"labels": [1]})
        assert predict(url, request="y")[0] == 402
        assert book.used("student") == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_connection_on_which_the_model_failed_is_not_used_again() -> None:
    model = Gate()
    with served(model) as (url, _), urllib3.PoolManager(retries=False, timeout=2) as pool:
        for ill in [True, False] * 5:
            model.ill = ill
            response = pool.request(
                "POST", f"{url}/predict", body=ROW, headers={"X-API-Key": KEY, "Content-Type": JSON}
            )
            assert response.status == (500 if ill else 200)


@pytest.mark.parametrize("error", [StopIteration, RecursionError, TimeoutError, MemoryError, ValueError])
def test_whatever_a_target_raises_is_answered(error: type[Exception]) -> None:
    answers = iter([torch.tensor([1])])

    def target(rows: Tensor) -> Tensor:
        for answer in answers:
            return answer
        raise error("enough")

    with served(target) as (url, _):
        assert predict(url) == predict(url, key=OTHER) == (500, {"detail": "the server failed"})


def test_a_target_with_an_unusable_answer_is_a_failure_too() -> None:
    answers = [torch.tensor([[0.5, 0.5]])]
    with served(lambda x: answers[0], mode="scores") as (url, book):
        for unusable in torch.tensor([[torch.nan, 0.5]]), torch.tensor([[0.5, 0.5]] * 2), None, "text":
            answers[0] = unusable
            assert predict(url) == (500, {"detail": "the server failed"})
        assert book.used("student") == 4


def test_health_needs_no_key_and_info_says_what_can_be_asked() -> None:
    with served(mode="scores", max_rows=7, shape=(1, 4, 4), target=Linear(torch.ones(1, 4, 4))) as (url, book):
        assert send(f"{url}/health", key=None).json() == {"status": "ok"}
        assert send(f"{url}/info").json() == {"mode": "scores", "shape": [1, 4, 4], "max_rows": 7}
        assert send(f"{url}/usage").json() == {"client": "student", "used": 0, "budget": None, "remaining": None}
        assert book.clients() == []


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_loads_nothing_from_elsewhere(shared: tuple[str, Ledger], path: str) -> None:
    url, _ = shared
    page = send(url + path, key=None)
    assert page.status == 200
    html = page.data.decode()
    loaded = re.findall(r"""(?:src|href|url\()\s*=?\s*["']?([^"'\s>)]+)""", html)
    assert len(loaded) >= 2
    assert not [place for place in loaded if re.match(r"(\w+:)?//", place)]
    for place in loaded:
        if place.startswith("/"):
            assert send(url + place, key=None).status == 200


def test_the_schema_names_every_way_in_and_both_formats(shared: tuple[str, Ledger]) -> None:
    schema = send(f"{shared[0]}/openapi.json", key=None).json()
    assert set(schema["paths"]) == {"/health", "/info", "/usage", "/predict"}
    assert set(schema["paths"]["/predict"]["post"]["requestBody"]["content"]) == {JSON, TENSORS}
    assert KEY not in json.dumps(schema)


def test_keys_are_neither_logged_nor_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model, wrong = Gate(), "key-of-a-stranger"
    caplog.set_level("DEBUG")
    with served(model, ledger=Ledger(tmp_path / "ledger.sqlite", budget=3)) as (url, book):
        for key in KEY, OTHER, wrong:
            for path in "/info", "/usage", "/docs", "/nothing":
                send(url + path, key=key)
            predict(url, key=key)
            predict(url, b"{", key=key)
            predict(url, b" " * 10**5, key=key)
            predict(url, save({"inputs": torch.rand(4, 3)}), TENSORS, key=key)
        with connect(url) as client:
            client.sendall(f"GET / HTTP/9\r\nX-API-Key: {KEY}\r\n\r\n".encode())
            client.recv(100)
        model.open.set()
        assert book.used("student") == book.used("other") == 1
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"student" in written
    logged = "".join(capfd.readouterr()) + caplog.text
    assert "Invalid HTTP request" in logged
    for key in KEY, OTHER, wrong:
        assert key.encode() not in written
        assert key not in logged


def test_both_formats_say_the_same_and_scores_arrive_whole() -> None:
    model, x = network((3,), classes=5, dtype=torch.float32), torch.rand(16, 3)
    with served(model, mode="scores") as (url, _):
        plain = predict(url, json.dumps({"inputs": x.tolist()}).encode())[1]
        assert plain == predict(url, save({"inputs": x}), TENSORS)[1]
        assert set(plain) == {"scores"}
        assert torch.equal(torch.tensor(plain["scores"]), model(x).softmax(1))


def test_labels_are_all_that_is_told_in_their_mode(shared: tuple[str, Ledger]) -> None:
    code, answer = predict(shared[0], save({"inputs": X}), TENSORS)
    assert (code, set(answer)) == (200, {"labels"})
    assert all(type(label) is int for label in answer["labels"])


def test_refusals_come_through() -> None:
    with served(lambda x: torch.where(x.sum(1) > 1, -1, 3)) as (url, book):
        assert predict(url, json.dumps({"inputs": [[0, 0, 0], [1, 1, 1]]}).encode())[1] == {"labels": [3, -1]}
        assert book.record("student").label.tolist() == [3, -1]


def test_an_app_can_be_served_again() -> None:
    app = create_app(Linear(torch.ones(3)), keys={KEY: "student"}, shape=(3,))
    for _ in range(2):
        with running(app) as url:
            assert predict(url)[0] == 200


def test_an_end_waits_for_the_answer_and_not_for_the_idle() -> None:
    model = Gate()
    with ThreadPoolExecutor(1) as pool, served(model) as (url, _):
        idle = connect(url)
        model.entered.clear()
        model.open.clear()
        answer = pool.submit(predict, url)
        assert model.entered.wait(2)
        threading.Timer(0.3, model.open.set).start()
        started = time.monotonic()
    assert answer.result()[0] == 200
    assert time.monotonic() < started + 1.5
    idle.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mode": "logits"}, "mode must be labels or scores"),
        ({"keys": {}}, "keys must map at least one"),
        ({"keys": {KEY: ""}}, "the name of its client"),
        ({"keys": {"": "a"}}, "printable ASCII"),
        ({"keys": {" ": "a"}}, "printable ASCII"),
        ({"keys": {"k ": "a"}}, "printable ASCII"),
        ({"keys": {"k\n": "a"}}, "printable ASCII"),
        ({"keys": {"schlüssel": "a"}}, "printable ASCII"),
        ({"rate": 0.0}, "rate must be"),
        ({"rate": -1.0}, "rate must be"),
        ({"rate": float("nan")}, "rate must be"),
        ({"rate": float("inf")}, "rate must be"),
        ({"max_rows": 0}, "max_rows must be"),
        ({"max_rows": 2.5}, "max_rows must be"),
        ({"patience": -1.0}, "patience must be"),
        ({"patience": float("inf")}, "patience must be"),
        ({"shape": ()}, r"does not answer an input of shape \(\)"),
        ({"shape": (4,)}, r"does not answer an input of shape \(4,\)"),
        ({"shape": (0,)}, "shape must be"),
        ({"shape": (-1,)}, "shape must be"),
        ({"shape": (1.5,)}, "shape must be"),
        ({"target": 3}, "the target must be"),
        ({"target": lambda x: None}, "does not answer an input"),
        ({"mode": "scores", "target": lambda x: x[:, 0].long()}, "answers labels and no scores"),
    ],
)
def test_arguments_that_make_no_sense_are_told(settings: dict[str, Any], says: str) -> None:
    valid: dict[str, Any] = {"target": Linear(torch.ones(3)), "keys": {KEY: "a"}, "shape": (3,)}
    with pytest.raises(ValueError, match=says) as caught:
        create_app(**{**valid, **settings})
    assert KEY not in str(caught.value)
