"""The blast radius of a version as the API is asked for it, and shows it."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.collections.blast_radius import PERCENTILES, SHOWN, BlastRadius, Source
from service.http.bodies import Body
from service.vectors.engine import Hit

_SHOWN_CHARACTERS = 200


class CompareRequest(Body):
    """Compare a version with another one before it is promoted: its blast radius."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 2}]})

    version: int = Field(ge=0, description="the version that might be promoted; any that is stored")
    against: int | None = Field(default=None, ge=0, description="another version than what searches use now")
    queries: list[str] | None = Field(default=None, min_length=1, max_length=500, description="texts to search with")
    sample: int = Field(
        default=100,
        ge=1,
        le=500,
        description="so many queries of the dataset that trained the version, or of the documents' texts, where none are given",
    )


class ChangedHitAnswer(BaseModel):
    """A document that comes into a top 10 or goes out of it. text: its first 200 characters."""

    document_id: str
    score: float
    text: str


class ChangedQueryAnswer(BaseModel):
    """A query whose top 10 changes. overlap: the share of documents that are in both, 0 to 1."""

    query: str
    overlap: float
    came: list[ChangedHitAnswer]
    went: list[ChangedHitAnswer]


class QueriesCompared(BaseModel):
    """Searches with both versions. source: `given`, or sampled from the `dataset` that trained the version or the `documents`.

    overlap_at_10: the mean share of the top 10 that stays; unchanged: of queries that keep all ten, in whatever order.
    """

    source: Source
    compared: int
    overlap_at_10: float
    unchanged: float
    most_changed: list[ChangedQueryAnswer]


class MovedDocumentAnswer(BaseModel):
    """A document and the cosine of its old and new vector. text: its first 200 characters."""

    document_id: str
    cosine: float
    text: str


class DocumentsCompared(BaseModel):
    """A random sample of the documents. cosine_percentiles: of the cosine of old and new vector, "1" to "99"."""

    compared: int
    cosine_percentiles: dict[str, float]
    most_moved: list[MovedDocumentAnswer]


class CompareAnswer(BaseModel):
    """The blast radius: what `version` would change in this collection in place of `against`."""

    object: Literal["blast_radius"] = "blast_radius"
    collection: str
    version: str
    against: str
    queries: QueriesCompared
    documents: DocumentsCompared


def compare_answer(collection: str, found: BlastRadius) -> CompareAnswer:
    """The answer for a comparison of two versions."""
    overlaps = [one.overlap for one in found.changed]
    percentiles = np.percentile(found.cosines, PERCENTILES)
    return CompareAnswer(
        collection=collection,
        version=f"{found.new.version.model}@{found.new.version.number}",
        against=f"{found.old.version.model}@{found.old.version.number}",
        queries=QueriesCompared(
            source=found.source,
            compared=len(overlaps),
            overlap_at_10=sum(overlaps) / len(overlaps),
            unchanged=overlaps.count(1.0) / len(overlaps),
            most_changed=[
                ChangedQueryAnswer(
                    query=one.query, overlap=one.overlap, came=_changed_hits(one.came), went=_changed_hits(one.went)
                )
                for one in found.changed[:SHOWN]
                if one.overlap < 1.0
            ],
        ),
        documents=DocumentsCompared(
            compared=len(found.cosines),
            cosine_percentiles={str(at): float(value) for at, value in zip(PERCENTILES, percentiles, strict=True)},
            most_moved=[
                MovedDocumentAnswer(document_id=one.document_id, cosine=one.cosine, text=one.text[:_SHOWN_CHARACTERS])
                for one in found.most_moved
            ],
        ),
    )


def _changed_hits(hits: list[Hit]) -> list[ChangedHitAnswer]:
    return [
        ChangedHitAnswer(document_id=hit.payload["document_id"], score=hit.score, text=hit.payload["text"][:_SHOWN_CHARACTERS])
        for hit in hits
    ]
