"""Passes of one encoder that many requests share.

While a pass runs, the rows of other requests collect; the next pass takes them together. A lone request waits for nobody. Every
request gives a turn at most a slice of its rows, so that a single text does not wait for the 2,048 of another request.

    submit    any thread   one future for the rows of a request
    _turn     our thread   rows of many requests, about _TURN_TOKENS of them
    parts     our thread   ... cut into passes of about equal length
    _pass     our thread   base vectors, then every head once over all the rows that want it

Nothing in here knows HTTP, encoders or heads: a pass is a function of rows, a head one of vectors.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from service.errors import TooManyRequests, Unavailable

Row = Sequence[int]
Vectors = NDArray[np.float32]
Map = Callable[[Vectors], Vectors]
"""(n, dim) to (n, out_dim), row by row: a row's vector does not depend on its neighbours."""

# About 30 ms on two cores, as much as one of the encoder's own passes holds.
_TURN_TOKENS = 1024
_SLICE_TOKENS = _TURN_TOKENS // 4
# A further pass costs about as much as so many more tokens in this one.
_PASS_TOKENS = 64
# Of the bound, so much counts for a request at most: others find room beside a large one, and an idle queue takes any.
_LARGEST_SHARE = 1 / 8
_LONGEST_RETRY_SECONDS = 60
_NEW_RATE_WEIGHT = 0.2


class Batcher:
    """Joins rows of many requests into passes. Safe to share between threads; has one thread of its own."""

    def __init__(self, encode: Callable[[Sequence[Row]], Vectors], *, max_waiting_tokens: int, name: str = "passes") -> None:
        """encode: the pass, (n, dim) float32 of n rows; one at a time. max_waiting_tokens: what may wait, about."""
        self._encode = encode
        self._max_waiting = max_waiting_tokens
        self._waiting: deque[_Request] = deque()
        self._held = 0  # the weights of the requests that are not answered yet
        self._tokens = 0  # that are still to be read, those of the pass that runs included
        self._passes = self._texts = 0
        self._rate: float | None = None  # tokens a second, of the last passes
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row], then: Map | None = None) -> "Future[Vectors]":
        """The vectors of at least one row, mapped by `then` where there is one; a future that is cancelled costs no further pass.

        Requests whose `then` is equal share one call of it. Raises TooManyRequests when too much waits, Unavailable when closed;
        the future raises what the pass raised.
        """
        request = _Request(rows, then, limit=int(self._max_waiting * _LARGEST_SHARE))
        with self._changed:
            if self._closed:
                raise _stopped()
            if self._held + request.weight > self._max_waiting:
                raise TooManyRequests(
                    f"the encoder's queue is full: {self._tokens:,} tokens wait, and {request.tokens:,} more would be too many; "
                    "ask again after Retry-After",
                    code="queue_full",
                    retry_after_seconds=self._seconds_until_done(),
                )
            self._held += request.weight
            self._tokens += request.tokens
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    @property
    def waiting_tokens(self) -> int:
        """So many are still to be read, those of the pass that runs included."""
        return self._tokens

    @property
    def passes(self) -> int:
        """So many passes were run."""
        return self._passes

    @property
    def texts(self) -> int:
        """So many rows went through them."""
        return self._texts

    def close(self) -> None:
        """Let the pass that runs come to its end; what waits gets Unavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _seconds_until_done(self) -> int:
        seconds = math.ceil(self._tokens / self._rate) if self._rate else 1
        return min(max(seconds, 1), _LONGEST_RETRY_SECONDS)

    def _run(self) -> None:
        while turn := self._turn():
            for part in parts(turn):
                try:
                    self._pass(part)
                except Exception as error:  # noqa: BLE001 (whatever it is, the requests after these must find the thread alive)
                    self._fail(part, error)
        with self._changed:
            for request in self._waiting:
                request.fail(_stopped())

    def _turn(self) -> "list[_Place]":
        """Rows for the next passes; waits for the first. Empty when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                if turn := list(self._take()):  # nothing where all that waited was cancelled
                    return turn

    def _take(self) -> "Iterator[_Place]":
        """Slices of the waiting requests in turn, until the turn is full or nothing waits. A request's rest goes to the end."""
        room = _TURN_TOKENS
        while self._waiting and room > 0:
            request = self._waiting.popleft()
            if request.future.done():  # cancelled, or an earlier pass failed
                self._tokens -= sum(len(request.rows[position]) for position in request.remaining)
                self._release(request)
                continue
            for position in request.slice(min(room, _SLICE_TOKENS)):
                room -= len(request.rows[position])
                yield request, position
            if request.remaining:
                self._waiting.append(request)

    def _pass(self, part: "Sequence[_Place]") -> None:
        rows = [request.rows[position] for request, position in part]
        began = time.perf_counter()
        try:
            base = self._encode(rows)
        except Exception as error:  # noqa: BLE001 (whatever it is, it belongs to the requests in this pass)
            self._note(rows, seconds=None)
            self._fail(part, error)
            return
        self._note(rows, seconds=time.perf_counter() - began)
        for then, places in _by_map(part).items():
            mine = [part[place] for place in places]
            try:
                vectors = base[places] if then is None else then(base[places])
            except Exception as error:  # noqa: BLE001 (a head that fails is the matter of its requests alone)
                self._fail(mine, error)
                continue
            for (request, position), vector in zip(mine, vectors, strict=True):
                if request.put(position, vector):
                    self._release(request)
                    request.answer()

    def _note(self, rows: Sequence[Row], *, seconds: float | None) -> None:
        """Count a pass; None: it failed, and tells nothing of the rate."""
        tokens = sum(map(len, rows))
        with self._changed:
            self._tokens -= tokens
            self._passes += 1
            self._texts += len(rows)
            if seconds is not None:
                rate = tokens / max(seconds, 1e-9)
                self._rate = rate if self._rate is None else self._rate + _NEW_RATE_WEIGHT * (rate - self._rate)

    def _fail(self, part: "Sequence[_Place]", error: Exception) -> None:
        """Give the error to the requests of these rows; what they have waiting is dropped when its turn comes."""
        for request in dict.fromkeys(request for request, _ in part):
            self._release(request)
            request.fail(error)

    def _release(self, request: "_Request") -> None:
        """Let others have the request's share of the bound; once."""
        with self._changed:
            self._held -= request.weight
            request.weight = 0


