"""/v1/embeddings, as OpenAI's clients know it."""

import asyncio
from typing import Annotated, Any

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

# To begin a short request takes a third of a millisecond, nearly all of it Python: two threads would only wait for each other's
# lock. The others take longer, outside of it, and begin in threads of their own. A limiter belongs to an event loop.
_SHORT_CHARACTERS = 10_000
_one_at_a_time: RunVar[CapacityLimiter] = RunVar("one_at_a_time")


@router.post("", summary="Create embeddings", response_model=EmbeddingsAnswer)
async def create(body: EmbeddingsRequest, resources: ResourcesDep, project_id: ProjectId) -> Response:
    """Vectors of texts. OpenAI's clients work unchanged: set their base URL to `/v1` and `model` to a model's name."""
    limiter = _limiter_of_short_ones() if _is_short(body.input) else None
    version, begun = await to_thread.run_sync(_choose_and_begin, body, resources, project_id, limiter=limiter)
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


def _is_short(given: Any) -> bool:
    texts = given if isinstance(given, list) else [given]
    return sum(len(text) for text in texts if isinstance(text, str)) <= _SHORT_CHARACTERS


def _limiter_of_short_ones() -> CapacityLimiter:
    try:
        return _one_at_a_time.get()
    except LookupError:
        limiter = CapacityLimiter(1)
        _one_at_a_time.set(limiter)
        return limiter
