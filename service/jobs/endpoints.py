"""/v1/jobs: submit, list, look, cancel, follow."""

from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from service.errors import InvalidRequest, Unavailable, inside_a_body
from service.http.dependencies import ProjectId, ReadSession, ResourcesDep
from service.http.pages import DEFAULT_LIMIT, After, Limit, Page, newest_first
from service.jobs.answers import answer_for, answers_for
from service.jobs.lifecycle import cancel
from service.jobs.operations import submit_training
from service.jobs.queries import events_after, get_job
from service.jobs.schemas import JobAnswer, JobEventAnswer, JobRequest, event_answer
from service.resources import Resources
from service.tables import TERMINAL_STATES, Job, JobKind, JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_POLL_SECONDS = 0.3
_PING_EVERY = 50  # polls, 15 seconds
_EVENTS_AT_ONCE = 100


@router.post("", status_code=202, summary="Submit a training job")
def submit(resources: ResourcesDep, project_id: ProjectId, body: JobRequest) -> JobAnswer:
    """Train the next version of a model. The answer is the queued job; its state, progress and result are at /v1/jobs/{id}."""
    with resources.database.write() as session:
        with inside_a_body():
            job = submit_training(
                session,
                resources,
                project_id,
                model=body.model,
                dataset=body.dataset,
                encoder=body.encoder,
                evaluation=body.evaluation,
                guard=body.guard,
                forgetting_budget=body.forgetting_budget,
                mode=body.mode,
                recipe=None if body.recipe == "auto" else body.recipe,
                tuning=body.tuning,
                publish=None if body.publish is None else body.publish.model_dump(),
                promote=body.promote,
            )
        return answer_for(session, job)


@router.get("", summary="List jobs")
def list_all(
    session: ReadSession,
    project_id: ProjectId,
    state: JobState | None = None,
    kind: JobKind | None = None,
    after: After = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Page[JobAnswer]:
    """Jobs, newest first."""
    query = select(Job).where(Job.project_id == project_id)
    query = query if state is None else query.where(Job.state == state)
    query = query if kind is None else query.where(Job.kind == kind)
    rows, has_more = newest_first(session, query, Job.id, after=after, limit=limit)
    return Page(data=answers_for(session, list(rows)), has_more=has_more)


@router.get("/{job_id}", summary="Get a job")
def look(session: ReadSession, project_id: ProjectId, job_id: str) -> JobAnswer:
    """One job."""
    return answer_for(session, get_job(session, project_id, job_id))


@router.post("/{job_id}/cancel", summary="Cancel a job")
def cancel_job(resources: ResourcesDep, project_id: ProjectId, job_id: str) -> JobAnswer:
    """Cancel a job that is queued or running; it registers nothing any more. 409 in any other state."""
    with resources.database.write() as session:
        job = get_job(session, project_id, job_id)
        cancel(session, job)
        return answer_for(session, job)


@router.get(
    "/{job_id}/events",
    response_model=Page[JobEventAnswer],
    responses={200: {"content": {"text/event-stream": {}}}},
    summary="Follow a job's events",
)
def events(
    request: Request,
    resources: ResourcesDep,
    project_id: ProjectId,
    job_id: str,
    after: After = None,
    limit: Limit = DEFAULT_LIMIT,
    accept: Annotated[str, Header()] = "application/json",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Page[JobEventAnswer] | StreamingResponse:
    """What happened to the job, in order: a JSON page, or with `Accept: text/event-stream` a stream that ends with the job.

    A stream resumes after `Last-Event-ID`.
    """
    with resources.database.read() as session:
        get_job(session, project_id, job_id)
        if "text/event-stream" in accept:
            number = _number(last_event_id or after, param="Last-Event-ID")
            stream = _follow(request, resources, job_id, number)
            return EventSourceResponse(stream, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        rows = events_after(session, job_id, _number(after, param="after"), limit=limit + 1)
        return Page(data=[event_answer(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _number(text: str | None, *, param: str) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidRequest(f"{param} is {text!r}; events are numbered 1, 2, 3, ...", param=param)
    return int(text)


async def _follow(request: Request, resources: Resources, job_id: str, number: int) -> AsyncIterator[bytes]:
    """Events as they come, until the job has ended, the client is gone or the service stops."""
    polls = 0
    while not request.app.state.stopping.is_set():
        try:
            rows, ended = await run_in_threadpool(_look_for_events, resources, job_id, number)
        except Unavailable:  # the stream outlasts it, as the job does
            rows, ended = [], False
        for row in rows:
            number = int(row.id)
            yield format_sse_event(data_str=row.model_dump_json(), event="job.event", id=row.id)
        if ended and len(rows) < _EVENTS_AT_ONCE:
            return
        polls += 1
        if polls % _PING_EVERY == 0:
            yield KEEPALIVE_COMMENT
        await anyio.sleep(_POLL_SECONDS)


def _look_for_events(resources: Resources, job_id: str, number: int) -> tuple[list[JobEventAnswer], bool]:
    with resources.database.read() as session:
        job = session.get_one(Job, job_id)
        ended = job.state in TERMINAL_STATES
        rows = events_after(session, job_id, number, limit=_EVENTS_AT_ONCE)
        return [event_answer(row) for row in rows], ended
