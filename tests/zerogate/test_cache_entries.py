"""The bytes of an entry: every damage shows, and what earlier releases wrote is still read."""

import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate.cache_entries import checksums, pack, unpack

WORDS = 2**64


def drawn(count: int, dim: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def read(entries: list[memoryview | None], dim: int) -> tuple[NDArray[np.float32], list[bool]]:
    vectors, found = np.full((len(entries), dim), -7, dtype=np.float32), np.zeros(len(entries), dtype=np.bool_)
    unpack(entries, vectors, found)
    return vectors, found.tolist()


@pytest.mark.parametrize("dim", [1, 2, 7, 384])
def test_what_was_packed_is_unpacked_to_the_bit(dim: int) -> None:
    vectors = drawn(20, dim)
    found, there = read([*pack(vectors)], dim)

    assert all(there)
    assert found.tobytes() == vectors.tobytes()


def test_nothing_packed_is_nothing_found() -> None:
    assert pack(np.empty((0, 4), dtype=np.float32)) == []
    assert read([], 4)[1] == []
    assert read([None, None], 4)[1] == [False, False]


@pytest.mark.parametrize("dim", [5, 6])
def test_every_flipped_bit_is_found(dim: int) -> None:
    vectors = drawn(3, dim)
    whole = bytes(pack(vectors)[1])
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        first, _, last = pack(vectors)

        found, there = read([first, memoryview(damaged), last], dim)

        assert there == [True, False, True]
        assert found[[0, 2]].tobytes() == vectors[[0, 2]].tobytes()
        assert (found[1] == -7).all()


@pytest.mark.parametrize("swapped", [(0, 8), (8, 80), (16, 1528)])
def test_exchanged_words_are_found(swapped: tuple[int, int]) -> None:
    entry = bytearray(pack(drawn(1, 384))[0])
    one, other = (slice(start, start + 8) for start in swapped)
    entry[one], entry[other] = entry[other], entry[one]

    assert read([memoryview(entry)], 384)[1] == [False]


@pytest.mark.parametrize("byte", [0, 1, 255])
def test_a_hole_in_the_file_is_no_vector(byte: int) -> None:
    assert read([memoryview(bytes([byte]) * len(pack(drawn(1, 384))[0]))], 384)[1] == [False]


def test_zeros_are_a_vector_like_any_other() -> None:
    found, there = read([*pack(np.zeros((2, 8), dtype=np.float32))], 8)
    assert there == [True, True]
    assert not found.any()


def test_the_checksum_is_the_weighted_sum_of_the_words() -> None:
    """Against whole numbers of Python: a unit vector of words gives the weights, and with them any sum can be foretold."""
    words = np.random.default_rng(3).integers(0, WORDS, size=(4, 3), dtype=np.uint64)
    units = np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype(np.uint64)
    base, *others = checksums(units.view(np.float32)).tolist()
    weights = [(other - base) % WORDS for other in others]

    assert all(weight % 2 == 1 for weight in weights)
    expected = [(base + sum(weight * word for weight, word in zip(weights, row, strict=True))) % WORDS for row in words.tolist()]
    assert checksums(words.view(np.float32)).tolist() == expected


def test_the_format_never_changes() -> None:
    """Files of this release must be read by the next: these are the bytes of an entry, written down once."""
    assert bytes(pack(np.asarray([[1, 2, 3]], dtype=np.float32))[0]).hex() == "0000803f00000040000040400000000085ee6d30f52c0cda"


def test_entries_of_earlier_releases_are_read_and_checked() -> None:
    vectors = drawn(4, 384)
    old = [row.tobytes() + zlib.crc32(row.tobytes()).to_bytes(4, "little") for row in vectors]
    damaged = bytearray(old[2])
    damaged[700] ^= 4

    found, there = read([memoryview(old[0]), pack(vectors)[1], memoryview(damaged), memoryview(old[3])], 384)

    assert there == [True, True, False, True]
    assert found[[0, 1, 3]].tobytes() == vectors[[0, 1, 3]].tobytes()


def test_entries_of_another_dimension_are_not_taken_for_this_one() -> None:
    entries = [*pack(drawn(1, 384)), *pack(drawn(1, 383)), *pack(drawn(1, 386)), memoryview(b""), memoryview(b"12")]
    assert read(entries, 384)[1] == [True, False, False, False, False]
    assert read(entries, 383)[1] == [False, True, False, False, False]
