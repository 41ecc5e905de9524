"""Matrices of whole lists: mapped when they are there, refused when damaged, bounded; nothing stays of killed processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate.cache import CachedEncoder, EmbeddingCache
from zerogate.encoder_files import Role
from zerogate.matrices import Matrices

SHAPE = (50, 12)
SIZE = 64 + 4 * 50 * 12  # of a file


def drawn(seed: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def opened(matrices: Matrices, name: str, shape: tuple[int, int] = SHAPE) -> NDArray[np.float32]:
    found = matrices.open(name, shape)
    assert found is not None
    return found


@pytest.fixture
def matrices(tmp_path: Path) -> Matrices:
    return Matrices(tmp_path, max_bytes=5 * SIZE)


@pytest.mark.parametrize("shape", [(50, 12), (3, 7), (1, 1)])
def test_a_matrix_comes_back_to_the_bit_read_only_and_mapped(matrices: Matrices, tmp_path: Path, shape: tuple[int, int]) -> None:
    matrix = drawn(1, shape)
    assert matrices.open("one", shape) is None
    matrices.store("one", matrix)

    found = opened(matrices, "one", shape)
    again = opened(Matrices(tmp_path, max_bytes=5 * SIZE), "one", shape)

    assert found.tobytes() == again.tobytes() == matrix.tobytes()
    assert type(found) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    assert str(tmp_path) in Path("/proc/self/maps").read_text()


def test_a_matrix_that_is_in_use_outlives_its_file(matrices: Matrices, tmp_path: Path) -> None:
    matrices.store("one", drawn(1))
    found = opened(matrices, "one")
    (tmp_path / "one.matrix").unlink()

    assert matrices.open("one", SHAPE) is None
    assert found.tobytes() == drawn(1).tobytes()


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit of the magic": flipped(3),
    "a flipped bit of the rows": flipped(16),
    "a flipped bit of the seal": flipped(40),
    "a flipped bit of the first number": flipped(64),
    "a flipped bit of the last number": flipped(SIZE - 1),
    "exchanged rows": lambda whole: whole[:64] + whole[64 + 48 : 64 + 96] + whole[64 : 64 + 48] + whole[64 + 96 :],
    "a row too few": lambda whole: whole[:-48],
    "a byte too many": lambda whole: whole + b"\0",
    "its header only": lambda whole: whole[:64],
    "half a header": lambda whole: whole[:30],
    "nothing": lambda whole: b"",
    "a hole": lambda whole: bytes(len(whole)),
    "a hole behind the header": lambda whole: whole[:64] + bytes(len(whole) - 64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_no_matrix_and_goes(matrices: Matrices, tmp_path: Path, damage: str) -> None:
    matrices.store("one", drawn(1))
    file = tmp_path / "one.matrix"
    assert file.stat().st_size == SIZE
    file.write_bytes(DAMAGES[damage](file.read_bytes()))

    assert matrices.open("one", SHAPE) is None
    assert not file.exists()
    matrices.store("one", drawn(1))
    assert opened(matrices, "one").tobytes() == drawn(1).tobytes()


def test_the_wrong_shape_is_not_taken_for_the_right_one(matrices: Matrices) -> None:
    matrices.store("one", drawn(1))
    assert matrices.open("one", (SHAPE[1], SHAPE[0])) is None


def test_beyond_the_bound_those_that_were_not_used_for_longest_go(matrices: Matrices, tmp_path: Path) -> None:
    """Against a list in the order of use."""
    draw = np.random.default_rng(5)
    order: list[int] = []  # the last used stands last
    for _ in range(200):
        number = int(draw.integers(12))
        found = matrices.open(str(number), SHAPE)
        assert (found is not None) == (number in order)
        if found is None:
            matrices.store(str(number), drawn(number))
        else:
            assert found.tobytes() == drawn(number).tobytes()
        order = [*(one for one in order if one != number), number][-5:]
        assert {int(file.stem) for file in tmp_path.glob("*.matrix")} == set(order)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 5 * SIZE


def test_a_matrix_beyond_the_bound_is_not_kept_and_drives_nothing_out(matrices: Matrices) -> None:
    matrices.store("small", drawn(1))
    matrices.store("large", drawn(2, (300, 12)))
    assert matrices.open("large", (300, 12)) is None
    assert opened(matrices, "small").tobytes() == drawn(1).tobytes()


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from zerogate import matrices

real = matrices._header
def header(matrix):  # it stops with half a file on the disk
    (Path(sys.argv[1]) / "one.part").write_bytes(real(matrix))
    time.sleep(60)
matrices._header = header
matrices.Matrices(Path(sys.argv[1]), max_bytes=10**6).store("one", np.ones((50, 12), dtype=np.float32))
"""


