"""/v1/collections: make, look, delete, write and delete documents, search."""

from collections.abc import Sequence

from fastapi import APIRouter
from sqlalchemy.orm import Session

from service.collections.blast_radius import blast_radius
from service.collections.compare_schemas import CompareAnswer, CompareRequest, compare_answer
from service.collections.operations import create_collection, delete_collection, submit_deletion, submit_publish
from service.collections.queries import find_collection, get_collection, list_collections
from service.collections.schemas import (
    CollectionAnswer,
    CollectionRequest,
    DeleteDocumentsRequest,
    DocumentsRequest,
    SearchAnswer,
    SearchRequest,
    collection_answer,
    hit_answer,
)
from service.collections.search import search
from service.collections.standings import standings
from service.datasets.operations import add_rows
from service.datasets.queries import get_dataset
from service.errors import NotFound, inside_a_body
from service.http.dependencies import ProjectId, ReadSession, ResourcesDep
from service.http.error_answers import error_responses
from service.http.pages import Deleted, Page
from service.jobs.answers import answer_for
from service.jobs.schemas import JobAnswer
from service.tables import Collection
from service.vectors.filters import parse_filter

router = APIRouter(prefix="/v1/collections", tags=["collections"])


@router.post("", status_code=201, summary="Make a collection")
def create(resources: ResourcesDep, project_id: ProjectId, body: CollectionRequest) -> CollectionAnswer:
    """Make an empty collection, bound to a model for good. Declare the metadata fields that filters will use now."""
    create_collection(
        resources.database,
        resources.vectors,
        project_id,
        body.name,
        model=body.model,
        indexes=body.indexes,
        settings=body.index_settings(),
    )
    with resources.database.read() as session:
        return _answers(session, [get_collection(session, project_id, body.name)])[0]


@router.get("", summary="List collections")
def list_all(session: ReadSession, project_id: ProjectId) -> Page[CollectionAnswer]:
    """All collections, by name."""
    return Page(data=_answers(session, list_collections(session, project_id)), has_more=False)


@router.get("/{name}", summary="Get a collection")
def look(session: ReadSession, project_id: ProjectId, name: str) -> CollectionAnswer:
    """One collection: its Qdrant name, its points, which named vectors are ready, building and serving, and what searches use."""
    return _answers(session, [get_collection(session, project_id, name)])[0]


@router.delete("/{name}", summary="Delete a collection")
def delete(resources: ResourcesDep, project_id: ProjectId, name: str) -> Deleted:
    """Delete a collection with all its points. May be repeated when it was interrupted."""
    with resources.database.read() as session:
        row = find_collection(session, project_id, name)
    if row is None:
        raise NotFound(f"there is no collection '{name}'; GET /v1/collections lists them", code="collection_not_found")
    delete_collection(resources.database, resources.vectors, row.id)
    return Deleted(id=name, object="collection")


@router.post("/{name}/documents", status_code=202, summary="Write documents")
def write_documents(resources: ResourcesDep, project_id: ProjectId, name: str, body: DocumentsRequest) -> JobAnswer:
    """Write documents with all their vectors: a publish job.

    The same id with the same content is skipped, with another replaced.
    """
    dataset_id = None
    if body.rows is not None:
        with resources.database.read() as session:
            get_collection(session, project_id, name)  # refuse before anything is kept
        dataset_id = add_rows(resources.database, resources.artifacts, project_id, body.rows, kind="documents").id
    with resources.database.write() as session:
        collection = get_collection(session, project_id, name)
        ref = dataset_id or str(body.dataset)
        with inside_a_body():
            dataset = get_dataset(session, project_id, ref, kind="documents")
        return answer_for(session, submit_publish(session, resources.queue, collection, dataset_id=dataset.id))


@router.delete("/{name}/documents", status_code=202, summary="Delete documents")
def delete_documents(resources: ResourcesDep, project_id: ProjectId, name: str, body: DeleteDocumentsRequest) -> JobAnswer:
    """Delete documents by id or filter, in turn with the other writers: a publish job."""
    if body.filter is not None:
        parse_filter(body.filter)  # refused now, not by the job
    by_id = {"must": [{"key": "document_id", "match": {"any": body.ids}}]}
    where = by_id if body.filter is None else body.filter  # an empty filter matches all, as it does in Qdrant
    with resources.database.write() as session:
        collection = get_collection(session, project_id, name)
        return answer_for(session, submit_deletion(session, resources.queue, collection, where))


@router.post("/{name}/search", summary="Search", responses=error_responses(429))
def find(resources: ResourcesDep, project_id: ProjectId, name: str, body: SearchRequest) -> SearchAnswer:
    """The documents nearest to a text or vector, all compared in one version: the live one, or `version`.

    A version is searched from the moment it is live, or even stored: until its own vectors are ready through the base vectors
    (`path: "instant"`), with the same scores. A `vector` without `version` is one that `POST /v1/embeddings` gave for this
    collection.
    """
    target, hits = search(
        resources,
        project_id,
        name,
        version=body.version,
        strength=body.strength,
        query=body.query,
        vector=body.vector,
        limit=body.limit,
        where=body.filter,
    )
    return SearchAnswer(
        data=[hit_answer(hit) for hit in hits],
        version=f"{target.version.model}@{target.version.number}",
        strength=target.strength,
        vector_name=target.vector_name,
        path=target.path,
    )


@router.post("/{name}/compare", summary="Compare versions", responses=error_responses(429))
def compare(resources: ResourcesDep, project_id: ProjectId, name: str, body: CompareRequest) -> CompareAnswer:
    """The blast radius of a version, before it is promoted: which searches would answer otherwise, and how far documents move.

    Nothing is written. It takes a second or two, longer with many long queries: each is searched with both versions, and 2,000
    documents are sampled.
    Queries that trained the version change more than others: give some of your own to see what users would.
    """
    found = blast_radius(
        resources,
        project_id,
        name,
        version=body.version,
        against=body.against,
        queries=body.queries,
        sample=body.sample,
    )
    return compare_answer(name, found)


def _answers(session: Session, rows: Sequence[Collection]) -> list[CollectionAnswer]:
    return [collection_answer(standing) for standing in standings(session, rows)]
