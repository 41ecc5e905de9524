"""Heads in memory: the oldest go by bytes, one that loads holds nobody else up, and two threads load it once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from service.embeddings.resident_heads import ResidentHeads
from zerogate.folded import FoldedHead, ServedHead

PATIENCE = 10.0


def test_the_head_used_longest_ago_goes_first() -> None:
    heads, loads = ResidentHeads(max_bytes=300), []

    def ask(name: str) -> ServedHead:
        def load() -> tuple[ServedHead, int]:
            loads.append(name)
            return FoldedHead.identity(2), 100

        return heads.get((name, 1.0), load)

    for name in ("a", "b", "c", "a", "d", "a", "b"):
        ask(name)

    assert loads == ["a", "b", "c", "d", "b"]  # d pushed b out, the last b pushed c out
    assert [heads.holds((name, 1.0)) for name in "abcd"] == [True, True, False, True]
    assert not heads.holds(("a", 0.5))


def test_a_head_larger_than_the_bound_is_given_out_and_stays_until_the_next() -> None:
    heads = ResidentHeads(max_bytes=50)
    first = heads.get(("a", 1.0), lambda: (FoldedHead.identity(2), 100))
    assert heads.get(("a", 1.0), lambda: pytest.fail("it is here")) is first
    heads.get(("b", 1.0), lambda: (FoldedHead.identity(2), 100))
    assert not heads.holds(("a", 1.0))


def test_threads_that_ask_at_once_wait_for_one_load_and_others_pass_by() -> None:
    heads, gate, began, loads = ResidentHeads(10**6), threading.Event(), threading.Event(), []

    def slow() -> tuple[ServedHead, int]:
        loads.append(1)
        began.set()
        assert gate.wait(PATIENCE)
        return FoldedHead.identity(2), 1

    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(heads.get, ("a", 1.0), slow) for _ in range(8)]
        assert began.wait(PATIENCE)
        heads.get(("b", 1.0), lambda: (FoldedHead.identity(2), 1))  # while "a" loads
        assert not any(future.done() for future in waiting)
        gate.set()
        assert len({id(future.result(PATIENCE)) for future in waiting}) == 1
    assert loads == [1]


def test_a_load_that_fails_is_tried_again_by_the_next() -> None:
    heads = ResidentHeads(10**6)

    def missing() -> Any:
        raise KeyError("the file is gone")

    for _ in range(2):
        with pytest.raises(KeyError):
            heads.get(("a", 1.0), missing)
    found = cast("FoldedHead", heads.get(("a", 1.0), lambda: (FoldedHead.identity(3), 1)))
    assert found.dim == 3