def test_half_a_file_of_a_killed_process_is_swept_and_a_busy_writer_is_left_alone(matrices: Matrices, tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    half = tmp_path / "one.part"
    while not half.exists() or half.stat().st_size < 64:
        pass

    matrices.store("two", drawn(2))  # somebody is writing: it is not waited for
    assert matrices.open("two", SHAPE) is None
    assert matrices.open("one", SHAPE) is None
    Matrices(tmp_path, max_bytes=5 * SIZE)
    assert half.exists()
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate(timeout=60)
    assert half.exists()

    matrices.store("two", drawn(2))
    assert not half.exists()
    assert opened(matrices, "two").tobytes() == drawn(2).tobytes()
    half.write_bytes(b"half")
    Matrices(tmp_path, max_bytes=5 * SIZE)
    assert not half.exists()


NO_ROOM = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from zerogate.matrices import Matrices

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
matrices = Matrices(Path(sys.argv[1]), max_bytes=10**6)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
matrices.store("one", np.ones((50, 12), dtype=np.float32))
assert matrices.open("one", (50, 12)) is None
assert [file.name for file in Path(sys.argv[1]).iterdir()] == ["lock"]
"""


def test_where_the_disk_has_no_room_nothing_is_stored_and_nothing_fails(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


class HashingEncoder:
    """Vectors that are a digest of role and text, and how many texts were asked for."""

    dim = 8
    dtype = "float32"

    def __init__(self, fingerprint: str = "one") -> None:
        self.fingerprint = fingerprint
        self.asked = 0

    def encode(self, texts: list[str], *, role: Role, on_batch: Callable[..., None]) -> NDArray[np.float32]:
        self.asked += len(texts)
        seeds = [list(f"{self.fingerprint} {role} {text}".encode()) for text in texts]
        made = np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds]).astype(np.float32)
        on_batch(range(len(texts)), made)
        return made


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


def cached(cache: EmbeddingCache, fingerprint: str = "one") -> CachedEncoder:
    return CachedEncoder(HashingEncoder(fingerprint), cache)  # type: ignore[arg-type]  # it stands in for an encoder


TEXTS = [f"text {number}" for number in range(1500)]


def test_a_list_is_encoded_once_then_read_as_one_matrix_and_never_text_by_text(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = cached(cache)
    told: list[tuple[int, int]] = []
    first = encoder.matrix(TEXTS, role="query", on_progress=lambda done, total: told.append((done, total)))
    expected = encoder.encode(TEXTS, role="query")
    assert told == [(0, 1500), (1500, 1500)]
    monkeypatch.setattr(cache, "get", None)

    second = encoder.matrix(TEXTS, role="query", on_progress=lambda done, total: told.append((done, total)))

    assert first.tobytes() == second.tobytes() == expected.tobytes()
    assert encoder.encoder.asked == 1500  # type: ignore[union-attr]
    assert told == [(0, 1500), (1500, 1500)]
    for matrix in (first, second):
        with pytest.raises(ValueError, match="read-only"):
            matrix[0] = 0


OTHERS: dict[str, tuple[list[str], Role, str]] = {
    "another order": ([TEXTS[1], TEXTS[0], *TEXTS[2:]], "query", "one"),
    "another role": (TEXTS, "document", "one"),
    "another encoder": (TEXTS, "query", "two"),
    "a text that ends elsewhere": ([f"{TEXTS[0]}t", TEXTS[1][1:], *TEXTS[2:]], "query", "one"),
    "a text less": (TEXTS[:-1], "query", "one"),
    "a text twice": ([*TEXTS, TEXTS[0]], "query", "one"),
    "an empty text": ([*TEXTS, ""], "query", "one"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_list_has_a_matrix_of_its_own(cache: EmbeddingCache, other: str) -> None:
    cached(cache).matrix(TEXTS, role="query")
    texts, role, fingerprint = OTHERS[other]

    found = cached(cache, fingerprint).matrix(texts, role=role)

    assert found.tobytes() == cached(cache, fingerprint).encode(texts, role=role).tobytes()


def test_a_short_list_has_no_file(cache: EmbeddingCache, tmp_path: Path) -> None:
    encoder = cached(cache)
    found = encoder.matrix(TEXTS[:100], role="query")

    assert found.tobytes() == encoder.encode(TEXTS[:100], role="query").tobytes()
    assert not found.flags.writeable
    assert encoder.matrix([], role="query").shape == (0, 8)
    assert not list((tmp_path / "cache" / "matrices").glob("*.matrix"))


def test_a_damaged_matrix_is_made_again_from_the_single_texts(cache: EmbeddingCache, tmp_path: Path) -> None:
    encoder = cached(cache)
    first = encoder.matrix(TEXTS, role="query")
    [file] = (tmp_path / "cache" / "matrices").glob("*.matrix")
    file.write_bytes(flipped(1000)(file.read_bytes()))

    assert encoder.matrix(TEXTS, role="query").tobytes() == first.tobytes()
    assert encoder.encoder.asked == 1500  # type: ignore[union-attr]
    assert file.exists()
