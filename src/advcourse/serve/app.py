"""The API itself: who may ask, what may be asked, and how much of it."""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal
from uuid import uuid4

import torch
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline  # FastAPI whose documentation page loads nothing from elsewhere
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from starlette.requests import ClientDisconnect
from torch import Tensor

from .. import __version__
from ..contract import check_number
from ..oracles import Labels, Oracle, Scores, Target
from .ledger import Conflict, Forgotten, Ledger, Overdrawn

BYTES_PER_NUMBER = 26
"""What a number may take in JSON: -1.7976931348623157e+308 and a comma and a space."""


class Question(BaseModel):
    """Inputs to be classified."""

    inputs: list[Any] = Field(description="One nested list of numbers in [0, 1] for each input.", min_length=1)


class Answer(BaseModel):
    """One entry for each input: its label, or the probabilities of all classes."""

    labels: list[int] | None = Field(None, description="In mode labels; -1 is a refusal.")
    scores: list[list[float]] | None = Field(None, description="In mode scores.")


class Info(BaseModel):
    mode: Literal["labels", "scores"]
    shape: list[int] = Field(description="Of one input.")
    max_rows: int = Field(description="Inputs in one request, at most.")


class Usage(BaseModel):
    client: str = Field(description="Whose key this is.")
    used: int = Field(description="Queries charged so far; one for each input.")
    budget: int | None = Field(description="Queries in all; null for no limit.")
    remaining: int | None


class Rate:
    """So many queries a second for each client; those of a moment's silence can be used later, `burst` at most."""

    def __init__(self, rate: float | None, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.left: dict[str, tuple[float, float]] = {}

    def wait(self, client: str, queries: int) -> float:
        """Take so many queries, or tell how many seconds to wait until they can be taken."""
        if self.rate is None:
            return 0.0
        now = time.monotonic()
        left, at = self.left.get(client, (float(self.burst), now))
        left = min(self.burst, left + (now - at) * self.rate)
        if queries > left:
            return (queries - left) / self.rate
        self.left[client] = left - queries, now
        return 0.0


def create_app(
    target: Target,
    *,
    keys: Mapping[str, str],
    mode: Literal["labels", "scores"] = "labels",
    ledger: Ledger | None = None,
    rate: float | None = None,
    shape: Sequence[int] = (1, 28, 28),
    max_rows: int = 256,
    patience: float = 10.0,
) -> FastAPI:
    """A prediction API for a model.

    ``POST /predict`` takes inputs, as JSON ``{"inputs": [...]}`` or as a safetensors file with float32 ``inputs`` (R,
    ...), and answers ``{"labels": [...]}`` or ``{"scores": [[...]]}``. Its header ``X-API-Key`` says who pays; by an
    ``Idempotency-Key`` a repeated request is known again, answered as before and not charged. ``GET /info``, ``/usage``
    and ``/health`` tell the rest, and ``/docs`` is a page to try it from.

    Who errs is told so and charged nothing: 401 (no such key), 402 (budget used up), 408 (too slow), 409 and 410 (a
    known id with another question, or of long ago), 413 (too large), 422 (not understood), 429 (too fast;
    ``Retry-After`` says until when). The model's own failure is 500; it stays charged, and repeating it costs no more.

    Args:
        target: what answers; see `oracles.Target`.
        keys: from API key to the name of its client.
        mode: ``"labels"`` or ``"scores"``.
        ledger: who has asked how much; by default one in memory and without a budget.
        rate: queries per second for each client; None for no limit.
        shape: of one input.
        max_rows: inputs in one request, at most; also what may come at once under a rate.
        patience: seconds for a request to arrive in.

    Raises:
        ValueError: if an argument makes no sense, or the target does not answer an input of this shape.
    """
    if mode not in ("labels", "scores"):
        raise ValueError(f"mode must be labels or scores, got {mode!r}")
    if not all(key and key == key.strip() and key.isascii() and key.isprintable() for key in keys):
        raise ValueError("an API key must be printable ASCII, without spaces around it")  # it has to fit in a header
    if not keys or not all(keys.values()):
        raise ValueError("keys must map at least one API key to the name of its client")
    if rate is not None:
        check_number("rate", rate, 0.0)
        if rate == 0:
            raise ValueError("rate must be positive, got 0")
    check_number("max_rows", max_rows, 1)
    check_number("patience", patience, 0.0)
    window: Oracle = Labels(target) if mode == "labels" else Scores(target)
    book = Ledger() if ledger is None else ledger
    clients = {_digest(key.encode()): client for key, client in keys.items()}  # so that no comparison tells how near
    one = tuple(shape)
    for number in one:
        check_number("each number of shape", number, 1)
    max_bytes = max_rows * math.prod(one) * BYTES_PER_NUMBER + 4096
    pace = Rate(rate, max_rows)
    worker = ThreadPoolExecutor(1)  # one request at a time: the second of two with the same id finds the first's answer

    def ask(points: Tensor) -> Tensor:
        window.begin(1)
        return window(points, torch.zeros(len(points), dtype=torch.int64))

    try:
        ask(torch.zeros(1, *one))
    except Exception as error:  # now and not at the first client
        raise ValueError(f"the target does not answer an input of shape {one}: {error}") from error

    def answer(client: str, request: str, points: Tensor) -> bytes:
        digest = _digest(points.numpy().tobytes() + str(tuple(points.shape)).encode())
        before = book.charge(client, request, digest, len(points))
        if before is not None:
            return before
        try:
            answers = ask(points)
        except Exception as error:
            raise RuntimeError("the target failed") from error  # asyncio would wait for ever after a StopIteration
        reply = json.dumps({mode: answers.tolist()}).encode()
        book.settle(client, request, reply, points, answers if mode == "labels" else answers.argmax(1))
        return reply

    app: FastAPI = FastAPIOffline(title="advcourse", version=__version__, description="A model to ask.")

    def client_of(key: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> str:
        client = clients.get(_digest((key or "").encode()))
        if client is None:
            raise HTTPException(401, "there is no such key: send yours in the header X-API-Key")
        return client

    Client = Annotated[str, Depends(client_of)]

    @app.get("/health")
    async def health() -> dict[str, str]:
        """That the server is up."""
        return {"status": "ok"}

    @app.get("/info")
    async def info(client: Client) -> Info:
        """What can be asked."""
        return Info(mode=mode, shape=list(one), max_rows=max_rows)

    @app.get("/usage")
    def usage(client: Client) -> Usage:
        """What you have asked."""
        used, budget = book.used(client), book.budget
        return Usage(
            client=client, used=used, budget=budget, remaining=None if budget is None else max(0, budget - used)
        )

    @app.post(
        "/predict",
        response_model=Answer,
        response_model_exclude_none=True,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": Question.model_json_schema()},
                    "application/octet-stream": {
                        "schema": {
                            "type": "string",
                            "format": "binary",
                            "description": "A safetensors file with float32 inputs (R, ...).",
                        }
                    },
                },
            }
        },
    )
    async def predict(
        request: Request,
        client: Client,
        idempotency_key: Annotated[
            str | None, Header(max_length=64, description="An id of your choice, to send the same request again.")
        ] = None,
    ) -> Response:
        """Classify inputs. Each costs one query."""
        body = await _read(request, max_bytes, patience)
        points = _points(body, request.headers.get("content-type", ""), one, max_rows)
        wait = pace.wait(client, len(points))
        if wait > 0:
            seconds = str(math.ceil(wait))
            raise HTTPException(429, f"too fast: wait {seconds} s", {"Retry-After": seconds})
        try:
            reply = await asyncio.get_running_loop().run_in_executor(
                worker, answer, client, idempotency_key or uuid4().hex, points
            )
        except Overdrawn as error:
            raise HTTPException(402, f"budget used up: {error}") from None
        except Conflict as error:
            raise HTTPException(409, str(error)) from None
        except Forgotten as error:
            raise HTTPException(410, str(error)) from None
        return Response(reply, media_type="application/json")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # The traceback goes to the server's own log alone; uvicorn closes the connection, which is to be said.
        return JSONResponse({"detail": "the server failed"}, 500, {"Connection": "close"})

    return app


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


