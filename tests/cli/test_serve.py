"""`advcourse serve` as a program: it starts, is killed, goes on, and ends; and it says what was wrong."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import urllib3
from typer.testing import CliRunner, Result

from advcourse import data, models
from advcourse.cli import app
from advcourse.cli.inputs import read_keys, read_shape
from advcourse.oracles import BudgetExhausted, Http
from advcourse.serve import Ledger

SLOW = """import time
import torch
class Slow(torch.nn.Module):
    def forward(self, x):
        time.sleep({pause})
        return torch.stack([0 * x.sum(1), x.sum(1) - 1.5], 1)
"""


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and the URL that it tells."""
    process = subprocess.Popen(
        [sys.executable, "-m", "advcourse", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    alarm = threading.Timer(45, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        told = re.search(r" answers at (http://[\d.]+:\d+), ", line)
        assert told, line + process.communicate()[1]
        yield process, told[1]
    finally:
        process.kill()
        process.communicate()
        alarm.cancel()


def slow(folder: Path, pause: float) -> list[object]:
    (folder / "slow.py").write_text(SLOW.format(pause=pause))
    (folder / "keys.txt").write_text("student key-of-a-student\ncareless key-of-a-careless-one\n")
    return [f"{folder / 'slow.py'}:Slow", "--shape", "3", "--keys", folder / "keys.txt"]


def test_it_tells_where_it_is_and_a_key_and_stops_when_interrupted() -> None:
    x, _ = data.fashion_mnist("test", 4)
    with serving("cnn", "--port", 0, "--budget", 4, "--mode", "scores", "--max-rows", 3) as (process, url):
        key = process.stdout.readline().removeprefix("key: ").strip()
        assert len(key) > 16
        target = Http(url, key)
        assert (target.mode, target.shape, target.max_rows) == ("scores", (1, 28, 28), 3)
        torch.testing.assert_close(target(x), models.load("cnn")(x).softmax(1))
        with pytest.raises(BudgetExhausted):
            target(x[:1])
        assert urllib3.request("GET", f"{url}/docs").status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
        assert (process.returncode, out, err) == (130, "", "stopped\n")


def test_it_answers_what_was_asked_before_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with (
        serving(*slow(tmp_path, 0.5), "--port", 0, "--ledger", path) as (process, url),
        ThreadPoolExecutor(1) as pool,
    ):
        target = Http(url, "key-of-a-student", retries=0)
        answer = pool.submit(target, torch.ones(2, 3))
        time.sleep(0.25)
        process.send_signal(signal.SIGTERM)
        assert answer.result().tolist() == [1, 1]
        out, err = process.communicate(timeout=5)
        assert (process.returncode, out, err) == (-signal.SIGTERM, "", "")
    assert Ledger(path).used("student") == 2


class Client(threading.Thread):
    """Asks until it is told to stop, and keeps count of rows that were answered and rows that were not."""

    def __init__(self, target: Http, seed: int) -> None:
        super().__init__(daemon=True)
        self.target, self.seed = target, seed
        self.answered = self.lost = 0
        self.failure: Exception | None = None
        self.stop = threading.Event()

    def run(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        while not self.stop.is_set():
            n = int(torch.randint(1, 4, (), generator=generator))
            x = torch.rand(n, 3, generator=generator)
            try:
                assert self.target(x).tolist() == (x.sum(1) > 1.5).long().tolist()
                self.answered += n
            except ConnectionError:
                self.lost += n
                time.sleep(0.05)
            except Exception as error:
                self.failure = error
                return


def test_a_killed_server_goes_on_and_every_query_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    arguments, moment, port = [*slow(tmp_path, 0.005), "--ledger", path], random.Random(0), "0"
    clients: list[Client] = []
    between: list[int] = []
    for kill in range(4):
        with serving(*arguments, "--port", port) as (process, url):
            port = url.rpartition(":")[2]
            if not clients:
                patient, careless = "key-of-a-student", "key-of-a-careless-one"
                clients = [Client(Http(url, patient), 0), Client(Http(url, patient), 1)]
                clients.append(Client(Http(url, careless, retries=0), 2))
                for client in clients:
                    client.start()
            answered = [client.answered for client in clients]
            while any(client.answered == before for client, before in zip(clients, answered, strict=True)):
                assert [client.failure for client in clients] == [None] * 3
                time.sleep(0.01)
            time.sleep(moment.uniform(0.05, 0.4))
            between.append(sum(client.answered for client in clients))
            if kill < 3:
                process.kill()
                process.wait()
                continue
            for client in clients:
                client.stop.set()
                client.join(10)
                assert not client.is_alive()
                assert client.failure is None
            one, two, hasty = clients
            used = Http(url, "key-of-a-student").usage()["used"]
            assert used == one.answered + two.answered
            assert one.lost == two.lost == 0
            assert hasty.lost >= 3
    book = Ledger(path)
    assert len(book.record("student").label) == used == book.used("student")
    assert hasty.answered <= len(book.record("careless").label) <= book.used("careless") <= hasty.answered + hasty.lost
    assert between == sorted(set(between))


def serve(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, and a server that must not start."""

    def never(*arguments: Any) -> None:
        raise AssertionError("it started")

    monkeypatch.setattr("advcourse.serve.server", never)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    slow(tmp_path, 0)
    (tmp_path / "three.txt").write_text("\na key-1\n\nb key-2 more\n")
    (tmp_path / "same.txt").write_text("a key-1\nb key-1\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"a \xff\xfe\x00")
    (tmp_path / "foreign.txt").write_text("a schlüssel\n", encoding="utf-8")
    (tmp_path / "words.sqlite").write_text("no ledger at all " * 100)
    return tmp_path


MINE = "slow.py:Slow --shape 3 --port 0"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("resnot", "there is no model 'resnot'"),
        ("missing.safetensors", "missing"),
        ("missing.py:model", "could not be loaded"),
        ("slow.py:Fast --shape 3", "could not be loaded"),
        ("cnn --shape 3,32,32", "does not map images of shape (3, 32, 32)"),
        ("cnn --shape 1,28,x", "shape must be"),
        ("cnn --shape 0,28,28", "shape must be"),
        ("cnn --shape 1,-28,-28", "shape must be"),
        ("cnn --shape 1000000,1000000,1000000", "shape must be"),
        (f"{MINE} --keys three.txt", "line 4 of three.txt must be"),
        (f"{MINE} --keys same.txt", "line 2 of same.txt has a key that another line has"),
        (f"{MINE} --keys empty.txt", "at least one API key"),
        (f"{MINE} --keys binary.txt", "binary.txt is no text"),
        (f"{MINE} --keys foreign.txt", "printable ASCII"),
        (f"{MINE} --keys missing.txt", "missing.txt"),
        (f"{MINE} --keys .", "directory"),
        (f"{MINE} --ledger words.sqlite", "words.sqlite cannot be the ledger"),
        (f"{MINE} --ledger missing/ledger.sqlite", "cannot be the ledger"),
        (f"{MINE} --ledger .", "cannot be the ledger"),
        (f"{MINE} --rate 0", "rate must be"),
        (f"{MINE} --rate nan", "rate must be"),
        (f"{MINE} --host 203.0.113.77", "203.0.113.77"),
        (f"{MINE} --host no.such.host.invalid", "no.such.host.invalid"),
    ],
)
def test_bad_input_is_one_line(closed: Path, line: str, says: str) -> None:
    result = serve(*line.split())
    assert result.exit_code == 2, result.exception
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert result.stdout == ""
    assert not re.search("key-|schlüssel", result.stderr)


def test_a_port_that_is_taken_is_told(closed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = serve(*MINE.split(), "--port", port)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: ")
    assert str(port) in result.stderr


@pytest.mark.parametrize(
    "line", ["--mode logits", "--port 65536", "--port -1", "--budget -1", "--max-rows 0", "--nothing"]
)
def test_an_option_out_of_range_is_named(closed: Path, line: str) -> None:
    result = serve(*MINE.split(), *line.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert line.split()[0] in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_not_installed_is_named(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "advcourse.serve", None)
    result = serve("cnn")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: ")
    assert "advcourse[serve]" in result.stderr


def test_bad_input_shows_no_traceback_from_the_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "advcourse", "serve", "cnn", "--keys", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*none'?\n", done.stderr)


def test_help_names_every_option() -> None:
    result = serve("--help")
    assert result.exit_code == 0
    for option in "mode", "budget", "rate", "keys", "ledger", "shape", "max-rows", "host", "port":
        assert f"--{option}" in result.output


@pytest.mark.parametrize(
    ("text", "shape"), [("1,28,28", (1, 28, 28)), ("7", (7,)), (" 3 , 4 ", (3, 4)), ("3162,3162", (3162, 3162))]
)
def test_a_shape_is_read(text: str, shape: tuple[int, ...]) -> None:
    assert read_shape(text) == shape


@pytest.mark.parametrize("text", ["", ",", "1,", "1.5", "a", "1x28", "(1,28)", "0", "-1,-1", "10000001", "9" * 5000])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="shape must be positive numbers"):
        read_shape(text)


def test_keys_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes("\ufeffJosé key-1\r\n\r\n  b\t key-2  \r\nJosé key-3".encode())
    assert read_keys(path) == {"key-1": "José", "key-2": "b", "key-3": "José"}
    path.write_text("")
    assert read_keys(path) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a key-1\n\nb\n", "line 3 of .* must be a client's name and its key"),
        ("a key-1 x\n", "line 1 of .* must be"),
        ("a key-1\na key-1\n", "line 2 of .* has a key that another line has"),
        ("\n\na key-1\nb key-1\n", "line 4 of .* has a key that another line has"),
    ],
)
def test_a_line_of_keys_that_is_wrong_is_named_and_not_shown(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        read_keys(path)
    assert "key-" not in str(caught.value)
