"""Making, owning and dropping the collections of a Qdrant server, which other programs may use as well.

Whose a collection is stands in its own metadata (server >= 1.16): `{"zerogate_collection": owner}`. The server has no "only
if it is mine": between the look and the delete another program could put a collection of its own in the place.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from qdrant_client import QdrantClient, models

from service.errors import Conflict, InvalidRequest, NotFound, ServiceError
from service.vectors.engine import FieldType, IndexSettings
from service.vectors.refusals import check_same_dim
from service.vectors.server_errors import server_errors

MARK = "zerogate_collection"
INDEXING_THRESHOLD = 10_000  # kB of vectors in a segment from which it gets an HNSW graph; what the server's own file says.
INDEX_TYPES: dict[FieldType, models.PayloadSchemaType] = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "integer": models.PayloadSchemaType.INTEGER,
    "float": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
    "datetime": models.PayloadSchemaType.DATETIME,
    "text": models.PayloadSchemaType.TEXT,
}


def ensure_collection(
    client: QdrantClient,
    collection: str,
    *,
    dim: int,
    indexes: Mapping[str, FieldType],
    owner: str,
    settings: IndexSettings,
) -> None:
    """Make the collection, or complete one of the same owner that a killed or a second creator has not finished."""
    if _find(client, collection) is None:
        _create_unless_there(client, collection, dim=dim, owner=owner, settings=settings)
    with server_errors(collection):
        info = client.get_collection(collection)
    if _owner(info) != owner:
        raise Conflict(
            f"Qdrant holds a collection {collection!r} that is not this one's: the {MARK!r} in its metadata is "
            f"{_owner(info)!r}, not {owner!r}. It was left as it is. Choose another name, or delete it in Qdrant if nobody "
            "needs it.",
            code="qdrant_name_taken",
        )
    check_same_dim(collection, "base", asked=dim, existing=dims_of(collection, info)["base"])
    for field in sorted(indexes.keys() - info.payload_schema.keys()):
        with server_errors(collection):
            client.create_payload_index(collection, field, INDEX_TYPES[indexes[field]], wait=True)


def _create_unless_there(client: QdrantClient, collection: str, *, dim: int, owner: str, settings: IndexSettings) -> None:
    try:
        with server_errors(collection):
            client.create_collection(
                collection,
                vectors_config={"base": models.VectorParams(size=dim, distance=models.Distance.DOT)},
                # For the whole collection and not for `base`, so that names added later are indexed the same way.
                hnsw_config=models.HnswConfigDiff(m=settings.hnsw_m, ef_construct=settings.hnsw_ef_construct),
                quantization_config=_quantization(settings),
                optimizers_config=models.OptimizersConfigDiff(indexing_threshold=INDEXING_THRESHOLD),
                metadata={MARK: owner},
            )
    except InvalidRequest:
        # Another process was faster, which is as good where the owner is the same.
        if _find(client, collection) is None:
            raise


def _quantization(settings: IndexSettings) -> models.QuantizationConfig | None:
    match settings.quantization:
        case "scalar":
            return models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))
        case "turbo":
            return models.TurboQuantization(turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS4))
    return None


def drop_collection(client: QdrantClient, collection: str, *, owner: str) -> None:
    """Remove the collection if it carries this owner's mark."""
    info = _find(client, collection)
    if info is not None and _owner(info) == owner:
        with server_errors(collection):
            client.delete_collection(collection)


@contextmanager
def without_indexing(client: QdrantClient, collection: str) -> Iterator[None]:
    """Build no HNSW graph inside; afterwards the server does it in the background, and searches what has none exhaustively.

    The server keeps the setting, so a kill inside leaves it off until the next time through here. It changes the setting
    only when the optimisations that run have ended, so entering and leaving may take that long, or raise Unavailable.
    """
    _set_threshold(client, collection, 0)
    try:
        yield
    except BaseException:
        with suppress(ServiceError):  # Why the block failed matters more.
            _set_threshold(client, collection, INDEXING_THRESHOLD)
        raise
    _set_threshold(client, collection, INDEXING_THRESHOLD)


def _set_threshold(client: QdrantClient, collection: str, threshold: int) -> None:
    with server_errors(collection):
        client.update_collection(collection, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=threshold))


def dims_of(collection: str, info: models.CollectionInfo) -> dict[str, int]:
    """The dimension of every named vector. Raises InvalidRequest for a collection with one vector that has no name."""
    vectors = info.config.params.vectors
    if not isinstance(vectors, dict):
        raise InvalidRequest(f"Collection {collection!r} was made without named vectors, so not by this service.")
    return {name: vector.size for name, vector in vectors.items()}


def _owner(info: models.CollectionInfo) -> object:
    return (info.config.metadata or {}).get(MARK)


def _find(client: QdrantClient, collection: str) -> models.CollectionInfo | None:
    try:
        with server_errors(collection):
            return client.get_collection(collection)
    except NotFound:
        return None
