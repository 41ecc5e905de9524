"""/v1/embeddings, as OpenAI's clients know it."""

import asyncio
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi import APIRouter, Query
from starlette.responses import Response

from service.embeddings.answers import answer
from service.embeddings.loaded_models import VersionFacts
from service.embeddings.operations import Begun, begin, check_dimensions, check_texts
from service.embeddings.schemas import EmbeddingsAnswer, EmbeddingsQuery, EmbeddingsRequest
from service.http.dependencies import ProjectId, ResourcesDep
from service.http.error_answers import error_responses
from service.resources import Resources

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"], responses=error_responses(429))

# To write the answer takes about 20 µs a vector; a larger one must not hold up the others.
_WRITTEN_AT_ONCE = 16

# To begin a request takes a quarter of a millisecond of Python, so more threads would only wait for each other; and each holds a
# connection to the database, of which five stay open. A limiter belongs to an event loop.
_BEGINNERS = 4
_limiter: RunVar[CapacityLimiter] = RunVar("embeddings_limiter")


@router.post("", summary="Create embeddings", response_model=EmbeddingsAnswer)
async def create(body: EmbeddingsRequest, resources: ResourcesDep, project_id: ProjectId) -> Response:
    """Vectors of texts. OpenAI's clients work unchanged: set their base URL to `/v1` and `model` to a model's name."""
    version, begun = await to_thread.run_sync(_choose_and_begin, body, resources, project_id, limiter=_shared_limiter())
    if begun is None:  # to load files takes up to seconds, and must not hold up the others
        begun = await to_thread.run_sync(_begin, body, resources, version)
    if begun.rest is not None:
        await asyncio.wrap_future(begun.rest)  # no thread waits: any number of requests can share a pass
    if len(begun.found) <= _WRITTEN_AT_ONCE:
        return answer(body, version, begun.result())
    return await to_thread.run_sync(lambda: answer(body, version, begun.result()))


@router.get("", summary="Create embeddings (GET)", response_model=EmbeddingsAnswer)
async def create_by_get(resources: ResourcesDep, project_id: ProjectId, query: Annotated[EmbeddingsQuery, Query()]) -> Response:
    """The same with the request in the query string; `input` may repeat."""
    return await create(EmbeddingsRequest(**query.model_dump()), resources, project_id)


def _choose_and_begin(body: EmbeddingsRequest, resources: Resources, project_id: str) -> tuple[VersionFacts, Begun | None]:
    """The version that is meant, and the request begun if all that it needs is in memory."""
    check_texts(body.input)
    version = resources.known_versions.choose(project_id, body.model, collection=body.collection)
    check_dimensions(version, body.dimensions)
    is_loaded = resources.models.is_loaded(version, role=body.input_type, strength=body.strength)
    return version, _begin(body, resources, version) if is_loaded else None


def _begin(body: EmbeddingsRequest, resources: Resources, version: VersionFacts) -> Begun:
    return begin(resources.models, version, check_texts(body.input), role=body.input_type, strength=body.strength)


def _shared_limiter() -> CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = CapacityLimiter(_BEGINNERS)
        _limiter.set(limiter)
        return limiter
