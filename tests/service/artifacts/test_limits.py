"""A disk that is full, and little memory: in a process of their own, because a limit is for a whole process."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.artifacts import Artifacts
from service.artifacts.disk import disk_errors
from service.artifacts.folder import FolderArtifacts
from service.errors import NotFound, StorageFull, Unavailable

MEBIBYTE = 2**20

# No file of this process may grow beyond 1 MiB: the system says EFBIG, as it says ENOSPC where a disk is full.
ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from service.artifacts.bucket import BucketArtifacts
from service.artifacts.folder import FolderArtifacts
from service.errors import StorageFull

place, folder = sys.argv[1], Path(sys.argv[2])
artifacts = FolderArtifacts(folder) if place == "folder" else BucketArtifacts(place, folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
large = bytes(2**21)

def in_scratch():
    with artifacts.scratch() as scratch:
        (scratch / "file").write_bytes(large)

def by_a_library():
    with artifacts.scratch() as scratch:
        save_file({"a": np.zeros(2**21, np.uint8)}, scratch / "file")

def write():
    artifacts.write("heads/job_2/1", {"manifest": b"{}", "weights": large})

def local_file():
    with artifacts.local_file("datasets/large"):
        pass

def local_folder():
    artifacts.local_folder("encoders/job_1/1")

def workspace():
    artifacts.workspace("job_1", 2)

asked = [in_scratch, by_a_library] + ([write] if place == "folder" else [local_file, local_folder, workspace])
for ask in asked:
    try:
        ask()
    except StorageFull as error:
        assert str(folder) in error.message and error.status == 507, error.message
    else:
        sys.exit(f"{ask.__name__} found room")
artifacts.write("heads/job_3/1", {"manifest": b"{}"})  # what is small enough still goes in
artifacts.delete("heads/job_0/1")
print("ok")
"""

IN_LITTLE_MEMORY = """
import sys, threading, time
from pathlib import Path
from service.artifacts.bucket import BucketArtifacts
from service.artifacts.folder import FolderArtifacts

place, folder = sys.argv[1], Path(sys.argv[2])
artifacts = FolderArtifacts(folder) if place == "folder" else BucketArtifacts(place, folder)

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

artifacts.ping()
before, most, done = anonymous(), 0, threading.Event()

def watch():
    global most
    while not done.is_set():
        most = max(most, anonymous())
        time.sleep(0.002)

watching = threading.Thread(target=watch)
watching.start()
with artifacts.scratch() as scratch:
    with (scratch / "file").open("wb") as stream:
        for n in range(64):
            stream.write(bytes([n]) * 2**20)
    artifacts.store("datasets/large", scratch / "file")
with artifacts.local_file("datasets/large") as path, path.open("rb") as stream:
    for n in range(64):
        assert stream.read(2**20) == bytes([n]) * 2**20, n
    assert stream.read() == b""
done.set()
watching.join()
print(most - before)
"""


def run(code: str, place) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code, place.url, place.local], capture_output=True, text=True, check=False, timeout=120
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_a_full_disk_is_told_as_such_and_leaves_no_half_file(
    place, artifacts: Artifacts, put: Callable[[str, bytes], None]
) -> None:
    large = bytes(2 * MEBIBYTE)
    put("datasets/large", large)
    artifacts.write("encoders/job_1/1", {"config": b"{}", "model": large})
    artifacts.write("heads/job_0/1", {"head": b"1"})
    work = place.open("another").workspace("job_1", 1)
    (work.folder / "checkpoint").write_bytes(large)
    work.save()
    before = place.keys()
    assert run(ON_A_FULL_DISK, place) == "ok"
    assert place.keys() == before - {"heads/job_0/1/head"} | {"heads/job_3/1/manifest"}
    assert place.half_made() == []
    assert (artifacts.workspace("job_1", 2).folder / "checkpoint").read_bytes() == large


def test_a_file_of_64_mebibytes_goes_up_and_down_in_much_less_memory(place) -> None:
    assert int(run(IN_LITTLE_MEMORY, place)) < 40 * MEBIBYTE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_disk_without_room_inside_a_scratch_block_is_told(place, artifacts: Artifacts) -> None:
    def plainly() -> None:
        with Path("/dev/full").open("wb") as stream:
            stream.write(b"1")
            stream.flush()

    def through_a_library() -> None:
        try:
            plainly()
        except OSError as error:
            raise RuntimeError("the model could not be saved") from error

    # Only ever open the device. A library that writes beside it and renames, as safetensors does, would replace it (as root).
    for write in (plainly, through_a_library):
        with pytest.raises(StorageFull, match="No space left on device") as full, artifacts.scratch():
            write()
        assert full.value.code == "storage_full"
    assert place.half_made() == []


def test_a_disk_that_is_full_can_still_be_emptied(place, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.write("heads/job_1/1", {"head": b"1"})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", full)
    artifacts.delete("heads/job_1/1")
    assert list(artifacts.units()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_way_to_have_no_room_is_one_error(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageFull, match=str(tmp_path)), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), ValueError("row 28"), NotFound("gone"), RuntimeError("(os error 13)")]
)
def test_other_errors_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as found, disk_errors(tmp_path):
        raise error
    assert found.value is error


def test_a_folder_that_is_gone_is_no_place_to_write(place, artifacts: Artifacts) -> None:
    for scratch in list(place.folder.rglob("scratch")):
        scratch.rmdir()
    with pytest.raises(Unavailable, match="is its file system mounted"):
        artifacts.ping()


def test_a_folder_that_is_gone_is_an_outage_and_no_crash(tmp_path: Path) -> None:
    artifacts = FolderArtifacts(tmp_path / "files")
    (tmp_path / "files").rename(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="is gone; is its file system mounted"), artifacts.scratch():
        pass
    (tmp_path / "files").write_text("not a folder any more")

    for asked in (
        artifacts.ping,
        lambda: artifacts.write("heads/job_1/1", {"a": b"b"}),
        lambda: artifacts.read("heads/job_1/1/a"),
    ):
        with pytest.raises(Unavailable, match="cannot be used: Not a directory"):
            asked()
