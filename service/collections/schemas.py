"""Collections and searches as the API takes and shows them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.collections.standings import Standing
from service.collections.targets import Path
from service.embeddings.schemas import Strength
from service.http.bodies import Body
from service.names import vector_name
from service.vectors.engine import FieldType, Hit, IndexSettings


class CollectionRequest(Body):
    """Make a collection."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "docs", "model": "faq", "indexes": {"lang": "keyword"}}]})

    name: str
    model: str = Field(description="the model whose live version its searches use; for good")
    indexes: dict[str, FieldType] = Field(
        default={}, description="metadata fields that filters will use; they cannot be added later"
    )
    quantization: Literal["none", "scalar", "turbo"] = Field(
        default="none", description="what a Qdrant server searches through first: int8 (scalar) or TurboQuant; scores stay exact"
    )
    hnsw_m: int | None = Field(default=None, ge=0, le=1024, description="edges per node of the HNSW graph; default: the server's")
    hnsw_ef_construct: int | None = Field(default=None, ge=4, le=10_000, description="default: the server's")

    def index_settings(self) -> IndexSettings:
        """How a server shall index it."""
        return IndexSettings(self.quantization, self.hnsw_m, self.hnsw_ef_construct)


class DocumentsRequest(Body):
    """Write documents: a dataset of kind documents, or the rows themselves."""

    dataset: str | None = None
    rows: list[dict[str, Any]] | None = Field(
        default=None, description='[{"id": ..., "text": ..., any metadata}]', min_length=1, max_length=10_000
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "DocumentsRequest":
        if (self.dataset is None) == (self.rows is None):
            raise ValueError("give either 'dataset' or 'rows'")
        return self


class DeleteDocumentsRequest(Body):
    """Delete documents by id or by filter."""

    ids: list[str] | None = Field(default=None, min_length=1, max_length=10_000)
    filter: dict[str, Any] | None = Field(default=None, description="a Qdrant filter object")

    @model_validator(mode="after")
    def _one_of_both(self) -> "DeleteDocumentsRequest":
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either 'ids' or 'filter'")
        return self


class SearchRequest(Body):
    """Search by a text, or by a vector: of `version`, else of the one that the collection serves by name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": "reset my password",
                    "limit": 3,
                    "filter": {"must": [{"key": "metadata.lang", "match": {"value": "en"}}]},
                }
            ]
        },
    )

    query: str | None = None
    vector: list[float] | None = None
    limit: int = Field(default=10, ge=1, le=1000)
    filter: dict[str, Any] | None = Field(
        default=None, description="a Qdrant filter object over document_id, text_sha256 and metadata.*"
    )
    version: int | None = Field(default=None, ge=0, description="another version than the live one, promoted or not")
    strength: Strength | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "SearchRequest":
        if (self.query is None) == (self.vector is None):
            raise ValueError("give either 'query' or 'vector'")
        return self


class VectorNameAnswer(BaseModel):
    """A named vector: `points` is the exact count after the last write."""

    name: str
    version: int
    state: str
    points: int


class TextSearchAnswer(BaseModel):
    """What searches by a text use when they name no version: the live version, at once.

    path: `instant` until the version's own vectors are ready (its documents' vectors are computed from `base` as they are
    needed), then `indexed`.
    """

    version: str
    path: Path


class CollectionAnswer(BaseModel):
    """A collection. `search` tells what searches by a text use.

    Who queries Qdrant directly uses `qdrant_collection`, the vector name of `serving`, and vectors of its `version` (which
    `POST /v1/embeddings` gives with `collection`): the live version as soon as its vectors are ready, until then the one before.
    One that maps queries only is served by the named vector `base`.
    """

    id: str
    object: Literal["collection"] = "collection"
    name: str
    model: str
    qdrant_collection: str
    indexes: dict[str, FieldType]
    settings: dict[str, Any]
    points: int
    ready: list[str]
    building: list[str]
    serving: str
    version: str
    search: TextSearchAnswer
    vectors: list[VectorNameAnswer]
    created: int


class HitAnswer(BaseModel):
    """A document that was found; score is the cosine of query and document, -1 to 1."""

    document_id: str
    chunk: int
    score: float
    text: str
    metadata: dict[str, Any]


class SearchAnswer(BaseModel):
    """Hits, best first, and what they were found with.

    vector_name: the named vector that was searched. path: `instant` where that was `base` in place of the version's own, and
    the scores are those that its vectors will have.
    """

    object: Literal["list"] = "list"
    data: list[HitAnswer]
    version: str
    strength: float
    vector_name: str
    path: Path


def collection_answer(found: Standing) -> CollectionAnswer:
    """The answer for one collection."""
    row, vectors = found.collection, found.vectors
    return CollectionAnswer(
        id=row.name,
        name=row.name,
        model=found.model,
        qdrant_collection=row.qdrant_collection,
        indexes=row.indexes,
        settings=row.settings,
        points=vectors[0].points,
        ready=[vector.vector_name for vector in vectors if vector.state == "ready"],
        building=[vector.vector_name for vector in vectors if vector.state == "building"],
        serving="base" if found.serves_base else vector_name(found.serving),
        version=f"{found.model}@{found.serving}",
        search=TextSearchAnswer(version=f"{found.model}@{found.by_text}", path=found.path),
        vectors=[
            VectorNameAnswer(name=vector.vector_name, version=vector.version, state=vector.state, points=vector.points)
            for vector in vectors
        ],
        created=int(row.created_at.timestamp()),
    )


def hit_answer(hit: Hit) -> HitAnswer:
    """The answer for one hit."""
    return HitAnswer(
        document_id=hit.payload["document_id"],
        chunk=hit.payload["chunk"],
        score=hit.score,
        text=hit.payload["text"],
        metadata=hit.payload["metadata"],
    )
