"""What stands in the database, in Qdrant and in the files when the chaos is over: by plain SQL, HTTP, listings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import httpx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.chaos_processes import Installation

Row = dict[str, Any]
Vectors = NDArray[np.float32]

_TABLES: dict[str, LiteralString] = {
    "jobs": "SELECT * FROM jobs ORDER BY id",
    "events": "SELECT * FROM job_events ORDER BY job_id, number",
    "models": "SELECT * FROM models",
    "versions": "SELECT id, model_id, number, job_id, artifact_key, strength FROM versions",
    "promotions": "SELECT model_id, action, to_version FROM promotions",
    "datasets": "SELECT id, artifact_key FROM datasets",
    "collections": "SELECT * FROM collections",
    "vectors": "SELECT * FROM collection_vectors",
}


@dataclass(frozen=True)
class Head:
    """A head's file: y = matrix x + offset. matrix (out, dim) and offset (out,), float32."""

    matrix: Vectors
    offset: Vectors | None


@dataclass(frozen=True)
class Point:
    """A point of the collection, with its named vectors."""

    id: str
    payload: Row
    vectors: Mapping[str, Vectors]


@dataclass(frozen=True)
class QdrantCollection:
    """A collection as Qdrant shows it."""

    vector_names: frozenset[str]
    points: list[Point]


@dataclass(frozen=True)
class Facts:
    """Everything. tables: rows by table. files: paths below `files`, folders that hold nothing with a '/' behind them.

    heads: by artifact key. qdrant: by the name there; stored: the names of all collections that the stand-in keeps on disk.
    """

    tables: Mapping[str, list[Row]]
    files: frozenset[str]
    heads: Mapping[str, Head]
    qdrant: Mapping[str, QdrantCollection]
    stored: frozenset[str]


def read_facts(installation: Installation) -> Facts:
    """Look at everything, when nothing moves any more."""
    tables = {name: installation.rows(statement) for name, statement in _TABLES.items()}
    files = installation.data / "files"
    keys = [row["artifact_key"] for row in tables["versions"] if row["artifact_key"] is not None]
    heads = {key: _head(files / key) for key in keys if (files / key / "head.safetensors").exists()}
    with httpx.Client(base_url=installation.qdrant_url, timeout=60.0) as client:
        qdrant = {row["qdrant_collection"]: _collection(client, row["qdrant_collection"]) for row in tables["collections"]}
    stored = installation.qdrant_points / "collection"
    names = frozenset(path.name for path in stored.iterdir()) if stored.exists() else frozenset[str]()
    return Facts(tables, listing(files), heads, qdrant, names)


def listing(folder: Path) -> frozenset[str]:
    """The paths of all files below the folder, and with a '/' behind them those of folders that are empty."""
    found = set()
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        if not path.is_dir():
            found.add(relative)
        elif not any(path.iterdir()):
            found.add(f"{relative}/")
    return frozenset(found)


def _head(folder: Path) -> Head:
    tensors = load_file(folder / "head.safetensors")
    return Head(tensors["matrix"], tensors.get("offset"))


def _collection(client: httpx.Client, name: str) -> QdrantCollection:
    info = _result(client.get(f"/collections/{name}"))
    points: list[Point] = []
    body: Row = {"limit": 1000, "with_payload": True, "with_vector": True}
    while True:
        page = _result(client.post(f"/collections/{name}/points/scroll", json=body))
        for one in page["points"]:
            vectors = {key: np.asarray(vector, dtype=np.float32) for key, vector in one["vector"].items()}
            points.append(Point(str(one["id"]), one["payload"], vectors))
        if page["next_page_offset"] is None:
            return QdrantCollection(frozenset(info["config"]["params"]["vectors"]), points)
        body["offset"] = page["next_page_offset"]


def _result(response: httpx.Response) -> Any:
    return response.raise_for_status().json()["result"]
