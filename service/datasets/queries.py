"""Reading datasets and their rows."""

from collections.abc import Iterator
from typing import Any

import orjson
from sqlalchemy import Select, exists, or_, select
from sqlalchemy.orm import Session

from service.artifacts import Artifacts
from service.errors import InvalidRequest, NotFound
from service.tables import Dataset, DatasetKind, DatasetUse, Job


def visible_datasets(project_id: str) -> Select[Dataset]:
    """The datasets that have not been deleted."""
    return select(Dataset).where(Dataset.project_id == project_id, Dataset.hidden_at.is_(None))


def get_dataset(
    session: Session, project_id: str, ref: str, *, kind: DatasetKind | None = None, param: str = "dataset"
) -> Dataset:
    """The dataset of this id or name. Raises NotFound, or InvalidRequest when it is of another kind than `kind`."""
    query = visible_datasets(project_id).where(or_(Dataset.id == ref, Dataset.name == ref))
    # A name may look like an id; then the id wins.
    dataset = session.scalars(query.order_by((Dataset.id == ref).desc()).limit(1)).first()
    if dataset is None:
        raise NotFound(f"there is no dataset '{ref}'; GET /v1/datasets lists them", code="dataset_not_found", param=param)
    if kind is not None and dataset.kind != kind:
        raise InvalidRequest(
            f"dataset '{ref}' is of kind {dataset.kind}; here one of kind {kind} is needed", code="wrong_kind", param=param
        )
    return dataset


def find_same(session: Session, project_id: str, *, sha256: str, kind: str, columns_sha256: str) -> Dataset | None:
    """The dataset of the same bytes, kind and columns, hidden or not."""
    return session.scalar(
        select(Dataset).filter_by(project_id=project_id, sha256=sha256, kind=kind, columns_sha256=columns_sha256)
    )


def is_used(session: Session, dataset: Dataset) -> bool:
    """Whether a job has used the dataset (as its data, to judge by, as its guard, to publish), or another one refers to it."""
    worked_on = exists().where(Job.dataset_id == dataset.id)
    named = exists().where(DatasetUse.dataset_id == dataset.id)
    referred = exists().where(Dataset.documents_id == dataset.id)
    return bool(session.scalar(select(or_(worked_on, named, referred))))


def read_dataset(artifacts: Artifacts, artifact_key: str) -> Iterator[dict[str, Any]]:
    """The canonical rows, one at a time."""
    with artifacts.local_file(artifact_key) as path, path.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)


def artifact_keys(session: Session) -> set[str]:
    """The keys of all datasets' files, of every project."""
    return set(session.scalars(select(Dataset.artifact_key)))