class _Request:
    """The rows of one request, which parts of them are still to be taken, and the vectors so far."""

    def __init__(self, rows: Sequence[Row], then: Map | None, *, limit: int) -> None:
        """limit: of the weight, what the request counts for in the bound."""
        self.rows = rows
        self.then = then
        self.future: Future[Vectors] = Future()
        self.tokens = sum(map(len, rows))
        self.weight = min(self.tokens, limit)
        # Rows of about equal length are taken together; the shortest stand last, where they are taken first.
        self.remaining = sorted(range(len(rows)), key=lambda position: -len(rows[position]))
        self._missing = len(rows)
        self._vectors: Vectors | None = None

    def slice(self, tokens: int) -> list[int]:
        """Take the next rows, at least one, of about so many tokens together."""
        taken = []
        while self.remaining and tokens > 0:
            taken.append(self.remaining.pop())
            tokens -= len(self.rows[taken[-1]])
        return taken

    def put(self, position: int, vector: Vectors) -> bool:
        """Keep the vector of a row, and tell whether it was the last one that was missing."""
        if self._vectors is None:
            self._vectors = np.empty((len(self.rows), len(vector)), dtype=np.float32)
        self._vectors[position] = vector
        self._missing -= 1
        return self._missing == 0

    def answer(self) -> None:
        """Give out the vectors, unless nobody waits for them any more."""
        if self._vectors is not None and self.future.set_running_or_notify_cancel():
            self.future.set_result(self._vectors)

    def fail(self, error: Exception) -> None:
        """Give out the error, unless nobody waits any more."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


_Place = tuple[_Request, int]


def parts(turn: Sequence[_Place]) -> Iterator[list[_Place]]:
    """The turn's rows, shortest first, cut where filling the shorter ones up would cost more than a further pass."""
    ordered = sorted(turn, key=_length)
    part: list[_Place] = []
    for place in ordered:
        if part and (_length(place) - _length(part[-1])) * len(part) > _PASS_TOKENS:
            yield part
            part = []
        part.append(place)
    yield part


def _length(place: _Place) -> int:
    request, position = place
    return len(request.rows[position])


def _by_map(part: Sequence[_Place]) -> dict[Map | None, list[int]]:
    """Places in the part by what is to be done with their vectors."""
    found: dict[Map | None, list[int]] = {}
    for place, (request, _) in enumerate(part):
        found.setdefault(request.then, []).append(place)
    return found


def _stopped() -> Unavailable:
    return Unavailable("the service is stopping, or the encoder's files are moving; ask again")
