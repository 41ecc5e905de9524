"""Requests over connections that stay open, a fixed number in the air at any time, and how long each answer took.

One event loop over bare sockets: a client library would take as long for a request as the service that it measures.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"


@dataclass(frozen=True)
class Load:
    """What a run of requests took. seconds: from the first byte to the last. milliseconds: of each request; bodies: answers."""

    seconds: float
    milliseconds: "np.ndarray[Any, np.dtype[np.float64]]"
    bodies: list[bytes]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.bodies) / self.seconds


def embeddings_request(model: str, text: str, **fields: Any) -> bytes:
    """One text, asked for as OpenAI's client does: base64."""
    body = orjson.dumps({"model": model, "input": text, "encoding_format": "base64", **fields})
    head = ("POST /v1/embeddings HTTP/1.1", "host: localhost", "content-type: application/json", f"content-length: {len(body)}")
    return "\r\n".join(head).encode() + _END_OF_HEAD + body


def drive(port: int, requests: Sequence[bytes], *, concurrency: int) -> Load:
    """Send all requests, `concurrency` at a time. Raises RuntimeError for an answer that is not 200."""
    return asyncio.run(_drive(port, requests, concurrency))


async def _drive(port: int, requests: Sequence[bytes], concurrency: int) -> Load:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    run = _Run(requests, ended)
    connections = [
        (await loop.create_connection(lambda: _Connection(run), "127.0.0.1", port))[1]
        for _ in range(min(concurrency, len(requests)))
    ]
    began = time.perf_counter()
    for connection in connections:
        connection.send_next()
    await ended
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return Load(seconds, run.seconds * 1000, run.bodies)


class _Run:
    """The requests that are left, and the answers so far."""

    def __init__(self, requests: Sequence[bytes], ended: "asyncio.Future[None]") -> None:
        self.requests = requests
        self.left = deque(range(len(requests)))
        self.bodies = [b""] * len(requests)
        self.seconds = np.zeros(len(requests))
        self._missing = len(requests)
        self._ended = ended

    def take(self, number: int, seconds: float, body: bytes) -> None:
        self.seconds[number], self.bodies[number] = seconds, body
        self._missing -= 1
        if not self._missing and not self._ended.done():
            self._ended.set_result(None)

    def fail(self, message: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(RuntimeError(message))


class _Connection(asyncio.Protocol):
    """Sends one request after the other."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._received = bytearray()
        self._number = -1
        self._sent_at = 0.0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.fail(f"the service closed the connection: {exc}")

    def send_next(self) -> None:
        """Send the next request, if any is left."""
        if self._run.left:
            self._number = self._run.left.popleft()
            self._sent_at = time.perf_counter()
            self._transport.write(self._run.requests[self._number])

    def data_received(self, data: bytes) -> None:
        self._received += data
        answer = split_answer(self._received)
        if answer is None:
            return
        status, body = answer
        if status != 200:
            self._run.fail(f"the service answered {status}: {body[:500].decode()}")
            return
        self._run.take(self._number, time.perf_counter() - self._sent_at, body)
        self._received.clear()
        self.send_next()

    def close(self) -> None:
        self._transport.close()


def split_answer(received: bytes | bytearray) -> tuple[int, bytes] | None:
    """Status and body of an answer with a Content-Length, or None while some of it is missing."""
    head, end, body = bytes(received).partition(_END_OF_HEAD)
    if not end:
        return None
    length = int(head.lower().partition(_LENGTH)[2].split(b"\r\n", 1)[0])
    return (int(head[9:12]), body) if len(body) == length else None
