"""Who asked how much, and when: a ledger that a killed server finds as it was."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

SKETCH = 64
"""Numbers in the sketch of a query."""

SCHEMA = """
CREATE TABLE clients (client TEXT PRIMARY KEY, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE requests (
    number INTEGER PRIMARY KEY,
    client TEXT NOT NULL,
    request TEXT NOT NULL,
    digest BLOB NOT NULL,
    time REAL NOT NULL,
    queries INTEGER NOT NULL,
    labels BLOB,
    sketches BLOB,
    UNIQUE (client, request)
);
CREATE TABLE answers (number INTEGER PRIMARY KEY, time REAL NOT NULL, answer BLOB NOT NULL);
CREATE INDEX by_time ON answers (time);
PRAGMA user_version = 1;
"""


class Overdrawn(Exception):
    """The budget does not cover the request. Nothing is charged."""


class Conflict(Exception):
    """The id of the request has been used for another one. Nothing is charged."""


class Forgotten(Exception):
    """The request was answered so long ago that its answer is no longer kept. Nothing is charged."""


@dataclass(frozen=True)
class Record:
    """The queries of one client that were answered, oldest first.

    Attributes:
        time: of the request, seconds since 1970 (Q,), float64.
        request: its number in the ledger (Q,), int64; queries of one batch share it.
        label: the answer (Q,), int64; for scores, the class of the highest.
        sketch: what is kept of the point (Q, 64), float32; see `sketch`.
    """

    time: Tensor
    request: Tensor
    label: Tensor
    sketch: Tensor


class Ledger:
    """What each client has used of the budget, and every request by its id.

    A request is charged before it is computed, in one transaction with the check that the budget covers it. If the
    server dies in between, the same request is computed again and not charged again. Answers are kept for a while, to
    be repeated to whom they did not reach.

    Several threads may use one ledger, and several servers one file.

    Args:
        path: a SQLite file, which is made if there is none; None to keep the ledger in memory.
        budget: queries for each client; None for no limit.
        keep: seconds that answers are kept.

    Raises:
        ValueError: if the file is no such ledger.

    Example:
        >>> ledger = Ledger(budget=10)
        >>> ledger.charge("student", "request 1", b"what was asked", queries=8)
        >>> ledger.used("student")
        8
        >>> ledger.charge("student", "request 2", b"something else", queries=3)
        Traceback (most recent call last):
        advcourse.serve.ledger.Overdrawn: 3 queries asked, 2 of 10 left
    """

    def __init__(self, path: Path | None = None, budget: int | None = None, keep: float = 600.0) -> None:
        self.budget, self.keep = budget, keep
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None, check_same_thread=False)
            with self._transaction() as db:
                tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if not tables and version == 0:
                    for statement in SCHEMA.split(";\n"):
                        db.execute(statement)
                elif version != 1 or not {"clients", "requests", "answers"} <= tables:
                    raise ValueError(f"{path} is another database: give a file of its own for the ledger")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a charge is on the disk before its answer is sent
        except sqlite3.Error as error:
            raise ValueError(f"{path} cannot be the ledger: {error}") from error

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def charge(self, client: str, request: str, digest: bytes, queries: int) -> bytes | None:
        """Enter a request of so many queries, unless it is entered already.

        Returns:
            The answer, if it was given before; None if it is to be computed.

        Raises:
            Overdrawn, Conflict, Forgotten: see there.
        """
        now = time.time()
        with self._transaction() as db:
            known = db.execute(
                "SELECT digest, labels IS NOT NULL, answer FROM requests LEFT JOIN answers USING (number) "
                "WHERE client = ? AND request = ?",
                (client, request),
            ).fetchone()
            if known is not None:
                before, answered, answer = known
                if before != digest:
                    raise Conflict(f"request {request!r} was another one before")
                if answered and answer is None:
                    raise Forgotten(f"request {request!r} was answered more than {self.keep:.0f} seconds ago")
                return answer
            used = self._used(db, client)
            if self.budget is not None and used + queries > self.budget:
                raise Overdrawn(f"{queries} queries asked, {max(0, self.budget - used)} of {self.budget} left")
            db.execute("INSERT OR REPLACE INTO clients VALUES (?, ?)", (client, used + queries))
            db.execute(
                "INSERT INTO requests (client, request, digest, time, queries) VALUES (?, ?, ?, ?, ?)",
                (client, request, digest, now, queries),
            )
            return None

    def settle(self, client: str, request: str, answer: bytes, points: Tensor, labels: Tensor) -> None:
        """Keep the answer of a request that was charged, and what a defender may want to know of it later.

        Args:
            client, request: as charged.
            answer: what to repeat if it is asked again.
            points: what was asked (R, ...).
            labels: what was answered (R,), int64.
        """
        now = time.time()
        asked = labels.to("cpu", torch.int16).numpy().tobytes(), sketch(points).numpy().tobytes()
        with self._transaction() as db:
            (number,) = db.execute(
                "UPDATE requests SET labels = ?, sketches = ? WHERE client = ? AND request = ? RETURNING number",
                (*asked, client, request),
            ).fetchone()
            db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (number, now, answer))
            db.execute("DELETE FROM answers WHERE time < ?", (now - self.keep,))

    def used(self, client: str) -> int:
        """How many queries a client has been charged."""
        with self._lock:
            return self._used(self._db, client)

    def clients(self) -> list[str]:
        """All who ever asked, by name."""
        with self._lock:
            return [name for (name,) in self._db.execute("SELECT client FROM clients ORDER BY client")]

    def record(self, client: str) -> Record:
        """All queries of a client that were answered."""
        with self._lock:
            rows = self._db.execute(
                "SELECT number, time, queries, labels, sketches FROM requests "
                "WHERE client = ? AND labels IS NOT NULL ORDER BY number",
                (client,),
            ).fetchall()
        numbers, times, queries, labels, sketches = zip(*rows, strict=True) if rows else ((),) * 5
        each = torch.tensor(queries, dtype=torch.int64)
        return Record(
            torch.tensor(times, dtype=torch.float64).repeat_interleave(each),
            torch.tensor(numbers, dtype=torch.int64).repeat_interleave(each),
            torch.from_numpy(np.frombuffer(b"".join(labels), np.int16).astype(np.int64)),
            torch.from_numpy(np.frombuffer(b"".join(sketches), np.float16).astype(np.float32)).view(-1, SKETCH),
        )

    @staticmethod
    def _used(db: sqlite3.Connection, client: str) -> int:
        row = db.execute("SELECT used FROM clients WHERE client = ?", (client,)).fetchone()
        return row[0] if row else 0


def sketch(points: Tensor) -> Tensor:
    """64 random projections of points (R, ...), float16 (R, 64): enough to see who is near whom, and no picture.

    Distances between sketches are those between points, give or take a tenth (Johnson and Lindenstrauss 1984).

    Example:
        >>> x, y = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        >>> a, b = sketch(torch.stack([x, y])).float()
        >>> bool(0.7 < (a - b).norm() / (x - y).norm() < 1.3)
        True
    """
    flat = points.detach().float().cpu().flatten(1)
    return (flat @ _projections(flat.shape[1])).half()


@lru_cache(maxsize=1)
def _projections(d: int) -> Tensor:
    return torch.randn(d, SKETCH, generator=Generator().manual_seed(0)) / SKETCH**0.5
