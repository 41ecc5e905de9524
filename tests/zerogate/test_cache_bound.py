"""The bound of the embedding cache: what was not used for longest is forgotten, and the folder never grows beyond it."""

import hashlib
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest
from numpy.typing import NDArray

from service.settings import Settings
from zerogate.cache import SMALLEST_CACHE, EmbeddingCache
from zerogate.cache_recency import Recency

DIM = 384
BOUND = 6 * 2**20  # holds some 700 entries: fewer than what is looked at in one round, so the order of use counts exactly


def entries(numbers: list[int]) -> tuple[list[bytes], NDArray[np.float32]]:
    """Keys, and vectors that can be told from their keys."""
    keys = [hashlib.sha256(str(number).encode()).digest() for number in numbers]
    return keys, np.stack([np.random.default_rng(number).normal(size=DIM) for number in numbers]).astype(np.float32)


def kept(cache: EmbeddingCache) -> set[bytes]:
    """What is there; to look at it so is no use of it."""
    with cache._env.begin() as reader:
        return {bytes(key) for key in reader.cursor().iternext(values=False)}


def pages(cache: EmbeddingCache) -> int:
    stat = cache._env.stat()
    return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[EmbeddingCache]:
    opened = EmbeddingCache(tmp_path, max_bytes=BOUND)
    yield opened
    opened.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_goes_was_not_used_for_longer_than_what_stays(cache: EmbeddingCache, tmp_path: Path, seed: int) -> None:
    """Against a dictionary of last uses. Time is counted in stored entries, with a grain of a 64th of the cache."""
    draw = random.Random(seed)
    numbers = list(range(1500))
    last_use: dict[bytes, int] = {}
    stored = forgotten_in_all = too_early = 0
    for _ in range(400):
        some = draw.sample(numbers, draw.randint(1, 15))
        if draw.random() < 0.3:
            keys, expected = entries(some)
            found, there = cache.get(keys, DIM)
            assert there.tolist() == [key in last_use for key in keys]
            assert found[there].tobytes() == expected[there].tobytes()
            last_use.update({key: stored for key, is_there in zip(keys, there, strict=True) if is_there})
            continue
        before = dict(last_use)
        keys, vectors = entries(some)
        cache.put(keys, vectors)
        stored += len(keys)
        there_now = kept(cache)
        last_use.update(dict.fromkeys(keys, stored))
        forgotten = before.keys() - there_now - set(keys)
        last_use = {key: use for key, use in last_use.items() if key in there_now}
        assert last_use.keys() == there_now >= set(keys)
        grain = len(there_now) // 64 + 1 + 15
        if forgotten:
            forgotten_in_all += len(forgotten)
            stayed = (there_now & before.keys()) - set(keys)
            too_early += sum(before[key] > min(before[other] for other in stayed) + grain for key in forgotten)
        assert folder_bytes(tmp_path) <= BOUND
    assert forgotten_in_all > 500
    assert too_early <= 0.02 * forgotten_in_all  # whose uses were lost, because too many keys met in one place of the table
    assert len(last_use) > 300


def test_what_is_used_again_and_again_outlives_any_number_of_others(cache: EmbeddingCache) -> None:
    """More entries pass than one round looks at, and the table of uses is shared with many that are gone."""
    hot, vectors = entries(list(range(50)))
    cache.put(hot, vectors)
    for start in range(1000, 6000, 100):
        cache.put(*entries(list(range(start, start + 100))))
        assert cache.get(hot, DIM)[1].all()
    assert cache.get(hot, DIM)[0].tobytes() == vectors.tobytes()
    assert not cache.get(entries(list(range(1000, 2000)))[0], DIM)[1].any()


def test_in_a_cache_of_many_entries_the_unused_ones_go_first(tmp_path: Path) -> None:
    """Several rounds' worth of neighbours: each round sees a part, and the order is kept on the whole."""
    cache = EmbeddingCache(tmp_path, max_bytes=32 * 2**20)  # some 4,000 entries
    used, unused = entries(list(range(1000))), entries(list(range(1000, 2000)))
    cache.put(*unused)
    cache.put(*used)
    for start in range(10_000, 16_000, 250):
        cache.get(used[0], DIM)
        cache.put(*entries(list(range(start, start + 250))))
    there = kept(cache)
    cache.close()

    assert len(there) > 3000
    assert len(there & set(used[0])) >= 990
    assert not there & set(unused[0])


def test_a_cache_that_is_too_small_forgets_much_and_works(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, max_bytes=SMALLEST_CACHE)
    for start in range(0, 3000, 300):
        keys, vectors = entries(list(range(start, start + 300)))
        cache.put(keys, vectors)
        found, there = cache.get(keys, DIM)
        assert there[-1]
        assert found[there].tobytes() == vectors[there].tobytes()
        assert folder_bytes(tmp_path) <= SMALLEST_CACHE
    huge = np.ones((2, 300_000), dtype=np.float32)
    cache.put(entries([1, 2])[0], huge)  # 1.2 MB each
    assert not cache.get(entries([1, 2])[0], 300_000)[1].any()
    cache.put(*entries([7]))
    assert cache.get(entries([7])[0], DIM)[1].all()
    cache.close()


def test_a_bound_below_the_smallest_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"embedding cache of 1048575 bytes .* at least 1048576"):
        EmbeddingCache(tmp_path, max_bytes=SMALLEST_CACHE - 1)
    assert Settings(embedding_cache_bytes=SMALLEST_CACHE).embedding_cache_bytes == SMALLEST_CACHE
    with pytest.raises(ValueError, match="greater than or equal to 1048576"):
        Settings(embedding_cache_bytes=SMALLEST_CACHE - 1)


