"""The folders of Edge's shards: made whole or not at all, and removed the same way.

A folder under a collection's own name is always a finished shard. It is built, and later removed, under a name with a dot
in front, which no collection can have; what a killed process left there is swept away at the next start.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import qdrant_edge as edge

from service.vectors.engine import FieldType

UNFINISHED = ".unfinished-"
OWNER = "zerogate_collection"  # The file in a shard's folder with its owner's id. Edge leaves files alone that it does not know.
INDEX_TYPES: dict[FieldType, edge.PayloadSchemaType] = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Keyword,  # See edge_payloads.
    "datetime": edge.PayloadSchemaType.Datetime,
    "text": edge.PayloadSchemaType.Text,
}


def sweep(folder: Path) -> None:
    """Make the folder, and remove what a killed process was creating or dropping in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)


def create_shard(path: Path, *, dim: int, indexes: Mapping[str, FieldType], owner: str) -> None:
    """Make an empty shard at path with the named vector `base`, its indexes and its owner. A kill leaves all of it or no path.

    The indexes are made now because that costs nothing while the shard is empty and stops the process later (4.7 s at a
    million points). An empty shard takes 72 kB of disk, though its files claim 100 MB.
    """
    unfinished = path.with_name(UNFINISHED + path.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    vectors = {"base": edge.EdgeVectorParams(size=dim, distance=edge.Distance.Dot)}
    shard = edge.EdgeShard.create(str(unfinished), edge.EdgeConfig(vectors=vectors, wal_enabled=True))
    try:
        for field, field_type in indexes.items():
            shard.update(edge.UpdateOperation.create_field_index(field, INDEX_TYPES[field_type]))
        shard.flush()
    except BaseException:  # a field that Edge cannot index
        shard.close()
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shard.close()
    write_owner(unfinished, owner)
    unfinished.rename(path)
    _fsync(path.parent)


def read_owner(path: Path) -> str | None:
    """The owner's id of the shard at path; None where no one was noted, as older versions did."""
    try:
        return (path / OWNER).read_text()
    except FileNotFoundError:
        return None


def write_owner(path: Path, owner: str) -> None:
    """Note the owner of the shard at path. A kill leaves the whole mark or none."""
    unfinished = path / f"{OWNER}{UNFINISHED}"
    unfinished.write_text(owner)
    _fsync(unfinished)
    unfinished.rename(path / OWNER)
    _fsync(path)


def remove_shard(path: Path) -> None:
    """Remove a shard that is closed. A kill leaves the whole shard or what `sweep` removes."""
    unfinished = path.with_name(UNFINISHED + path.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    path.rename(unfinished)
    _fsync(path.parent)
    shutil.rmtree(unfinished)


def fsync_log(path: Path) -> None:
    """Force the shard's write-ahead log to disk. Nobody may write to the shard meanwhile, as that renames log files.

    Edge syncs nothing before its own flush, which takes about 30 fsyncs and stops every thread of the process (it holds
    the GIL, 10 to 30 ms on an SSD). These are two fsyncs, and other threads run.
    """
    for log in (path / "wal").iterdir():
        _fsync(log)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