async def _read(request: Request, limit: int, patience: float) -> bytes:
    """The body of a request, unless it is too long or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(patience):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise HTTPException(413, f"a request may have {limit} bytes at most")
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {patience:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection broke") from None
    return bytes(body)


def _points(body: bytes, content_type: str, shape: tuple[int, ...], max_rows: int) -> Tensor:
    """What was asked: float32 (R, ...) in [0, 1]."""
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            points = torch.tensor(Question.model_validate_json(body).inputs, dtype=torch.float32)
        elif kind == "application/octet-stream":
            points = load(body)["inputs"]
        else:
            raise HTTPException(
                422, f"content type must be application/json or application/octet-stream, got {content_type[:80]!r}"
            )
    except ValidationError as error:
        raise HTTPException(422, f"not the JSON that is expected: {error.errors()[0]['msg']}") from None
    except (SafetensorError, KeyError):
        raise HTTPException(422, "no safetensors file with a tensor named inputs") from None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise HTTPException(422, "inputs must be numbers, all of the same shape") from None
    if points.dtype != torch.float32 or points.ndim == 0 or points.shape[1:] != shape or len(points) == 0:
        raise HTTPException(422, f"inputs must be float32 {('R', *shape)}, got {points.dtype} {tuple(points.shape)}")
    if len(points) > max_rows:
        raise HTTPException(413, f"a request may have {max_rows} inputs at most, got {len(points)}")
    if not ((points >= 0) & (points <= 1)).all():  # nor NaN
        raise HTTPException(422, "inputs must be in [0, 1]")
    return points
