"""A model behind a prediction API, as a target."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import torch
import urllib3
from safetensors.torch import save
from torch import Tensor

from ..contract import check_number
from .windows import BudgetExhausted


class Http:
    """The target that `advcourse serve` offers, on the side of who asks: wrap it in `Scores` or `Labels`.

    A request that meets a time-out, a broken connection, a rate limit (429) or a server in trouble (5xx) is repeated,
    later and later, or when the server asks for it. It carries an id by which the server knows it again: it answers as
    before and charges nothing twice. Points travel as float32.

    The server's budget belongs to the key, and that of an oracle to an image: `usage` tells what there is to share.
    When the key runs dry, or nobody answers any more, the attack raises what this raises; what it had found by then is
    in the last state of its `iterates`.

    Args:
        url: where the server listens, such as ``http://127.0.0.1:8000``.
        key: the API key. It goes into a header and nowhere else.
        timeout: seconds to wait for a connection, and for an answer.
        retries: how often a request is repeated.

    Attributes:
        mode: what the server tells, ``"scores"`` or ``"labels"``.
        shape: of one input.
        max_rows: points that the server takes in one request; more are split.

    Raises:
        ValueError: if the url is none, the key fits in no header, or what answers there is no such server.
        PermissionError: if the server refuses the key.
        ConnectionError: if nobody answers, after all retries.

    Example:
        >>> from advcourse import data, models
        >>> from advcourse.oracles import Labels
        >>> from advcourse.serve import create_app, running
        >>> x, y = data.fashion_mnist("test", n=4)
        >>> with running(create_app(models.load("cnn"), keys={"secret": "student"})) as url:
        ...     oracle = Labels(Http(url, "secret"), budget=10)
        ...     oracle.begin(4)
        ...     print(oracle(x, owner=torch.arange(4)), oracle.queries)
        tensor([0, 1, 2, 3]) tensor([1, 1, 1, 1])
    """

    def __init__(self, url: str, key: str, *, timeout: float = 30.0, retries: int = 6) -> None:
        try:
            place = urllib3.util.parse_url(url)
        except ValueError:
            place = urllib3.util.Url()
        if place.scheme not in ("http", "https") or not place.host:
            raise ValueError(f"url must look like http://127.0.0.1:8000, got {url!r}")
        if not (key and key.isascii() and key.isprintable()):
            raise ValueError("key must be printable ASCII")
        check_number("timeout", timeout, 0.0)
        check_number("retries", retries, 0)
        self.url = url.rstrip("/")
        again = urllib3.Retry(
            retries,
            redirect=0,
            status_forcelist=(408, 429, 500, 502, 503, 504),
            allowed_methods=None,  # the id makes a POST as safe to repeat as a GET
            backoff_factor=0.2,
            raise_on_status=False,
            raise_on_redirect=False,
        )
        self._pool = urllib3.PoolManager(headers={"X-API-Key": key}, timeout=timeout, retries=again)
        info = self._ask("GET", "/info")
        try:
            self.mode, self.max_rows = str(info["mode"]), int(info["max_rows"])
            self.shape = tuple(map(int, info["shape"]))
            if self.mode not in ("labels", "scores") or self.max_rows < 1:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.url} answers, but not as a prediction API of this course does: {info}") from error

    def __repr__(self) -> str:
        return f"Http({self.url!r})"

    def __call__(self, rows: Tensor) -> Tensor:
        """Probabilities (R, K), float32, or labels (R,), int64, for rows (R, ...); as the server's mode is.

        Raises:
            BudgetExhausted: if the key's budget does not cover a request of up to `max_rows` rows; it is not charged.
            ValueError: if the server finds fault with the rows; it says which.
            PermissionError, ConnectionError: as when connecting.
        """
        replies = [self._predict(part) for part in rows.detach().float().cpu().split(self.max_rows)]
        return torch.cat(replies).to(rows.device)

    def usage(self) -> dict[str, Any]:
        """What the key has asked so far: its client's name, queries used, budget, remaining."""
        return self._ask("GET", "/usage")

    def _predict(self, rows: Tensor) -> Tensor:
        reply = self._ask(
            "POST",
            "/predict",
            body=save({"inputs": rows.contiguous()}),
            headers={"Content-Type": "application/octet-stream", "Idempotency-Key": uuid4().hex},
        )
        try:
            answers = torch.tensor(reply[self.mode])
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{self.url} answered without {self.mode}: {str(reply)[:200]}") from error
        kind, dims = (torch.int64, 1) if self.mode == "labels" else (torch.get_default_dtype(), 2)
        if answers.dtype != kind or answers.ndim != dims or len(answers) != len(rows):
            raise ValueError(
                f"{self.url} answered {len(rows)} rows with {self.mode} {answers.dtype} {tuple(answers.shape)}"
            )
        return answers if self.mode == "labels" else answers.float()

    def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        headers = {**self._pool.headers, **content.pop("headers", {})}
        try:
            reply = self._pool.request(method, self.url + path, headers=headers, **content)
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(f"{self.url} does not answer: {error.__cause__ or error}") from error
        try:
            said = json.loads(reply.data)
        except (ValueError, RecursionError):
            said = None
        detail = said.get("detail") if isinstance(said, dict) else reply.reason
        if reply.status == 200:
            if isinstance(said, dict):
                return said
            raise ValueError(f"{self.url} answers no JSON object: {reply.data[:200]!r}")
        if reply.status == 401:
            raise PermissionError(f"{self.url} refuses the key (401): {detail}")
        if reply.status == 402:
            raise BudgetExhausted(f"{self.url} (402): {detail}")
        if reply.status in (408, 429) or reply.status >= 500:
            raise ConnectionError(f"{self.url} has no answer, after all retries ({reply.status}): {detail}")
        raise ValueError(f"{self.url} does not take this ({reply.status}): {detail}")
