"""/v1/datasets: upload, list, look, delete."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from service.artifacts import Artifacts
from service.datasets.operations import add_dataset, delete_dataset
from service.datasets.queries import get_dataset, visible_datasets
from service.datasets.schemas import DatasetAnswer, dataset_answer
from service.errors import InvalidRequest
from service.http.dependencies import ProjectId, ReadSession, ResourcesDep
from service.http.pages import DEFAULT_LIMIT, After, Deleted, Limit, Page, newest_first, page
from service.tables import Dataset, DatasetKind

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/x-ndjson", "text/csv", "application/vnd.apache.parquet")
        }
        | {"multipart/form-data": {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}}},
    }
}


@dataclass(frozen=True)
class _Upload:
    file: Path
    sha256: str
    filename: str | None
    content_type: str | None


@router.post("", status_code=201, openapi_extra=_BODY, summary="Upload a dataset")
async def upload(
    request: Request,
    response: Response,
    resources: ResourcesDep,
    project_id: ProjectId,
    kind: DatasetKind,
    name: str | None = None,
    documents: Annotated[str | None, Query(description="kind queries: the documents dataset that its ids mean")] = None,
    columns: Annotated[str | None, Query(description='JSON object, our column name to yours: {"anchor": "question"}')] = None,
) -> DatasetAnswer:
    """Upload a dataset: JSONL, CSV or Parquet as the body, or as the multipart field `file`. It is streamed to disk.

    201 for a new dataset; 200 with the same id when the same bytes came before with the same kind and columns. A wrong row is a
    400 that names its line and field, and nothing is kept.
    """
    mapping = _columns(columns)
    async with _received(request, resources.artifacts) as received:
        dataset, is_new = await run_in_threadpool(
            add_dataset,
            resources.database,
            resources.artifacts,
            project_id,
            received.file,
            sha256=received.sha256,
            kind=kind,
            name=name,
            documents=documents,
            columns=mapping,
            filename=received.filename,
            content_type=received.content_type,
        )
    response.status_code = 201 if is_new else 200
    return dataset_answer(dataset)


@router.get("", summary="List datasets")
def list_all(
    session: ReadSession, project_id: ProjectId, after: After = None, limit: Limit = DEFAULT_LIMIT
) -> Page[DatasetAnswer]:
    """Datasets, newest first."""
    return page(newest_first(session, visible_datasets(project_id), Dataset.id, after=after, limit=limit), dataset_answer)


@router.get("/{dataset}", summary="Get a dataset")
def look(session: ReadSession, project_id: ProjectId, dataset: str) -> DatasetAnswer:
    """One dataset, by id or name."""
    return dataset_answer(get_dataset(session, project_id, dataset))


@router.delete("/{dataset}", summary="Delete a dataset")
def delete(resources: ResourcesDep, project_id: ProjectId, dataset: str) -> Deleted:
    """Delete a dataset; one that a job has used disappears from the lists and keeps explaining its versions."""
    with resources.database.write() as session:
        row = get_dataset(session, project_id, dataset)
        delete_dataset(session, resources.artifacts, row)
    return Deleted(id=row.id, object="dataset")


def _columns(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"'columns' is no JSON: {error}", param="columns") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InvalidRequest('\'columns\' must be a JSON object of names, as in {"anchor": "question"}', param="columns")
    return found


@asynccontextmanager
async def _received(request: Request, artifacts: Artifacts) -> AsyncIterator[_Upload]:
    """The body on disk, hashed while it came in; gone after the block."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    with artifacts.scratch() as scratch:
        file = scratch / "upload"
        if content_type == "multipart/form-data":
            async with request.form(max_files=1, max_fields=10) as form:
                part = form.get("file")
                if not isinstance(part, UploadFile):
                    raise InvalidRequest("the multipart body has no file in its field 'file'", param="file")
                yield _Upload(file, await _save(_chunks(part), file), part.filename, part.content_type)
        else:
            yield _Upload(file, await _save(request.stream(), file), None, content_type or None)


async def _chunks(part: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await part.read(1 << 20):
        yield chunk


async def _save(chunks: AsyncIterator[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    async with await anyio.open_file(target, "wb") as stream:
        async for chunk in chunks:
            digest.update(chunk)
            await stream.write(chunk)
    return digest.hexdigest()
