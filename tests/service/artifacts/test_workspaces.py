"""What a job finds again when it is started again."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.artifacts import Artifacts, Workspace
from service.errors import NotFound


def appear(work: Workspace, name: str, content: bytes) -> None:
    """Write a file the way that is promised: half-made under another name first."""
    target = work.folder / name
    target.parent.mkdir(exist_ok=True)
    (target.parent / ".half").write_bytes(content)
    (target.parent / ".half").rename(target)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["one", "another"])
def machine(request: pytest.FixtureRequest) -> str:
    """Where the later attempt runs; the earlier one ran on `one`."""
    return str(request.param)


def test_the_first_attempt_finds_an_empty_folder(artifacts: Artifacts) -> None:
    assert contents(artifacts.workspace("job_1", 1).folder) == {}


def test_a_later_attempt_finds_what_was_saved_on_whatever_machine(place, artifacts: Artifacts, machine: str) -> None:
    first = artifacts.workspace("job_1", 1)
    appear(first, "trial-1.json", b"1")
    appear(first, "checkpoint-10/weights", b"ten")
    first.save()
    appear(first, "trial-1.json", b"2")  # the same length: only its inode and time tell
    appear(first, "trial-2.json", b"2")
    (first.folder / "checkpoint-10" / "weights").unlink()
    (first.folder / "checkpoint-10").rmdir()
    first.save()
    second = place.open(machine).workspace("job_1", 2)
    assert contents(second.folder) == {"trial-1.json": b"2", "trial-2.json": b"2"}
    second.save()
    third = place.open(machine).workspace("job_1", 7)
    assert contents(third.folder) == {"trial-1.json": b"2", "trial-2.json": b"2"}


def test_another_jobs_work_is_not_found(artifacts: Artifacts) -> None:
    first = artifacts.workspace("job_1", 1)
    appear(first, "trial", b"1")
    first.save()
    assert contents(artifacts.workspace("job_10", 2).folder) == {}


def test_the_newest_attempt_counts_by_number(place, artifacts: Artifacts) -> None:
    for attempt in (2, 9, 10):
        work = artifacts.workspace("job_1", attempt)
        appear(work, "attempt", str(attempt).encode())
        work.save()
    assert contents(place.open("another").workspace("job_1", 11).folder) == {"attempt": b"10"}


def test_half_made_files_are_not_found(place, artifacts: Artifacts, machine: str) -> None:
    first = artifacts.workspace("job_1", 1)
    appear(first, "whole/file", b"1")
    (first.folder / ".unfinished-1").mkdir()
    (first.folder / ".unfinished-1" / "weights").write_bytes(b"ha")
    (first.folder / "whole" / ".file").write_bytes(b"ha")
    first.save()
    second = place.open(machine).workspace("job_1", 2)
    assert contents(second.folder) == {"whole/file": b"1"}
    assert not (second.folder / ".unfinished-1").exists()


def test_an_attempt_that_still_runs_cannot_write_into_the_next_ones_folder(artifacts: Artifacts) -> None:
    old = artifacts.workspace("job_1", 1)
    appear(old, "trial", b"old")
    (old.folder / ".checkpoint").mkdir()
    old.save()
    new = artifacts.workspace("job_1", 2)
    with pytest.raises(FileNotFoundError):
        (old.folder / "trial").write_bytes(b"late")
    with pytest.raises(FileNotFoundError):
        (old.folder / ".checkpoint").rename(old.folder / "checkpoint-2")
    with pytest.raises(NotFound, match="a later attempt") as lost:
        old.save()
    assert lost.value.code == "work_lost"
    assert contents(new.folder) == {"trial": b"old"}
    # One that makes its folders again, as trainers do, writes beside it.
    old.folder.mkdir(parents=True)
    (old.folder / "trial").write_bytes(b"late")
    old.save()
    new.save()
    assert contents(new.folder) == {"trial": b"old"}
    assert contents(artifacts.workspace("job_1", 3).folder) == {"trial": b"old"}


def test_an_attempt_that_still_saves_on_another_machine_is_not_what_the_third_one_finds(place, artifacts: Artifacts) -> None:
    old = place.open("one").workspace("job_1", 1)
    appear(old, "trial", b"first")
    old.save()
    new = place.open("two").workspace("job_1", 2)
    appear(new, "trial", b"second")
    new.save()
    old.folder.mkdir(parents=True, exist_ok=True)
    appear(old, "late", b"first")
    old.save()
    assert contents(place.open("three").workspace("job_1", 3).folder) == {"trial": b"second"}


def test_the_same_attempt_may_ask_again(artifacts: Artifacts) -> None:
    first = artifacts.workspace("job_1", 1)
    appear(first, "trial", b"1")
    again = artifacts.workspace("job_1", 1)
    assert again.folder == first.folder
    appear(again, "trial-2", b"2")
    again.save()
    first.save()
    assert set(contents(artifacts.workspace("job_1", 2).folder)) == {"trial", "trial-2"}


def test_all_files_gone_is_saved_too(place, artifacts: Artifacts, machine: str) -> None:
    first = artifacts.workspace("job_1", 1)
    appear(first, "trial", b"1")
    first.save()
    second = artifacts.workspace("job_1", 2)
    (second.folder / "trial").unlink()
    second.save()
    assert contents(place.open(machine).workspace("job_1", 3).folder) == {}


def test_forgotten_work_is_gone_everywhere(place, artifacts: Artifacts) -> None:
    for attempt in (1, 2):
        work = artifacts.workspace("job_1", attempt)
        appear(work, "trial", b"1")
        work.save()
    artifacts.delete("work/job_1")
    assert list(artifacts.units()) == []
    assert place.keys() == set()
    with pytest.raises(NotFound, match="the job has ended"):
        work.save()


def test_a_save_keeps_no_more_than_what_counts(place, artifacts: Artifacts) -> None:
    first = artifacts.workspace("job_1", 1)
    for step in range(5):
        appear(first, "checkpoint", str(step).encode())
        first.save()
    second = artifacts.workspace("job_1", 2)
    appear(second, "trial", b"1")
    second.save()
    assert {unit.key for unit in artifacts.units()} == {"work/job_1/2"}
    assert len(place.keys()) <= 3  # checkpoint, trial, and in a bucket what is saved


def test_of_many_starts_at_once_the_last_has_the_files(artifacts: Artifacts) -> None:
    for job in range(5):
        first = artifacts.workspace(f"job_{job}", 1)
        appear(first, "trial", b"1")
        first.save()
        attempts = list(range(2, 12))
        random.Random(job).shuffle(attempts)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda attempt, job=job: artifacts.workspace(f"job_{job}", attempt), attempts))
        assert contents(artifacts.workspace(f"job_{job}", 12).folder) == {"trial": b"1"}
