"""The embedding cache: nothing is encoded twice, nothing wrong comes out, and it survives what happens to files."""

import os
import random
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate.cache import CachedEncoder, EmbeddingCache
from zerogate.encoder import Encoder
from zerogate.encoder_files import Role, describe_encoder

TEXTS = [f"How do I reset device {number} without losing its settings?" for number in range(40)]


class CountingEncoder(Encoder):
    """The real encoder, which writes down what it had to encode."""

    asked: list[str]

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        on_batch: Callable[[Sequence[int], NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        self.asked.extend(texts)
        return super().encode(texts, role=role, on_batch=on_batch)


@pytest.fixture(scope="module")
def one_counting() -> CountingEncoder:
    return CountingEncoder("all-MiniLM-L6-v2", dtype="float32", device="cpu")


@pytest.fixture
def counting(one_counting: CountingEncoder) -> CountingEncoder:
    one_counting.asked = []
    return one_counting


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[EmbeddingCache]:
    opened = EmbeddingCache(tmp_path / "cache")
    yield opened
    opened.close()


@pytest.fixture
def cached(counting: CountingEncoder, cache: EmbeddingCache) -> CachedEncoder:
    return CachedEncoder(counting, cache)


def numbered_entries(name: str, count: int, dim: int = 384) -> tuple[list[bytes], NDArray[np.float32]]:
    """Keys, and vectors that can be told from their keys."""
    keys = [f"{name} {number}".encode().ljust(32, b".") for number in range(count)]
    vectors = np.stack([np.random.default_rng(list(key)).normal(size=dim) for key in keys]).astype(np.float32)
    return keys, vectors


def test_a_text_is_encoded_once_and_comes_back_to_the_bit(cached: CachedEncoder, counting: CountingEncoder) -> None:
    first = cached.encode(TEXTS, role="document")
    assert counting.asked == TEXTS
    counting.asked.clear()

    second = cached.encode(TEXTS, role="document")

    assert counting.asked == []
    assert second.tobytes() == first.tobytes() == counting.encode(TEXTS, role="document").tobytes()


def test_the_cache_outlives_its_process(counting: CountingEncoder, tmp_path: Path) -> None:
    before = EmbeddingCache(tmp_path / "cache")
    first = CachedEncoder(counting, before).encode(TEXTS, role="query")
    before.close()
    counting.asked.clear()

    after = EmbeddingCache(tmp_path / "cache")
    second = CachedEncoder(counting, after).encode(TEXTS, role="query")
    after.close()

    assert counting.asked == []
    assert second.tobytes() == first.tobytes()


def test_only_what_is_missing_is_encoded_and_every_row_stays_in_its_place(
    cached: CachedEncoder, counting: CountingEncoder, encoder: Encoder
) -> None:
    cached.encode(TEXTS[:25], role="document")
    counting.asked.clear()
    mixed = random.Random(1).sample(TEXTS, len(TEXTS))

    found = cached.encode(mixed, role="document")

    assert sorted(counting.asked) == sorted(TEXTS[25:])
    np.testing.assert_allclose(found, encoder.encode(mixed, role="document"), atol=1e-6)


def test_a_text_that_stands_there_twice_is_encoded_once(cached: CachedEncoder, counting: CountingEncoder) -> None:
    found = cached.encode(["b", "a", "b", "b", "a"], role="document")

    assert counting.asked == ["b", "a"]
    assert found[0].tobytes() == found[2].tobytes() == found[3].tobytes() != found[1].tobytes()
    assert found[1].tobytes() == found[4].tobytes()


def test_texts_that_nearly_agree_do_not_share_an_entry(cached: CachedEncoder, counting: CountingEncoder) -> None:
    nearly = ["text", "text ", "Text", "text\n", "\ntext", "te\u0301xt", "t\u00e9xt"]
    cached.encode(nearly, role="document")

    assert counting.asked == nearly


def test_queries_and_documents_have_entries_of_their_own(cached: CachedEncoder, counting: CountingEncoder) -> None:
    cached.encode(TEXTS[:3], role="query")
    counting.asked.clear()

    cached.encode(TEXTS[:3], role="document")

    assert counting.asked == TEXTS[:3]


def test_another_dtype_has_entries_of_its_own(cached: CachedEncoder, cache: EmbeddingCache) -> None:
    full = cached.encode(TEXTS[:4], role="document")
    half = Encoder("all-MiniLM-L6-v2", dtype="bfloat16", device="cpu")
    assert half.fingerprint == cached.encoder.fingerprint

    found = CachedEncoder(half, cache).encode(TEXTS[:4], role="document")

    assert found.tobytes() == half.encode(TEXTS[:4], role="document").tobytes()
    assert found.tobytes() != full.tobytes()


def test_another_fingerprint_has_entries_of_its_own(cached: CachedEncoder, cache: EmbeddingCache) -> None:
    plain = cached.encode(TEXTS[:4], role="query")
    prompted = Encoder(describe_encoder("all-MiniLM-L6-v2", prompts={"query": "query: "}), dtype="float32", device="cpu")

    found = CachedEncoder(prompted, cache).encode(TEXTS[:4], role="query")

    assert found.tobytes() == prompted.encode(TEXTS[:4], role="query").tobytes()
    assert np.abs(found - plain).max() > 0.01


def test_no_texts_give_no_rows(cached: CachedEncoder) -> None:
    assert cached.encode([], role="query").shape == (0, 384)
    assert cached.lookup([], role="query")[0].shape == (0, 384)


def flipped(entry: bytes) -> bytes:
    return entry[:100] + bytes([entry[100] ^ 1]) + entry[101:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": flipped,
    "another checksum": lambda entry: entry[:-1] + bytes([entry[-1] ^ 1]),
    "cut short": lambda entry: entry[:-8],
    "longer": lambda entry: entry + b"1234",
    "empty": lambda entry: b"",
    "shorter than a checksum": lambda entry: b"12",
    "garbage of the right length": lambda entry: b"\xff" * len(entry),
    "a whole vector of another dimension": lambda entry: entry[:40] + zlib.crc32(entry[:40]).to_bytes(4, "little"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_encoded_again_and_repaired(counting: CountingEncoder, tmp_path: Path, damage: str) -> None:
    cache = EmbeddingCache(tmp_path)
    expected = CachedEncoder(counting, cache).encode(TEXTS[:2], role="document")
    cache.close()
    counting.asked.clear()

    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as writer:
        entries = list(writer.cursor())
        for key, entry in entries:
            writer.put(key, DAMAGES[damage](entry))
    cache = EmbeddingCache(tmp_path)
    cached = CachedEncoder(counting, cache)
    found, again = (cached.encode(TEXTS[:2], role="document") for _ in range(2))
    cache.close()

    assert len(entries) == 2
    assert counting.asked == TEXTS[:2]
    assert found.tobytes() == again.tobytes() == expected.tobytes()


def test_progress_counts_the_texts_that_were_missing(cached: CachedEncoder) -> None:
    cached.encode(TEXTS[:10], role="document")
    many = [*TEXTS, *(f"another text {number}" for number in range(160))]
    told: list[tuple[int, int]] = []

    cached.encode(many, role="document", on_progress=lambda done, of: told.append((done, of)))

    done = [one for one, _ in told]
    assert {of for _, of in told} == {190}
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (0, 190)
    assert len(done) > 2


def test_what_was_encoded_before_a_stop_is_kept_and_the_rest_goes_on_from_there(
    cached: CachedEncoder, counting: CountingEncoder, encoder: Encoder
) -> None:
    texts = [f"What does function number {number} return when it is called without arguments?" for number in range(150)]
    stop = KeyboardInterrupt()
    encoded = 0

    def on_progress(done: int, of: int) -> None:
        nonlocal encoded
        encoded = done
        if done > 0:
            raise stop

    with pytest.raises(KeyboardInterrupt) as caught:
        cached.encode(texts, role="document", on_progress=on_progress)
    counting.asked.clear()
    found = cached.encode(texts, role="document")

    assert caught.value is stop
    assert 0 < encoded < 150
    assert len(counting.asked) == 150 - encoded
    np.testing.assert_allclose(found, encoder.encode(texts, role="document"), atol=1e-6)


def test_a_lookup_finds_what_is_there_and_neither_encodes_nor_stores(cached: CachedEncoder, counting: CountingEncoder) -> None:
    stored = cached.encode(TEXTS[:5], role="query")
    counting.asked.clear()

    found, there = cached.lookup(TEXTS[3:8], role="query")

    assert there.tolist() == [True, True, False, False, False]
    assert found[there].tobytes() == stored[3:].tobytes()
    assert counting.asked == []
    assert cached.lookup(TEXTS[5:8], role="query")[1].tolist() == [False] * 3


def test_threads_share_one_cache(cache: EmbeddingCache) -> None:
    parts = [numbered_entries(f"thread {number}", 60) for number in range(4)]

    def write_and_read(part: tuple[list[bytes], NDArray[np.float32]]) -> bool:
        keys, vectors = part
        for start in range(0, 60, 10):
            cache.put(keys[start : start + 10], vectors[start : start + 10])
            found, there = cache.get(keys[: start + 10], 384)
            if not there.all() or found.tobytes() != vectors[: start + 10].tobytes():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write_and_read, parts))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from zerogate.cache import EmbeddingCache

folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
cache = EmbeddingCache(folder)
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    key = f"{name} {number}".encode().ljust(32, b".")
    cache.put([key], np.random.default_rng(list(key)).normal(size=(1, 384)).astype(np.float32))
    print(number, flush=True)
"""


def start_writer(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, name, 150) for name in ("first", "second")]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"

    for writer in writers:  # both stand at the line: go
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)

    cache = EmbeddingCache(tmp_path)
    for name in ("first", "second"):
        keys, expected = numbered_entries(name, 150)
        found, there = cache.get(keys, 384)
        assert there.all()
        assert found.tobytes() == expected.tobytes()
    cache.close()


def test_what_a_killed_writer_had_stored_is_whole(tmp_path: Path) -> None:
    writer = start_writer(tmp_path, "killed", 1_000_000)
    assert writer.stdout is not None
    assert writer.stdin is not None
    writer.stdin.write("go\n")
    writer.stdin.flush()
    assert [writer.stdout.readline() for _ in range(42)][-1] == "40\n"  # "ready", 0, 1, ... 40 are stored
    os.kill(writer.pid, signal.SIGKILL)
    stored = 41 + writer.communicate(timeout=60)[0].count("\n")

    cache = EmbeddingCache(tmp_path)
    keys, expected = numbered_entries("killed", stored)
    found, there = cache.get(keys, 384)
    cache.put(*numbered_entries("next", 5))  # and the next one can write
    assert cache.get(numbered_entries("next", 5)[0], 384)[1].all()
    cache.close()

    assert there.all()
    assert found.tobytes() == expected.tobytes()


NO_ROOM = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from zerogate.cache import EmbeddingCache

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = EmbeddingCache(Path(sys.argv[1]))
keys = [str(number).encode().ljust(32, b".") for number in range(500)]
vectors = np.random.default_rng(1).normal(size=(500, 384)).astype(np.float32)
cache.put(keys[:40], vectors[:40])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), most))
cache.put(keys, vectors)
found, there = cache.get(keys, 384)
assert there.tolist() == [True] * 40 + [False] * 460, there
assert found[:40].tobytes() == vectors[:40].tobytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
cache.put(keys, vectors)
found, there = cache.get(keys, 384)
assert there.all()
assert found.tobytes() == vectors.tobytes()
"""


@pytest.mark.parametrize("largest_file", [200_000, 303_104])
def test_where_there_is_no_room_on_the_disk_the_cache_forgets_and_later_goes_on(tmp_path: Path, largest_file: int) -> None:
    """The system itself refuses to write on, in the middle of a page or at its end."""
    run = [sys.executable, "-c", NO_ROOM, str(tmp_path), str(largest_file)]

    found = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)

    assert found.stderr == ""
    assert found.returncode == 0


class Refusing:
    """An LMDB environment whose every writing fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def stat(self) -> dict[str, int]:
        return {"branch_pages": 1, "leaf_pages": 1, "overflow_pages": 0}

    def reader_check(self) -> int:
        return 0

    def begin(self, **_: object) -> None:
        raise self._error


def test_a_full_disk_is_forgiven_and_a_broken_cache_is_not(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = numbered_entries("any", 2)
    for forgiven in (lmdb.DiskError("no space left on device"), lmdb.MapFullError("full"), lmdb.Error("disk quota exceeded")):
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_env", Refusing(forgiven))
            cache.put(*entries)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_env", Refusing(lmdb.CorruptedError("a page is damaged")))
        with pytest.raises(lmdb.CorruptedError):
            cache.put(*entries)


OTHER_PROCESS = """
import sys
from pathlib import Path
import numpy as np
from zerogate.cache import EmbeddingCache

cache = EmbeddingCache(Path(sys.argv[1]))
found, there = cache.get([b"first".ljust(32, b".")], 4)
assert there.all()
cache.put([b"second".ljust(32, b".")], 2 * found)
"""


def test_two_processes_have_one_folder_open_at_once_and_see_what_the_other_stores(cache: EmbeddingCache, tmp_path: Path) -> None:
    cache.put([b"first".ljust(32, b".")], np.asarray([[1, 2, 3, 4]], dtype=np.float32))

    run = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "cache")]
    subprocess.run(run, check=True, timeout=60)

    found, there = cache.get([b"second".ljust(32, b".")], 4)
    assert there.all()
    assert found.tolist() == [[2, 4, 6, 8]]
