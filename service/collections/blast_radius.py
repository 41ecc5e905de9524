"""The blast radius of a version: what would change in a collection's searches, and by how much its documents' vectors move.

For any stored version, before it is promoted; nothing is written. Its time is bounded, however many documents there are: so
many searches with either version, and a sample of the documents.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.collections.queries import get_collection
from service.collections.search import hits_of
from service.collections.targets import Target, choose_target
from service.datasets.queries import read_dataset
from service.embeddings.operations import check_texts, embed
from service.errors import Conflict, NotFound
from service.models.queries import get_version
from service.resources import Resources
from service.tables import Dataset, Job, Model
from service.vectors.engine import Hit, StoredVectors
from zerogate.task_parts import KEY

Source = Literal["given", "dataset", "documents"]

TOP: Final = 10
SHOWN: Final = 10
PERCENTILES: Final = (1, 5, 25, 50, 75, 95, 99)
_PAGES: Final = 4
_PAGE: Final = 500
_ROWS: Final = 20_000  # of a dataset, among which queries are drawn


@dataclass(frozen=True)
class ChangedQuery:
    """A query's overlap of old and new top 10, from 0 to 1, and the hits that come and go, best first."""

    query: str
    overlap: float
    came: list[Hit]
    went: list[Hit]


@dataclass(frozen=True)
class MovedDocument:
    """A document and the cosine of its old and new vector."""

    document_id: str
    text: str
    cosine: float


@dataclass(frozen=True)
class BlastRadius:
    """What would change. changed: one for each query, those that change most first. cosines: (n,), of the sampled documents.

    most_moved: of the sample, least cosine first.
    """

    new: Target
    old: Target
    source: Source
    changed: list[ChangedQuery]
    cosines: NDArray[np.float64]
    most_moved: list[MovedDocument]


def blast_radius(
    resources: Resources,
    project_id: str,
    collection: str,
    *,
    version: int,
    against: int | None,
    queries: Sequence[str] | None,
    sample: int,
) -> BlastRadius:
    """Compare searches and documents of two versions; `against` None: what searches use now.

    queries: to search with; else `sample` of those of the dataset that trained the version; else so many documents' texts.
    Vectors of different lengths are compared with zeros behind the shorter ones, as strength 0 has them.
    Raises InvalidRequest for unknown versions and wrong texts, Conflict for a collection without documents, and for a version
    that can be searched only where it is ready (see `choose_target`).
    """
    given = None if queries is None else check_texts(list(queries), param="queries")

    def attempt() -> BlastRadius:
        with resources.database.read() as session:
            new, old = (
                choose_target(session, project_id, collection, version=number, strength=None, by_text=True)
                for number in (version, against)
            )
            dataset = None if given else _dataset_of(session, project_id, collection, version)
        ids, base = _sampled_documents(resources, new.qdrant_collection)
        source: Source = "given" if given else "dataset" if dataset else "documents"
        texts = given or (_texts_of(resources, new, ids[:sample]) if dataset is None else _queries_of(resources, dataset, sample))
        if not (ids and texts):
            raise Conflict(f"collection '{collection}' holds no documents to compare versions on", code="collection_empty")
        cosines = _cosines(resources, new, old, base)
        moved = _most_moved(resources, new, ids, cosines)
        return BlastRadius(new, old, source, _changed(resources, new, old, texts), cosines, moved)

    try:
        return attempt()
    except NotFound:  # a name was dropped between choosing and searching it: then the version is searched through `base`
        return attempt()


def _dataset_of(session: Session, project_id: str, collection: str, number: int) -> Dataset | None:
    """The dataset that trained the version, unless its owner has deleted it; version 0 has none."""
    model = session.get_one(Model, get_collection(session, project_id, collection).model_id)
    job_id = get_version(session, model, number).job_id
    job = None if job_id is None else session.get(Job, job_id)
    dataset = None if job is None or job.dataset_id is None else session.get(Dataset, job.dataset_id)
    return None if dataset is None or dataset.hidden_at is not None else dataset


def _queries_of(resources: Resources, dataset: Dataset, sample: int) -> list[str]:
    """So many distinct queries of the dataset, always the same ones: those with the smallest digests."""
    rows = islice(read_dataset(resources.artifacts, dataset.artifact_key), _ROWS)
    texts = {row[KEY[dataset.kind]] for row in rows}
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:sample]


def _sampled_documents(resources: Resources, name: str) -> tuple[list[str], NDArray[np.float32]]:
    """Ids and base vectors of some points: the first by id, and ids are digests. None where nothing was ever written."""
    pages: list[StoredVectors] = []
    with suppress(NotFound):
        pages.extend(islice(resources.vectors.scroll(name, "base", batch_size=_PAGE), _PAGES))
    ids = [key for page in pages for key in page.ids]
    return ids, np.concatenate([page.matrix for page in pages]) if pages else np.empty((0, 0), dtype=np.float32)


def _texts_of(resources: Resources, target: Target, ids: Sequence[str]) -> list[str]:
    payloads = resources.vectors.payloads(target.qdrant_collection, ids)
    return [payloads[key]["text"] for key in ids if key in payloads]


def _cosines(resources: Resources, new: Target, old: Target, base: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each document's vectors of the two versions, (n,)."""
    one, other = (resources.models.vectors(target.version, base, role="document").astype(np.float64) for target in (new, old))
    shared = min(one.shape[1], other.shape[1])  # what one has more of meets zeros
    found: NDArray[np.float64] = np.clip(np.einsum("nd,nd->n", one[:, :shared], other[:, :shared]), -1.0, 1.0)
    return found


def _most_moved(resources: Resources, target: Target, ids: Sequence[str], cosines: NDArray[np.float64]) -> list[MovedDocument]:
    first = np.argsort(cosines, kind="stable")[:SHOWN]
    payloads = resources.vectors.payloads(target.qdrant_collection, [ids[row] for row in first])
    return [
        MovedDocument(payload["document_id"], payload["text"], float(cosines[row]))
        for row in first
        if (payload := payloads.get(ids[row])) is not None  # deleted meanwhile
    ]


def _changed(resources: Resources, new: Target, old: Target, texts: Sequence[str]) -> list[ChangedQuery]:
    """Every query searched with either version, those whose top 10 changes most first."""
    found = []
    vectors = [embed(resources.models, target.version, texts, role="query").vectors for target in (new, old)]
    for text, of_new, of_old in zip(texts, *vectors, strict=True):
        after = hits_of(resources, new, of_new, limit=TOP)
        before = hits_of(resources, old, of_old, limit=TOP)
        ids_after, ids_before = {hit.id for hit in after}, {hit.id for hit in before}
        found.append(
            ChangedQuery(
                text,
                overlap=len(ids_after & ids_before) / max(len(ids_after), len(ids_before), 1),
                came=[hit for hit in after if hit.id not in ids_before],
                went=[hit for hit in before if hit.id not in ids_after],
            )
        )
    return sorted(found, key=lambda one: one.overlap)
