"""The Qdrant collection behind a collection's row. The row is committed first: whatever is in Qdrant is known from a row."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.collections.queries import vector_rows
from service.models.queries import get_version, version_facts
from service.names import vector_name
from service.tables import Collection, EncoderRow, Model
from service.vectors.engine import FieldType, IndexSettings, VectorEngine

# Always indexed: deleting a document finds its points by it.
_OWN_INDEXES: dict[str, FieldType] = {"document_id": "keyword"}


@dataclass(frozen=True)
class Physical:
    """What stands in Qdrant, as the rows say; plain values. dims: of every named vector but those that are being dropped."""

    name: str
    owner: str
    indexes: Mapping[str, FieldType]
    settings: IndexSettings
    dims: Mapping[str, int]


def physical_of(session: Session, collection: Collection) -> Physical:
    """What Qdrant has to hold for the collection."""
    model = session.get_one(Model, collection.model_id)
    encoder = session.get_one(EncoderRow, model.encoder_id)
    versions = {0, *(row.version for row in vector_rows(session, collection.id) if row.state != "dropping")}
    facts = (version_facts(get_version(session, model, version), model, encoder) for version in sorted(versions))
    return Physical(
        name=collection.qdrant_collection,
        owner=collection.id,
        indexes={**_OWN_INDEXES, **{f"metadata.{field}": kind for field, kind in collection.indexes.items()}},
        settings=IndexSettings(**collection.settings),
        dims={vector_name(one.number): one.dim for one in facts},
    )


def ensure(vectors: VectorEngine, physical: Physical) -> None:
    """Make what is missing in Qdrant. May be repeated. Raises Conflict where the name is somebody else's there."""
    base, *others = physical.dims
    vectors.create_collection(
        physical.name, dim=physical.dims[base], indexes=physical.indexes, owner=physical.owner, settings=physical.settings
    )
    for name in others:
        vectors.add_vector_name(physical.name, name, dim=physical.dims[name])
