"""Requests at a steady rate, whether the ones before were answered or not, and how long each answer took."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

# At once; a service that keeps up at 50 a second has one or two in hand. What has to wait for a thread waits on its own time.
_THREADS = 32
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """One request, and what its answer has to be. rows: how many a list's page holds, None where that is not known."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    status: int = 200
    rows: int | None = None


@dataclass(frozen=True)
class Latencies:
    """Milliseconds from the moment a request was due to the last byte of its answer."""

    p50: float
    p99: float
    max: float
    requests: int


def drive(url: str, requests: Sequence[Request], *, rate: float) -> Latencies:
    """Send the requests, `rate` a second. Raises RuntimeError where an answer is not what it has to be."""
    host = urlsplit(url).netloc
    turns = itertools.count()
    milliseconds = np.zeros(len(requests))
    wrong: list[str] = []
    start = time.perf_counter() + 0.1

    def work() -> None:
        connection = http.client.HTTPConnection(host, timeout=_PATIENCE_SECONDS)
        connection.connect()
        try:
            while (turn := next(turns)) < len(requests):
                due = start + turn / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                status, content = _exchange(connection, requests[turn])
                milliseconds[turn] = (time.perf_counter() - due) * 1000
                wrong.extend(_faults(requests[turn], status, content))
        except OSError as error:
            wrong.append(f"no answer: {error!r}")
        finally:
            connection.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_THREADS, len(requests)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise RuntimeError(f"{len(wrong)} answers were wrong, the first: {wrong[0]}")
    return latencies(milliseconds)


def latencies(milliseconds: NDArray[np.float64]) -> Latencies:
    """The median, the 99th percentile (the next that was measured, not one in between) and the longest."""
    p50, p99 = np.percentile(milliseconds, (50, 99), method="higher")
    return Latencies(float(p50), float(p99), float(milliseconds.max()), len(milliseconds))


def _exchange(connection: http.client.HTTPConnection, request: Request) -> tuple[int, bytes]:
    body = None if request.body is None else json.dumps(request.body)
    connection.request(request.method, request.path, body, {} if body is None else {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def _faults(request: Request, status: int, content: bytes) -> list[str]:
    """What is wrong with the answer, in at most one sentence."""
    asked = f"{request.method} {request.path}"
    if status != request.status:
        return [f"{asked}: {status} {content[:500].decode()}"]
    if request.rows is not None and len(json.loads(content)["data"]) != request.rows:
        return [f"{asked}: {len(json.loads(content)['data'])} rows, {request.rows} are there"]
    return []
