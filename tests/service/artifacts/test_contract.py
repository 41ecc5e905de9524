"""What a folder and a bucket both promise."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.artifacts import Artifacts
from service.errors import NotFound

Put = Callable[[str, bytes], None]

CONTENTS = [b"", b"x", bytes(range(256)), random.Random(0).randbytes(11 * 2**20)]  # the last takes three parts


def ages(artifacts: Artifacts, below: str = "") -> dict[str, float]:
    return {unit.key: unit.age_seconds for unit in artifacts.units(below)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_what_is_stored_comes_back(artifacts: Artifacts, put: Put, content: bytes) -> None:
    put("datasets/ds_1.jsonl", content)
    assert artifacts.read("datasets/ds_1.jsonl") == content
    with artifacts.local_file("datasets/ds_1.jsonl") as path:
        assert path.read_bytes() == content


def test_a_stored_file_leaves_the_scratch_folder(place, artifacts: Artifacts) -> None:
    with artifacts.scratch() as scratch:
        (scratch / "file").write_bytes(b"content")
        artifacts.store("datasets/a", scratch / "file")
        assert list(scratch.iterdir()) == []
    assert place.half_made() == []


def test_several_small_files_are_stored_below_one_key(place, artifacts: Artifacts) -> None:
    artifacts.write("heads/job_1/1", {"head.safetensors": b"weights", "manifest.json": b"{}"})
    assert artifacts.read("heads/job_1/1/head.safetensors") == b"weights"
    assert place.keys() == {"heads/job_1/1/head.safetensors", "heads/job_1/1/manifest.json"}


def test_a_folder_comes_back_with_all_that_is_in_it_on_every_machine(place, artifacts: Artifacts) -> None:
    files = {"config.json": b"{}", "1_Pooling/config.json": b"{1}", "deep/er/wörds and spaces %.txt": b"", "model": CONTENTS[-1]}
    with artifacts.scratch() as scratch:
        for name, content in files.items():
            (scratch / "encoder" / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / "encoder" / name).write_bytes(content)
        artifacts.store_folder("encoders/job_1/1", scratch / "encoder")
    for seen in (artifacts, place.open("another")):
        folder = seen.local_folder("encoders/job_1/1")
        assert folder.is_absolute()
        assert contents(folder) == files
        assert seen.local_folder("encoders/job_1/1") == folder


def test_a_folder_that_several_ask_for_at_once_is_whole_for_all(place, artifacts: Artifacts) -> None:
    files = {str(n): random.Random(n).randbytes(1000) for n in range(20)}
    artifacts.write("encoders/job_1/1", files)
    fresh = place.open("another")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: contents(fresh.local_folder("encoders/job_1/1")), range(16)))
    assert found == [files] * 16
    assert place.half_made() == []


def test_several_writers_at_once_do_not_disturb_each_other(place, artifacts: Artifacts) -> None:
    def work(n: int) -> None:
        mine = place.open(f"machine-{n % 3}")
        mine.write(f"heads/job_{n % 4}/{n}", {"head": str(n).encode()})
        mine.write(f"heads/job_{n % 4}/{n + 1000}", {"head": b"of a version that is deleted again"})
        mine.delete(f"heads/job_{n % 4}/{n + 1000}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(32)))
    assert place.keys() == {f"heads/job_{n % 4}/{n}/head" for n in range(32)}
    assert all(artifacts.read(f"heads/job_{n % 4}/{n}/head") == str(n).encode() for n in range(32))


def test_what_is_missing_is_told_by_its_key(artifacts: Artifacts) -> None:
    with pytest.raises(NotFound, match="datasets/none") as read:
        artifacts.read("datasets/none")
    with pytest.raises(NotFound, match="datasets/none"), artifacts.local_file("datasets/none"):
        pass
    with pytest.raises(NotFound, match="encoders/job_1/1"):
        artifacts.local_folder("encoders/job_1/1")
    assert read.value.code == "file_missing"


def test_what_is_deleted_is_gone_and_nothing_else_is(place, artifacts: Artifacts, put: Put) -> None:
    put("datasets/a", b"1")
    put("datasets/ab", b"2")
    for attempt in ("1", "12"):
        artifacts.write(f"heads/job_1/{attempt}", {"head": b"3", "manifest": b"4"})
    artifacts.delete("datasets/a")
    artifacts.delete("heads/job_1/1")
    assert place.keys() == {"datasets/ab", "heads/job_1/12/head", "heads/job_1/12/manifest"}
    artifacts.delete("heads/job_1/12")
    assert set(ages(artifacts)) == {"datasets/ab"}
    assert place.half_made() == []


def test_a_deleted_folder_is_gone_from_the_machine_that_had_it(place, artifacts: Artifacts) -> None:
    artifacts.write("encoders/job_1/1", {"model": b"1"})
    artifacts.local_folder("encoders/job_1/1")
    artifacts.delete("encoders/job_1/1")
    with pytest.raises(NotFound):
        artifacts.local_folder("encoders/job_1/1")


def test_deleting_what_is_missing_is_fine(artifacts: Artifacts) -> None:
    artifacts.delete("datasets/none")
    artifacts.delete("heads/job_1/1")
    artifacts.delete("work/job_1")


def test_a_scratch_folder_is_empty_carries_its_owners_name_and_is_gone_after_an_error(place, artifacts: Artifacts) -> None:
    def fail() -> None:
        with artifacts.scratch("job_1-3.") as scratch:
            assert scratch.name.startswith("job_1-3.")
            assert list(scratch.iterdir()) == []
            (scratch / "half").write_bytes(b"made")
            assert set(ages(artifacts)) == {f"scratch/{scratch.name}"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert place.half_made() == []


def test_a_scratch_folder_that_a_killed_process_left_can_be_deleted_by_its_key(artifacts: Artifacts) -> None:
    with artifacts.scratch("job_1-3.") as scratch:
        (scratch / "half").write_bytes(b"made")
        artifacts.delete(f"scratch/{scratch.name}")
        assert not scratch.exists()


def test_units_are_what_a_row_knows_and_unknown_files_are_named_one_by_one(place, artifacts: Artifacts, put: Put) -> None:
    put("datasets/ds_1.jsonl", b"1")
    artifacts.write("heads/job_1/2", {"head": b"1", "manifest": b"2"})
    artifacts.write("encoders/job_2/1", {"model": b"1", "1_Pooling": b"2"})
    artifacts.workspace("job_3", 4)
    put("strange", b"1")
    put("other/thing", b"1")
    put("heads/shallow", b"1")
    work = "work/job_3/4"
    known = {"datasets/ds_1.jsonl", "heads/job_1/2", "encoders/job_2/1", work}
    assert set(ages(artifacts)) == known | {"strange", "other/thing", "heads/shallow"}
    assert set(ages(artifacts, "heads/job_1")) == {"heads/job_1/2"}
    assert set(ages(artifacts, "work/job_3")) == {work}
    assert ages(artifacts, "work/job_30") == {}
    for key in ages(artifacts):
        artifacts.delete(key)
    assert ages(artifacts) == {}
    assert place.keys() == set()


def test_a_unit_is_as_old_as_its_last_change(artifacts: Artifacts) -> None:
    artifacts.write("heads/job_1/1", {"head": b"1"})
    time.sleep(1.5)  # S3 tells whole seconds
    artifacts.write("heads/job_1/2", {"head": b"1"})
    found = ages(artifacts)
    assert 0.0 <= found["heads/job_1/2"] < found["heads/job_1/1"] < 60.0
    assert found["heads/job_1/1"] >= 1.5


def test_the_age_of_a_stored_file_counts_from_when_it_was_stored(artifacts: Artifacts) -> None:
    with artifacts.scratch() as scratch:
        (scratch / "file").write_bytes(b"1")
        time.sleep(2.0)
        artifacts.store("datasets/a", scratch / "file")
    assert ages(artifacts)["datasets/a"] < 2.0


def test_a_ping_leaves_nothing(place, artifacts: Artifacts) -> None:
    artifacts.ping()
    assert ages(artifacts) == {}


def test_a_failure_in_the_middle_leaves_nothing_under_the_key(place, artifacts: Artifacts) -> None:
    broken = {"first": b"1", "second": None, "third": b"3"}
    with pytest.raises((TypeError, ValueError)):
        artifacts.write("heads/job_1/1", broken)  # type: ignore[arg-type]
    assert place.keys() == set()
    assert place.half_made() == []
