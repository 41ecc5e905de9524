"""When entries were last used: shared between processes, kept while the table grows, harmless where it is lost."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np

from zerogate.cache_recency import Recency, table_bytes


def keys(name: str, count: int) -> list[bytes]:
    return [hashlib.sha256(f"{name} {number}".encode()).digest() for number in range(count)]


def test_an_age_is_counted_in_what_was_stored_since(tmp_path: Path) -> None:
    recency = Recency(tmp_path / "used", most_entries=10_000)
    [first], [second], [unknown] = keys("first", 1), keys("second", 1), keys("unknown", 1)

    recency.stored([first], entries=640)  # a tick is 10 stored entries
    assert recency.ages([first, unknown]).tolist() == [0, 65_535]
    recency.stored(keys("others", 29), entries=640)
    assert recency.ages([first]).tolist() == [3]
    recency.used([first])
    recency.stored([second], entries=640)

    assert recency.ages([first, second, unknown]).tolist() == [0, 0, 65_535]


def test_time_may_pass_the_end_of_its_16_bits(tmp_path: Path) -> None:
    recency = Recency(tmp_path / "used", most_entries=100)
    [old], [new] = keys("old", 1), keys("new", 1)
    recency.stored(keys("many", 1) * 65_530, entries=1)
    recency.used([old])
    recency.stored([new] * 10, entries=1)

    assert recency.ages([old, new]).tolist() == [10, 0]


def test_another_process_sees_the_uses(tmp_path: Path) -> None:
    mine = Recency(tmp_path / "used", most_entries=1000)
    some = keys("some", 10)
    mine.stored(some, entries=1)
    mine.stored(keys("more", 5), entries=1)
    assert mine.ages(some).tolist() == [5] * 10
    code = (
        "import sys; from pathlib import Path; from zerogate.cache_recency import Recency; "
        "Recency(Path(sys.argv[1]), most_entries=1000).used([bytes.fromhex(key) for key in sys.argv[2:]])"
    )

    subprocess.run([sys.executable, "-c", code, str(tmp_path / "used"), *(key.hex() for key in some[:4])], check=True, timeout=60)

    assert mine.ages(some).tolist() == [0] * 4 + [5] * 6


def test_the_table_grows_with_the_cache_and_forgets_nothing(tmp_path: Path) -> None:
    recency = Recency(tmp_path / "used", most_entries=1_000_000)
    other = Recency(tmp_path / "used", most_entries=1_000_000)
    some = keys("some", 400)
    on_disk = (tmp_path / "used").stat().st_blocks * 512
    recency.used(some[:200])
    recency.stored(keys("first", 640), entries=640)
    recency.used(some[200:])
    before = recency.ages(some)

    recency.stored([], entries=400_000)

    assert on_disk < 100_000
    assert (tmp_path / "used").stat().st_blocks * 512 >= 4 * 400_000
    assert set(before.tolist()) == {0, 64}
    assert recency.ages(some).tolist() == other.ages(some).tolist() == before.tolist()


def test_the_file_takes_no_more_than_was_said(tmp_path: Path) -> None:
    recency = Recency(tmp_path / "used", most_entries=100_000)
    recency.stored(keys("many", 10), entries=10_000_000)

    assert (tmp_path / "used").stat().st_size == table_bytes(100_000) <= 8 * 100_000 + 4096


def test_without_a_file_a_process_knows_its_own_uses(tmp_path: Path) -> None:
    recency = Recency(tmp_path / "no folder" / "used", most_entries=100_000)
    some = keys("some", 3)
    recency.stored(some, entries=100_000)
    recency.hand = some[1]

    assert recency.hand == some[1]
    assert recency.ages(some).tolist() == [0, 0, 0]


def test_keys_that_meet_in_a_bucket_are_all_known_until_there_are_too_many(tmp_path: Path) -> None:
    """Four slots, as a cache has them that holds four entries at most: each key takes the place of the one unused for longest."""
    recency = Recency(tmp_path / "used", most_entries=4)
    some = keys("some", 5)
    recency.stored(some[:4], entries=1)
    assert recency.ages(some).tolist() == [0, 0, 0, 0, 65_535]
    recency.stored([some[2]], entries=1)
    recency.used([some[0], some[3]])

    recency.stored([some[4]], entries=1)

    assert recency.ages(some).tolist() == [1, 65_535, 1, 1, 0]


def test_any_bytes_are_a_table(tmp_path: Path) -> None:
    """After a loss of power anything may stand there; time goes on from there."""
    garbage = np.random.default_rng(1).bytes(table_bytes(1000))
    (tmp_path / "used").write_bytes(garbage)
    recency = Recency(tmp_path / "used", most_entries=1000)
    some = keys("some", 100)

    recency.stored(some, entries=640)
    assert recency.ages(some).tolist() == [0] * 100
