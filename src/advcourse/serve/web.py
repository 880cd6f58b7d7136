"""The web server under the API: a socket, and connections that are not kept for nothing."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE = 10.0
"""Seconds after which a connection is closed that brings no request."""


@contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket for a server, and its URL; port 0 is any free one.

    Raises:
        OSError: if it cannot be had.
    """
    with socket.create_server((host, port)) as free:
        free.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each answer waits 40 ms for an acknowledgement
        yield free, "http://{}:{}".format(*free.getsockname())


class Impatient(H11Protocol):
    """A connection that is closed if it brings no new request for a while, so that it does not keep others out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(IDLE, self._look, None)

    def _look(self, before: object) -> None:
        if self.cycle is before and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(IDLE, self._look, self.cycle)


def server(app: ASGIApp) -> uvicorn.Server:
    """The web server for an app: no more than 64 connections at once, and no log of who asked what."""
    return uvicorn.Server(uvicorn.Config(app, http=Impatient, log_level="warning", limit_concurrency=64))


@contextmanager
def running(app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve an app from a thread for as long as the context lasts: ``with running(app) as url``."""
    served = server(app)
    with listening(host, port) as (free, url):
        thread = threading.Thread(target=served.run, kwargs={"sockets": [free]}, daemon=True)
        thread.start()
        try:
            yield url
        finally:
            served.should_exit = True
            thread.join()
