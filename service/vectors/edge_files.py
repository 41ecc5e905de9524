"""The files of Edge's collections: made whole or not at all, and removed the same way.

A folder under a collection's own name is always a finished shard. It is built, and later removed, under a name with a dot
in front, which no collection can have; what a killed process left there is swept away at the next start. A collection that
nobody has used yet has no shard, only a small file that says what the shard will be made of: its declaration.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import qdrant_edge as edge

from service.vectors.engine import FieldType

UNFINISHED = ".unfinished-"
DECLARED = ".declared-"
OWNER = "zerogate_collection"  # The file in a shard's folder with its owner's id. Edge leaves files alone that it does not know.
INDEX_TYPES: dict[FieldType, edge.PayloadSchemaType] = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Keyword,  # See edge_payloads.
    "datetime": edge.PayloadSchemaType.Datetime,
    "text": edge.PayloadSchemaType.Text,
}


@dataclass(frozen=True)
class Declaration:
    """What the shard of a collection will be made of. dims: the dimension of every named vector, `base` among them."""

    owner: str
    dims: Mapping[str, int]
    indexes: Mapping[str, FieldType]


def sweep(folder: Path) -> None:
    """Make the folder, and remove what a killed process was creating or dropping in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{UNFINISHED}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    for declaration in folder.glob(f"{DECLARED}*"):
        if (folder / declaration.name.removeprefix(DECLARED)).exists():
            declaration.unlink()


def declare(path: Path, declaration: Declaration) -> None:
    """Note what the shard at path will be made of. A kill leaves the whole declaration or the one before.

    Raises Edge's ValueError for a field that it cannot index. The folder is not synced: what a power cut takes, the first
    publish declares again.
    """
    _index_operations(declaration)  # refuses now what the shard would refuse
    target = _declaration_of(path)
    unfinished = target.with_name(UNFINISHED + target.name)
    unfinished.write_text(json.dumps(asdict(declaration)))
    _fsync(unfinished)
    unfinished.rename(target)


def read_declaration(path: Path) -> Declaration | None:
    """What the shard at path will be made of; None where there is a shard already, or nothing."""
    if path.exists():
        return None
    try:
        return Declaration(**json.loads(_declaration_of(path).read_bytes()))
    except FileNotFoundError:
        return None


def _declaration_of(path: Path) -> Path:
    return path.with_name(DECLARED + path.name)


def _index_operations(declaration: Declaration) -> list[edge.UpdateOperation]:
    return [edge.UpdateOperation.create_field_index(field, INDEX_TYPES[kind]) for field, kind in declaration.indexes.items()]


def create_shard(path: Path, declaration: Declaration) -> None:
    """Make the empty shard at path that was declared. A kill leaves all of it or the declaration alone.

    The indexes are made now because that costs nothing while the shard is empty and stops the process later (4.7 s at a
    million points). An empty shard takes 72 kB of disk, though its files claim 100 MB.
    """
    unfinished = path.with_name(UNFINISHED + path.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    vectors = {name: edge.EdgeVectorParams(size=dim, distance=edge.Distance.Dot) for name, dim in declaration.dims.items()}
    with closing(edge.EdgeShard.create(str(unfinished), edge.EdgeConfig(vectors=vectors, wal_enabled=True))) as shard:
        for operation in _index_operations(declaration):
            shard.update(operation)
        shard.flush()
    write_owner(unfinished, declaration.owner)
    unfinished.rename(path)
    _fsync(path.parent)
    _declaration_of(path).unlink()


def read_owner(path: Path) -> str | None:
    """The owner's id of the collection at path, declared or made; None where there is none, or older versions noted none."""
    declaration = read_declaration(path)
    if declaration is not None:
        return declaration.owner
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


def remove_collection(path: Path) -> None:
    """Remove a declaration, or a shard that is closed, or nothing. A kill leaves the whole or what `sweep` removes."""
    _declaration_of(path).unlink(missing_ok=True)
    if not path.exists():
        return
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
        with suppress(FileNotFoundError):  # Edge prepares the next log file in a thread, and renames it when it is ready.
            _fsync(log)


def fsync_data(path: Path) -> None:
    """Force to disk what the shard has written so far, so that the flush that follows has little left to do.

    A flush of 10,000 points of 384 stops every thread for 11 ms then, and for 53 ms without; here the others run.
    """
    for file in (path / "segments").rglob("*"):
        if file.is_file():
            with suppress(FileNotFoundError):  # renamed meanwhile: the flush that follows syncs it
                _fsync(file)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
