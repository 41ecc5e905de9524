"""Jobs as the API takes and shows them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.http.bodies import Body
from service.jobs.requests import DEFAULT_BUDGET
from service.tables import EventLevel, Job, JobEvent, JobKind, JobState
from service.vectors.engine import FieldType


class PublishRequest(Body):
    """Where the documents go once the version is trained."""

    collection: str = Field(description="name; made, and bound to the model, where it is missing")
    documents: str = Field(description="id or name of a dataset of kind documents")
    indexes: dict[str, FieldType] = Field(default={}, description="filterable metadata fields of a collection that is made now")


class JobRequest(Body):
    """Train the next version of a model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "faq", "dataset": "ds_0193...", "promote": "if_better"}]})

    model: str = Field(description="name of the model; made where it is missing")
    dataset: str = Field(description="id or name of a dataset of kind pairs, triplets, scored, groups or queries")
    encoder: str | None = Field(default=None, description="of a new model; default: the installation's first")
    evaluation: str | None = Field(
        default=None, description="id or name of a dataset to judge by; default: the held-out rows of `dataset`"
    )
    guard: str | None = Field(
        default=None,
        description="id or name of a dataset (any kind but documents) whose scores must not fall; default: the built-in guard",
    )
    forgetting_budget: float = Field(
        default=DEFAULT_BUDGET, ge=0.0, le=1.0, description="how much of the guard's score may be lost"
    )
    mode: Literal["head", "lora", "full"] = Field(
        default="head", description="what is trained: a head only, or after it the encoder too (with adapters, or whole)"
    )
    recipe: Literal["auto"] | dict[str, Any] = Field(
        default="auto", description="`auto` searches; numbers replace the defaults, and only the strength is chosen"
    )
    tuning: dict[str, Any] | None = Field(default=None, description="modes lora and full: how the encoder is tuned")
    publish: PublishRequest | None = None
    promote: Literal["if_better", "always", "never"] = "if_better"


class JobAnswer(BaseModel):
    """A job. `state` is the truth; `progress` is there while it runs, `result` or `error` when it has ended."""

    id: str
    object: Literal["job"] = "job"
    kind: JobKind
    state: JobState
    model: str | None
    dataset: str | None
    collection: str | None
    request: dict[str, Any]
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    attempts: int
    parent_job_id: str | None
    publish_job_id: str | None
    created: int
    started: int | None
    finished: int | None


class JobEventAnswer(BaseModel):
    """Something that happened to a job. `id` counts from 1 without gaps."""

    id: str
    object: Literal["job.event"] = "job.event"
    level: EventLevel
    message: str
    data: dict[str, Any] | None
    created: int


def job_answer(job: Job, *, model: str | None, collection: str | None, publish_job_id: str | None) -> JobAnswer:
    """The answer for one row."""
    return JobAnswer(
        id=job.id,
        kind=job.kind,
        state=job.state,
        model=model,
        dataset=job.dataset_id,
        collection=collection,
        request=job.request,
        progress=job.progress,
        result=job.result,
        error=job.error,
        attempts=job.attempts,
        parent_job_id=job.parent_job_id,
        publish_job_id=publish_job_id,
        created=int(job.created_at.timestamp()),
        started=int(job.started_at.timestamp()) if job.started_at else None,
        finished=int(job.finished_at.timestamp()) if job.finished_at else None,
    )


def event_answer(event: JobEvent) -> JobEventAnswer:
    """The answer for one event."""
    return JobEventAnswer(
        id=str(event.number), level=event.level, message=event.message, data=event.data, created=int(event.created_at.timestamp())
    )
