"""Datasets as the API shows them."""

from typing import Any, Literal

from pydantic import BaseModel

from service.tables import Dataset, DatasetKind


class DatasetAnswer(BaseModel):
    """An immutable dataset. `sha256` is of the uploaded bytes; `report` counts what was found in them."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str | None
    kind: DatasetKind
    status: Literal["ready"] = "ready"
    rows: int
    bytes: int
    sha256: str
    columns: dict[str, str]
    documents: str | None
    report: dict[str, Any]
    created: int


def dataset_answer(row: Dataset) -> DatasetAnswer:
    """The answer for one row."""
    return DatasetAnswer(
        id=row.id,
        name=row.name,
        kind=row.kind,
        rows=row.rows,
        bytes=row.size_bytes,
        sha256=row.sha256,
        columns=row.columns,
        documents=row.documents_id,
        report=row.report,
        created=int(row.created_at.timestamp()),
    )
