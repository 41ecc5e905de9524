"""The Qdrant stand-in's answers out of qdrant-client's local engine. Bodies are read with the client's own request models.

The local engine has no settings and no payload indexes: both are kept beside the user's metadata in the collection's own, so
that they survive with it where the points are in a folder.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from qdrant_client import QdrantClient, models

from benchmarks.qdrant_standin_answers import Asked, Refusal, no_collection, no_point, read

_CREATE = TypeAdapter(models.CreateCollection)
_UPDATE = TypeAdapter(models.UpdateCollection)
_INDEX: TypeAdapter[models.CreateFieldIndex] = TypeAdapter(models.CreateFieldIndex)
_NAME: TypeAdapter[models.VectorNameConfig] = TypeAdapter(models.VectorNameConfig)
_POINTS: TypeAdapter[models.PointInsertOperations] = TypeAdapter(models.PointInsertOperations)
_VECTORS = TypeAdapter(models.UpdateVectors)
_SELECTOR: TypeAdapter[models.PointsSelector] = TypeAdapter(models.PointsSelector)
_RETRIEVE = TypeAdapter(models.PointRequest)
_SCROLL = TypeAdapter(models.ScrollRequest)
_COUNT = TypeAdapter(models.CountRequest)
_QUERY = TypeAdapter(models.QueryRequest)

_DONE = {"operation_id": 0, "status": "completed"}


class LocalAnswers:
    """A method for each operation; gives the `result` of Qdrant's answer. Not thread-safe."""

    def __init__(self, path: Path | None) -> None:
        if path is None:
            self._client = QdrantClient(":memory:")
        else:  # made in one thread and used in another, but never in both at once
            self._client = QdrantClient(path=str(path), force_disable_check_same_thread=True)

    def close(self) -> None:
        """Give the folder back."""
        self._client.close()

    def exists(self, asked: Asked) -> object:
        """Whether the collection is there."""
        return {"exists": self._client.collection_exists(asked.collection)}

    def info(self, asked: Asked) -> object:
        """The collection's facts, with the settings that were asked for."""
        with _refusals(asked.collection):
            info = self._client.get_collection(asked.collection)
        kept = self._kept(info)
        plain: dict[str, Any] = info.model_dump(mode="json", exclude_none=True)
        config = plain["config"]
        config["metadata"] = kept["metadata"]
        config["hnsw_config"] |= kept["hnsw_config"]
        config["optimizer_config"] |= kept["optimizers_config"]
        config["quantization_config"] = kept.get("quantization_config")
        plain["payload_schema"] = {field: {"data_type": kind, "points": 0} for field, kind in kept["schema"].items()}
        return plain

    def create(self, asked: Asked) -> object:
        """Make a collection with named vectors."""
        wanted = read(_CREATE, asked.body)
        _knows(wanted, {"vectors", "hnsw_config", "optimizers_config", "quantization_config", "metadata"})
        if self._client.collection_exists(asked.collection):
            raise Refusal(409, f"Wrong input: Collection `{asked.collection}` already exists!")
        kept: dict[str, Any] = {
            "metadata": wanted.metadata or {},
            "hnsw_config": _plain(wanted.hnsw_config),
            "optimizers_config": _plain(wanted.optimizers_config),
            "schema": {},
        }
        if wanted.quantization_config is not None:
            kept["quantization_config"] = _plain(wanted.quantization_config)
        with _refusals(asked.collection):
            return self._client.create_collection(asked.collection, vectors_config=wanted.vectors, metadata=kept)

    def update(self, asked: Asked) -> object:
        """Change the optimisers' settings."""
        wanted = read(_UPDATE, asked.body)
        _knows(wanted, {"optimizers_config"})
        with _refusals(asked.collection):
            kept = self._kept(self._client.get_collection(asked.collection))
            changed = {"optimizers_config": kept["optimizers_config"] | _plain(wanted.optimizers_config)}
            return self._client.update_collection(asked.collection, metadata=changed)

    def drop(self, asked: Asked) -> object:
        """Remove the collection; false where there was none."""
        return self._client.delete_collection(asked.collection)

    def create_index(self, asked: Asked) -> object:
        """Note the payload index."""
        wanted = read(_INDEX, asked.body)
        if not isinstance(wanted.field_schema, models.PayloadSchemaType):
            raise Refusal(501, f"this stand-in only knows indexes by their plain type, not {wanted.field_schema!r}")
        with _refusals(asked.collection):
            kept = self._kept(self._client.get_collection(asked.collection))
            schema = kept["schema"] | {wanted.field_name: wanted.field_schema.value}
            self._client.update_collection(asked.collection, metadata={"schema": schema})
        return _DONE

    def create_name(self, asked: Asked) -> object:
        """Add a named vector."""
        with _refusals(asked.collection):
            return self._client.create_vector_name(asked.collection, asked.name, read(_NAME, asked.body))

    def drop_name(self, asked: Asked) -> object:
        """Remove a named vector."""
        with _refusals(asked.collection):
            return self._client.delete_vector_name(asked.collection, asked.name)

    def upsert(self, asked: Asked) -> object:
        """Write whole points, given as a batch."""
        points = read(_POINTS, asked.body)
        _knows(points, {"batch"})
        assert isinstance(points, models.PointsBatch)
        with _refusals(asked.collection):
            return self._client.upsert(asked.collection, points.batch)

    def set_vectors(self, asked: Asked) -> object:
        """Set named vectors of points."""
        wanted = read(_VECTORS, asked.body)
        _knows(wanted, {"points"})
        with _refusals(asked.collection):
            return self._client.update_vectors(asked.collection, wanted.points)

    def delete(self, asked: Asked) -> object:
        """Delete points by id or filter."""
        with _refusals(asked.collection):
            return self._client.delete(asked.collection, read(_SELECTOR, asked.body))

    def retrieve(self, asked: Asked) -> object:
        """The points with these ids."""
        wanted = read(_RETRIEVE, asked.body)
        _knows(wanted, {"ids", "with_payload", "with_vector"})
        with _refusals(asked.collection):
            return self._client.retrieve(
                asked.collection, wanted.ids, with_payload=wanted.with_payload or False, with_vectors=wanted.with_vector or False
            )

    def scroll(self, asked: Asked) -> object:
        """A page of the points."""
        wanted = read(_SCROLL, asked.body)
        _knows(wanted, {"filter", "limit", "offset", "with_payload", "with_vector"})
        with _refusals(asked.collection):
            points, following = self._client.scroll(
                asked.collection,
                scroll_filter=wanted.filter,
                limit=wanted.limit or 10,
                offset=wanted.offset,
                with_payload=wanted.with_payload or False,
                with_vectors=wanted.with_vector or False,
            )
        return {"points": points, "next_page_offset": following}

    def count(self, asked: Asked) -> object:
        """The number of points."""
        wanted = read(_COUNT, asked.body)
        _knows(wanted, {"filter", "exact"})
        with _refusals(asked.collection):
            return self._client.count(asked.collection, count_filter=wanted.filter)

    def query(self, asked: Asked) -> object:
        """The nearest points, exactly: `params` is read and passed over."""
        wanted = read(_QUERY, asked.body)
        _knows(wanted, {"query", "using", "filter", "params", "limit", "with_payload", "with_vector"})
        with _refusals(asked.collection):
            return self._client.query_points(
                asked.collection,
                query=wanted.query,
                using=wanted.using,
                query_filter=wanted.filter,
                limit=wanted.limit or 10,
                with_payload=wanted.with_payload or False,
                with_vectors=wanted.with_vector or False,
            )

    def _kept(self, info: models.CollectionInfo) -> dict[str, Any]:
        assert info.config.metadata is not None  # every collection here was made by `create`
        return info.config.metadata


@contextmanager
def _refusals(collection: str) -> Iterator[None]:
    """What the local engine raises, as the server's refusals."""
    try:
        yield
    except KeyError as error:
        raise no_point(error.args[0]) from error
    except ValueError as error:
        sentence = str(error)
        if sentence == f"Collection {collection} not found":
            raise no_collection(collection) from error
        if unknown := re.search(r"[Vv]ector (\S+) is not found in the collection", sentence):
            raise Refusal(400, f"Wrong input: Not existing vector name error: {unknown[1]}") from error
        raise Refusal(400, sentence) from error


def _knows(wanted: BaseModel, known: set[str]) -> None:
    """Refuse loudly what a server would do and this does not."""
    unknown = wanted.model_fields_set - known
    if unknown:
        raise Refusal(501, f"this stand-in does not know {', '.join(sorted(unknown))} of {type(wanted).__name__}")


def _plain(settings: BaseModel | None) -> dict[str, Any]:
    return {} if settings is None else settings.model_dump(mode="json", exclude_none=True)
