"""Taking datasets in, and deleting them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.orm import Session

from service.artifacts import Artifacts
from service.datasets.queries import find_same, get_dataset, is_used, visible_datasets
from service.db import Database, after_commit, now
from service.errors import Conflict, InvalidRequest, ServiceError, Unavailable
from service.ids import new_id
from service.names import check_name
from service.tables import Dataset, DatasetKind
from zerogate.examples import Row
from zerogate.readers import detect_format, read_rows
from zerogate.report import DatasetReport


def add_dataset(
    database: Database,
    artifacts: Artifacts,
    project_id: str,
    file: Path,
    *,
    sha256: str,
    kind: DatasetKind,
    name: str | None = None,
    documents: str | None = None,
    columns: Mapping[str, str] | None = None,
    filename: str | None = None,
    content_type: str | None = None,
) -> tuple[Dataset, bool]:
    """Check an uploaded file row by row and keep its canonical rows. Gives the dataset, and whether it is new.

    file: the upload, complete on disk; sha256: of its bytes. The same bytes, kind, columns and documents give the old dataset.
    Raises zerogate.errors.InvalidRow or InvalidFile naming line and field, Conflict for a taken name; then nothing was kept.
    """
    mapping = dict(columns or {})
    with database.read() as session:
        documents_id = _documents_id(session, project_id, kind, documents)
    digest = hashlib.sha256(json.dumps([mapping, documents_id], sort_keys=True).encode()).hexdigest()
    if name is not None:
        check_name(name)
    with database.write() as session:
        old = find_same(session, project_id, sha256=sha256, kind=kind, columns_sha256=digest)
        if old is not None:
            if old.name is None and name is not None:
                _refuse_taken(session, project_id, name)
                old.name = name
            old.hidden_at = None
            return old, False
        _refuse_taken(session, project_id, name)  # before the work of reading, and once more below
    with artifacts.scratch() as scratch:
        with file.open("rb") as stream:
            file_format = detect_format(stream.read(4096), filename, content_type)
        rows = scratch / "rows.jsonl"
        report = _write_rows(read_rows(file, format=file_format, kind=kind, columns=mapping), rows, kind)
        dataset = Dataset(
            id=new_id("ds"),
            project_id=project_id,
            name=name,
            kind=kind,
            sha256=sha256,
            columns=mapping,
            columns_sha256=digest,
            documents_id=documents_id,
            rows=report["rows"],
            size_bytes=file.stat().st_size,
            report=report,
            created_at=now(),
        )
        dataset.artifact_key = f"datasets/{dataset.id}.jsonl"
        return _register(database, artifacts, dataset, rows)


def add_rows(
    database: Database, artifacts: Artifacts, project_id: str, rows: Iterable[Mapping[str, Any]], *, kind: DatasetKind
) -> Dataset:
    """Keep rows that came inside a request as a dataset like any other."""
    with artifacts.scratch() as scratch:
        file = scratch / "rows.jsonl"
        # Not orjson: it raises for what JSON cannot hold (NaN, huge integers, deep nesting); the reader below refuses it by line.
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        file.write_bytes(content)
        dataset, _ = add_dataset(
            database, artifacts, project_id, file, sha256=hashlib.sha256(content).hexdigest(), kind=kind, filename=file.name
        )
    return dataset


def delete_dataset(session: Session, artifacts: Artifacts, dataset: Dataset) -> None:
    """Remove the dataset; one that a job has used is only hidden, so that its versions stay explained."""
    if is_used(session, dataset):
        dataset.hidden_at, dataset.name = now(), None
    else:
        key = dataset.artifact_key
        session.delete(dataset)
        after_commit(session, lambda: artifacts.delete(key))
    session.flush()


def _documents_id(session: Session, project_id: str, kind: DatasetKind, documents: str | None) -> str | None:
    if kind != "queries":
        if documents is not None:
            raise InvalidRequest(f"'documents' belongs to kind queries, found kind {kind}", param="documents")
        return None
    if documents is None:
        raise InvalidRequest(
            "a dataset of kind queries needs 'documents': the id of the dataset its document ids mean", param="documents"
        )
    return get_dataset(session, project_id, documents, kind="documents", param="documents").id


def _refuse_taken(session: Session, project_id: str, name: str | None) -> None:
    if name is not None and session.scalar(visible_datasets(project_id).where(Dataset.name == name)) is not None:
        raise Conflict(f"there is another dataset '{name}' already; names are given once", code="name_taken", param="name")


def _write_rows(rows: Iterable[Row], target: Path, kind: DatasetKind) -> Any:
    report = DatasetReport(kind)
    with target.open("wb") as stream:
        for row in rows:
            report.add(row)
            stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return report.summary()


def _register(database: Database, artifacts: Artifacts, dataset: Dataset, rows: Path) -> tuple[Dataset, bool]:
    # The file first: forcing gigabytes to disk takes long, and a row without a file would be worse than a file without a row.
    artifacts.store(dataset.artifact_key, rows)
    try:
        with database.write() as session:
            same = find_same(
                session, dataset.project_id, sha256=dataset.sha256, kind=dataset.kind, columns_sha256=dataset.columns_sha256
            )
            if same is None:
                _refuse_taken(session, dataset.project_id, dataset.name)
                session.add(dataset)
                session.flush()
    except Unavailable:
        raise  # the commit may have happened all the same; a file without a row is removed later
    except ServiceError:
        artifacts.delete(dataset.artifact_key)
        raise
    if same is not None:  # two uploads of the same file at once
        artifacts.delete(dataset.artifact_key)
        return same, False
    return dataset, True
