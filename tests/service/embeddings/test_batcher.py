"""Passes that requests share, with a pass that is a plain function and requests in real threads."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.embeddings.batcher import Batcher, Row, Vectors, parts
from service.errors import TooManyRequests, Unavailable

PATIENCE = 10.0


def vector_of(row: Row) -> list[float]:
    """What the pass below makes of a row, whatever its neighbours."""
    return [float(len(row)), float(sum(row)), float(row[0])]


class Pass:
    """Notes what it was given; waits at the gate where it is shut."""

    def __init__(self) -> None:
        self.seen: list[list[Row]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Semaphore(0)

    def __call__(self, rows: Sequence[Row]) -> Vectors:
        self.seen.append(list(rows))
        self.began.release()
        assert self.gate.wait(PATIENCE)
        if any(row[0] == 666 for row in rows):
            raise ValueError("the row of the beast")
        return np.asarray([vector_of(row) for row in rows], dtype=np.float32)

    def shut(self, batcher: Batcher) -> Future[Vectors]:
        """Send a first row and keep it in the pass, so that what comes now collects."""
        self.gate.clear()
        first = batcher.submit([[1]])
        assert self.began.acquire(timeout=PATIENCE)
        return first


@pytest.fixture
def passes() -> Pass:
    return Pass()


@pytest.fixture
def make(passes: Pass) -> Iterator[Callable[..., Batcher]]:
    made = []

    def one(*, max_waiting_tokens: int = 10_000) -> Batcher:
        made.append(Batcher(passes, max_waiting_tokens=max_waiting_tokens))
        return made[-1]

    yield one
    passes.gate.set()
    for batcher in made:
        batcher.close()


def result(future: "Future[Vectors]") -> NDArray[np.float32]:
    return future.result(timeout=PATIENCE)


def expected(rows: Sequence[Row]) -> NDArray[np.float32]:
    return np.asarray([vector_of(row) for row in rows], dtype=np.float32)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(1, 500), min_size=1, max_size=300), min_size=1, max_size=8), min_size=1, max_size=12)
)
def test_every_request_gets_the_vectors_of_its_rows_in_their_order(requests: list[list[list[int]]]) -> None:
    batcher = Batcher(expected, max_waiting_tokens=10**6)
    try:
        with ThreadPoolExecutor(4) as threads:
            futures = list(threads.map(batcher.submit, requests))
        for rows, future in zip(requests, futures, strict=True):
            assert np.array_equal(result(future), expected(rows))
        assert batcher.waiting_tokens == 0
        assert batcher.texts == sum(map(len, requests))
    finally:
        batcher.close()


def test_what_comes_during_a_pass_shares_the_next_one(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make()
    first = passes.shut(batcher)
    futures = [batcher.submit([[number, 2]]) for number in range(2, 50)]
    passes.gate.set()

    assert [result(future).tolist() for future in futures] == [expected([[number, 2]]).tolist() for number in range(2, 50)]
    assert result(first).tolist() == [[1, 1, 1]]
    assert [len(rows) for rows in passes.seen] == [1, 48]
    assert (batcher.passes, batcher.texts) == (2, 49)


def test_a_lone_request_does_not_wait_for_others(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make()
    for number in range(1, 4):  # each one answered before the next one is sent
        assert result(batcher.submit([[number]])).tolist() == [[1, number, number]]
    assert passes.seen == [[[1]], [[2]], [[3]]]


def test_a_single_text_gets_its_turn_before_the_end_of_a_large_request(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make()
    passes.shut(batcher)
    large = batcher.submit([[7] * 100] * 60)  # 6,000 tokens: six turns of its own
    single = batcher.submit([[5]])
    passes.gate.set()

    result(single)
    result(large)
    turn_of_single = next(number for number, rows in enumerate(passes.seen) if [5] in rows)
    assert turn_of_single <= 2
    assert len(passes.seen) >= 6
    assert max(sum(map(len, rows)) for rows in passes.seen) <= 1024 + 100


def test_rows_are_cut_where_padding_would_cost_more_than_a_pass() -> None:
    request: Any = type("Request", (), {"rows": [[0] * length for length in (200, 3, 4, 190, 5, 3)]})()
    found = [[len(request.rows[position]) for _, position in part] for part in parts([(request, n) for n in range(6)])]
    assert found == [[3, 3, 4, 5], [190, 200]]


def test_requests_with_one_map_share_its_call_and_others_get_their_own(make: Callable[..., Batcher], passes: Pass) -> None:
    calls: list[tuple[str, int]] = []

    def scaled(name: str, factor: float) -> Callable[[Vectors], Vectors]:
        def then(vectors: Vectors) -> Vectors:
            calls.append((name, len(vectors)))
            return vectors * np.float32(factor)

        return then

    double, triple = scaled("double", 2), scaled("triple", 3)
    batcher = make()
    passes.shut(batcher)
    wanted = [(double, 2), (None, 1), (triple, 3), (double, 2), (double, 2)]
    futures = [(batcher.submit([[4, number]], then), factor, [4, number]) for number, (then, factor) in enumerate(wanted)]
    passes.gate.set()

    for future, factor, row in futures:
        assert np.array_equal(result(future), factor * expected([row]))
    assert sorted(calls) == [("double", 3), ("triple", 1)]
    assert len(passes.seen) == 2


def test_an_error_of_a_pass_reaches_the_requests_in_it_and_no_other(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make()
    passes.shut(batcher)
    wrong, beside = batcher.submit([[666]]), batcher.submit([[4]])
    far = batcher.submit([[2] * 300])  # another part of the same turn
    passes.gate.set()

    for future in (wrong, beside):
        with pytest.raises(ValueError, match="the row of the beast"):
            result(future)
    assert np.array_equal(result(far), expected([[2] * 300]))
    assert np.array_equal(result(batcher.submit([[4]])), expected([[4]]))
    assert batcher.waiting_tokens == 0


def test_a_failed_large_request_is_not_read_any_further(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make()
    passes.shut(batcher)
    large = batcher.submit([[666] + [1] * 99] * 60)
    passes.gate.set()

    with pytest.raises(ValueError, match="beast"):
        result(large)
    result(batcher.submit([[4]]))
    assert sum(map(len, passes.seen)) < 20
    assert batcher.waiting_tokens == 0


def test_an_error_of_a_head_reaches_its_requests_alone(make: Callable[..., Batcher], passes: Pass) -> None:
    def broken(_vectors: Vectors) -> Vectors:
        raise ArithmeticError("a head of another size")

    batcher = make()
    passes.shut(batcher)
    wrong, right = batcher.submit([[3]], broken), batcher.submit([[4]])
    passes.gate.set()

    with pytest.raises(ArithmeticError):
        result(wrong)
    assert np.array_equal(result(right), expected([[4]]))


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make(max_waiting_tokens=80)
    first = passes.shut(batcher)
    taken = [batcher.submit([[1] * 10]) for _ in range(7)]  # with the first: 71 tokens
    with pytest.raises(TooManyRequests, match="71 tokens wait, and 10 more") as caught:
        batcher.submit([[1] * 10])
    passes.gate.set()

    assert (caught.value.status, caught.value.code, caught.value.retry_after_seconds) == (429, "queue_full", 1)
    for future in (first, *taken):
        result(future)
    result(batcher.submit([[1] * 10]))


def test_retry_after_is_told_from_the_measured_rate(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make(max_waiting_tokens=8000)
    passes.gate.clear()
    slow = batcher.submit([[1] * 100])
    assert passes.began.acquire(timeout=PATIENCE)
    time.sleep(0.1)  # 100 tokens took a tenth of a second at least: 1,000 a second at most
    passes.gate.set()
    result(slow)
    passes.gate.clear()
    batcher.submit([[1] * 1000])
    assert passes.began.acquire(timeout=PATIENCE)
    for _ in range(7):
        batcher.submit([[1] * 1000])
    with pytest.raises(TooManyRequests) as caught:
        batcher.submit([[1]])
    assert caught.value.retry_after_seconds is not None
    assert 8 <= caught.value.retry_after_seconds <= 60


def test_a_request_larger_than_the_bound_is_served_and_leaves_room_for_others(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make(max_waiting_tokens=800)
    passes.shut(batcher)
    large = batcher.submit([[2] * 50] * 100)  # 5,000 tokens
    small = batcher.submit([[5]])
    passes.gate.set()

    assert np.array_equal(result(large), expected([[2] * 50] * 100))
    assert np.array_equal(result(small), expected([[5]]))


def test_a_cancelled_request_costs_no_pass_and_frees_its_room(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make(max_waiting_tokens=80)
    passes.shut(batcher)
    taken = [batcher.submit([[8] * 10]) for _ in range(7)]
    assert all(future.cancel() for future in taken)
    passes.gate.set()

    deadline = time.monotonic() + PATIENCE
    while batcher.waiting_tokens and time.monotonic() < deadline:
        time.sleep(0.005)
    assert [result(batcher.submit([[1] * 10])).tolist() for _ in range(8)] == [expected([[1] * 10]).tolist()] * 8
    assert not any(row[0] == 8 for rows in passes.seen for row in rows)


def test_closing_ends_the_pass_and_refuses_what_waits(make: Callable[..., Batcher], passes: Pass) -> None:
    batcher = make()
    first = passes.shut(batcher)
    waiting = batcher.submit([[2]])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    time.sleep(0.05)
    passes.gate.set()
    closing.join(PATIENCE)

    assert result(first).tolist() == [[1, 1, 1]]
    for late in (lambda: result(waiting), lambda: batcher.submit([[3]])):
        with pytest.raises(Unavailable, match="stopping"):
            late()