def filled_by_an_earlier_release(folder: Path, size: int) -> list[int]:
    """A file that is full to its last page, with CRC-32 behind the vectors."""
    numbers: list[int] = []
    with lmdb.open(str(folder), map_size=size) as environment:
        while True:
            more = list(range(len(numbers), len(numbers) + 10))
            keys, vectors = entries(more)
            try:
                with environment.begin(write=True) as writer:
                    for key, row in zip(keys, vectors, strict=True):
                        writer.put(key, row.tobytes() + zlib.crc32(row.tobytes()).to_bytes(4, "little"))
            except lmdb.MapFullError:
                return numbers
            numbers += more


@pytest.mark.parametrize("size", [SMALLEST_CACHE, 4 * SMALLEST_CACHE])
def test_a_full_file_of_an_earlier_release_is_read_and_makes_room(tmp_path: Path, size: int) -> None:
    numbers = filled_by_an_earlier_release(tmp_path, size)
    before = (tmp_path / "data.mdb").stat().st_size
    cache = EmbeddingCache(tmp_path, max_bytes=SMALLEST_CACHE)
    keys, vectors = entries(numbers)
    found, there = cache.get(keys, DIM)
    assert there.all()
    assert found.tobytes() == vectors.tobytes()

    for start in range(10_000, 10_600, 20):
        new, expected = entries(list(range(start, start + 20)))
        cache.put(new, expected)
    found, there = cache.get(new, DIM)
    taken = pages(cache) * 4096
    cache.close()

    assert there.sum() >= 10
    assert found[there].tobytes() == expected[there].tobytes()
    assert (tmp_path / "data.mdb").stat().st_size <= before
    assert taken < SMALLEST_CACHE
    assert not kept_keys(tmp_path) & set(keys)


def kept_keys(folder: Path) -> set[bytes]:
    with lmdb.open(str(folder), readonly=True) as environment, environment.begin() as reader:
        return {bytes(key) for key in reader.cursor().iternext(values=False)}


PROCESS = """
import hashlib, sys
from pathlib import Path
import numpy as np
from zerogate.cache import EmbeddingCache

folder, bound, first = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cache = EmbeddingCache(folder, max_bytes=bound)
print("ready", flush=True)
sys.stdin.readline()

def entries(numbers):
    keys = [hashlib.sha256(str(number).encode()).digest() for number in numbers]
    return keys, np.stack([np.random.default_rng(number).normal(size=384) for number in numbers]).astype(np.float32)

hits = 0
for start in range(first, first + 3000, 50):
    cache.put(*entries(range(start, start + 50)))
    keys, expected = entries([*range(max(first, start - 50), start + 50), *range(100)])
    found, there = cache.get(keys, 384)
    assert found[there].tobytes() == expected[there].tobytes()
    hits += int(there.sum())
print(hits)
"""


def test_two_processes_store_and_forget_at_once_within_the_bound(tmp_path: Path) -> None:
    run = [sys.executable, "-c", PROCESS, str(tmp_path), str(BOUND)]
    processes = [
        subprocess.Popen([*run, str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for first in (0, 100_000)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # both stand at the line: go
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    largest = 0
    while any(process.poll() is None for process in processes):
        largest = max(largest, folder_bytes(tmp_path))
    told = [process.communicate(timeout=60) for process in processes]

    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, told, strict=True)] == [(0, ""), (0, "")]
    assert max(largest, folder_bytes(tmp_path)) <= BOUND
    assert all(int(hits) > 0.95 * 60 * 200 for hits, _ in told)  # of the 100 last ones and the 100 of both
    cache = EmbeddingCache(tmp_path, max_bytes=BOUND)
    assert cache.get(entries(list(range(100)))[0], DIM)[1].all()  # both had asked for them all the time
    assert len(kept(cache)) < 6000
    cache.close()


def test_the_disk_is_read_in_its_order_where_most_of_the_file_is_wanted(
    cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, vectors = entries(list(range(1200)))
    cache.put(keys, vectors)
    asked: list[range] = []
    monkeypatch.setattr("os.posix_fadvise", lambda _file, start, size, _advice: asked.append(range(start, start + size)))

    cache.get(keys[:1000], DIM)
    assert asked == []
    cache.get(keys, DIM)
    covered = [start for window in asked for start in (window.start, window.stop)]
    assert covered[0] == 0
    assert covered[1:-1:2] == covered[2::2]  # without a gap
    assert covered[-1] >= (tmp_path / "data.mdb").stat().st_size

    asked.clear()
    monkeypatch.setattr("os.sysconf", lambda _name: 1000)  # a computer with 1 MB of memory: it would read what it drops again
    cache.get(keys, DIM)
    assert asked == []


def test_a_use_in_one_process_keeps_an_entry_from_being_forgotten_by_another(cache: EmbeddingCache, tmp_path: Path) -> None:
    read_elsewhere, vectors = entries(list(range(20)))
    cache.put(read_elsewhere, vectors)
    elsewhere = Recency(tmp_path / "used", most_entries=BOUND // 2048)  # as a process has it that only reads
    for start in range(1000, 4000, 100):
        elsewhere.used(read_elsewhere)
        cache.put(*entries(list(range(start, start + 100))))

    assert cache.get(read_elsewhere, DIM)[1].all()
