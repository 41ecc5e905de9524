"""The Qdrant stand-in's answers for measurements with millions of points: ids and vector names are kept, nothing else.

About 150 bytes a point. A point's payload is always answered as missing, so that whoever compares writes everything; vectors
are not even looked at. Scrolling, searching and filters other than "has this vector" are answered with 501.
"""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from benchmarks.qdrant_standin_answers import Asked, Refusal, no_collection, no_point

_DONE = {"operation_id": 0, "status": "completed"}


@dataclass
class _Collection:
    created: dict[str, Any]  # the body it was made with, its optimisers' settings as they are now
    dims: dict[str, int]
    schema: dict[str, str] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)  # of each name that points ever had
    points: dict[bytes, int] = field(default_factory=dict)  # 16 bytes of an id -> the bits of its names

    def bit(self, name: str) -> int:
        """The bit of a name, a power of two."""
        return self.bits.setdefault(name, 1 << len(self.bits))


class CountingAnswers:
    """A method for each operation; gives the `result` of Qdrant's answer. Not thread-safe."""

    def __init__(self) -> None:
        self._collections: dict[str, _Collection] = {}

    def close(self) -> None:
        """Nothing is open."""

    def exists(self, asked: Asked) -> object:
        """Whether the collection is there."""
        return {"exists": asked.collection in self._collections}

    def info(self, asked: Asked) -> object:
        """The collection's facts, as far as our engine reads them, and what the client's model demands beside."""
        found = self._find(asked)
        optimizers = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 1,
            "points_count": len(found.points),
            "payload_schema": {key: {"data_type": kind, "points": 0} for key, kind in found.schema.items()},
            "config": {
                "params": {"vectors": {name: {"size": dim, "distance": "Dot"} for name, dim in found.dims.items()}},
                "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
                "optimizer_config": {**optimizers, "flush_interval_sec": 5} | found.created.get("optimizers_config", {}),
                "metadata": found.created.get("metadata"),
            },
        }

    def create(self, asked: Asked) -> object:
        """Make a collection with named vectors."""
        if asked.collection in self._collections:
            raise Refusal(409, f"Wrong input: Collection `{asked.collection}` already exists!")
        body = orjson.loads(asked.body)
        dims = {name: params["size"] for name, params in body["vectors"].items()}
        self._collections[asked.collection] = _Collection(body, dims)
        return True

    def update(self, asked: Asked) -> object:
        """Change the optimisers' settings."""
        settings = self._find(asked).created.setdefault("optimizers_config", {})
        settings.update(orjson.loads(asked.body)["optimizers_config"])
        return True

    def drop(self, asked: Asked) -> object:
        """Remove the collection; false where there was none."""
        return self._collections.pop(asked.collection, None) is not None

    def create_index(self, asked: Asked) -> object:
        """Note the payload index."""
        body = orjson.loads(asked.body)
        self._find(asked).schema[body["field_name"]] = body["field_schema"]
        return _DONE

    def create_name(self, asked: Asked) -> object:
        """Add a named vector."""
        self._find(asked).dims[asked.name] = orjson.loads(asked.body)["dense"]["size"]
        return _DONE

    def drop_name(self, asked: Asked) -> object:
        """Remove a named vector from the collection and from every point."""
        found = self._find(asked)
        found.dims.pop(asked.name, None)
        kept = ~found.bit(asked.name)
        for key, names in found.points.items():
            found.points[key] = names & kept
        return _DONE

    def upsert(self, asked: Asked) -> object:
        """Note the batch's ids and names."""
        found = self._find(asked)
        batch = orjson.loads(asked.body)["batch"]
        names = sum(found.bit(self._known(found, name)) for name in batch["vectors"])
        found.points.update((UUID(point_id).bytes, names) for point_id in batch["ids"])
        return _DONE

    def set_vectors(self, asked: Asked) -> object:
        """Note the names of points that are there."""
        found = self._find(asked)
        missing = None
        for point in orjson.loads(asked.body)["points"]:
            key = UUID(point["id"]).bytes
            if key in found.points:
                for name in point["vector"]:
                    found.points[key] |= found.bit(self._known(found, name))
            else:
                missing = missing or point["id"]
        if missing is not None:
            raise no_point(missing)
        return _DONE

    def delete(self, asked: Asked) -> object:
        """Forget points by id."""
        found = self._find(asked)
        body = orjson.loads(asked.body)
        if "points" not in body:
            raise Refusal(501, "THIS IS NOT QDRANT: the counting stand-in deletes by id only")
        for point_id in body["points"]:
            found.points.pop(UUID(point_id).bytes, None)
        return _DONE

    def retrieve(self, asked: Asked) -> object:
        """Those of the ids that are there."""
        found = self._find(asked)
        ids = orjson.loads(asked.body)["ids"]
        return [{"id": point_id} for point_id in ids if UUID(point_id).bytes in found.points]

    def count(self, asked: Asked) -> object:
        """The number of points, all or those with one name."""
        found = self._find(asked)
        match orjson.loads(asked.body).get("filter"):
            case None:
                return {"count": len(found.points)}
            case {"must": [{"has_vector": str(name), **others}], **rest} if not others and not rest:
                bit = found.bit(name)
                return {"count": sum(1 for names in found.points.values() if names & bit)}
        raise Refusal(501, "THIS IS NOT QDRANT: the counting stand-in only filters by one has_vector")

    def _find(self, asked: Asked) -> _Collection:
        if asked.collection not in self._collections:
            raise no_collection(asked.collection)
        return self._collections[asked.collection]

    def _known(self, found: _Collection, name: str) -> str:
        if name not in found.dims:
            raise Refusal(400, f"Wrong input: Not existing vector name error: {name}")
        return name
