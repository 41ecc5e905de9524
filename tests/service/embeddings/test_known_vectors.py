"""Vectors of the last questions, in memory and bounded."""

import numpy as np

from service.embeddings.known_vectors import KnownVectors
from zerogate.encoder_files import Role

QUERY: tuple[str, Role] = ("encoder", "query")
DOCUMENT: tuple[str, Role] = ("encoder", "document")


def test_what_was_put_is_found_for_its_tokens_encoder_and_role_only() -> None:
    known = KnownVectors(10**6)
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    known.put(QUERY, [[1, 2], [3]], vectors)
    vectors[:] = -1  # what is known is a copy

    first, unknown, second = known.get(QUERY, [[1, 2], [2, 1], [3]])
    assert first is not None
    assert second is not None
    assert (first.tolist(), unknown, second.tolist()) == ([0, 1, 2], None, [3, 4, 5])
    assert known.get(DOCUMENT, [[3]]) == known.get(("another", "query"), [[3]]) == [None]


def test_the_bound_holds_and_the_last_used_stay() -> None:
    entry = 400 + 4 + 300  # a hundred numbers, one token, Python's part
    known = KnownVectors(10 * entry)
    for token in range(10):
        known.put(QUERY, [[token]], np.full((1, 100), token, dtype=np.float32))
    known.get(QUERY, [[0]])
    known.put(QUERY, [[10], [11]], np.zeros((2, 100), dtype=np.float32))

    assert [vector is not None for vector in known.get(QUERY, [[token] for token in range(12)])] == [
        True, False, False, *[True] * 9,
    ]  # fmt: skip
    known.put(QUERY, [[0]], np.zeros((1, 100), dtype=np.float32))  # known already: nothing is counted twice
    assert sum(vector is not None for vector in known.get(QUERY, [[token] for token in range(12)])) == 10
