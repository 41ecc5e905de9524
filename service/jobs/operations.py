"""Submitting jobs."""

from typing import Any

from sqlalchemy.orm import Session

from service.collections.operations import get_or_add_collection
from service.datasets.queries import get_dataset
from service.errors import InvalidRequest
from service.jobs.queueing import queue_job
from service.jobs.requests import DEFAULT_BUDGET, Mode, check_training
from service.models.operations import get_or_create_model
from service.names import check_name
from service.resources import Resources
from service.tables import Job

# `{model}-{version}-{mode}-{number}-encoder` must be a name too.
_LONGEST_TUNED_NAME = 40


def submit_training(
    session: Session,
    resources: Resources,
    project_id: str,
    *,
    model: str,
    dataset: str,
    encoder: str | None = None,
    evaluation: str | None = None,
    guard: str | None = None,
    forgetting_budget: float = DEFAULT_BUDGET,
    mode: Mode = "head",
    recipe: dict[str, Any] | None = None,
    tuning: dict[str, Any] | None = None,
    publish: dict[str, Any] | None = None,
    promote: str = "if_better",
) -> Job:
    """Queue a training job; its message is sent after the commit.

    model: made over `encoder` (default: the installation's first) where it is missing. dataset, evaluation, guard: ids or names.
    recipe: numbers of `zerogate.Recipe`; None searches. tuning: numbers of `zerogate.TuningRecipe`, in modes lora and full.
    publish: `{collection, documents, indexes}`; the collection is made where it is missing.
    Raises NotFound and InvalidRequest; then nothing was made.
    """
    found, training = check_training(
        session,
        project_id,
        dataset=dataset,
        evaluation=evaluation,
        guard=guard,
        forgetting_budget=forgetting_budget,
        mode=mode,
        recipe=recipe,
        tuning=tuning,
    )
    if mode != "head" and len(model) > _LONGEST_TUNED_NAME:
        raise InvalidRequest(
            f"mode {mode} names a model and an encoder after '{model}': at most {_LONGEST_TUNED_NAME} characters are possible",
            code="invalid_name",
            param="model",
        )
    if publish is not None:
        check_name(publish["collection"], param="publish.collection")
    row = get_or_create_model(session, project_id, model, encoder=encoder, default_encoder=resources.settings.default_encoder)
    request: dict[str, Any] = {**training.to_dict(), "promote": promote, "publish": None}
    uses = {training.evaluation_id, training.guard_id}
    if publish is not None:
        documents = get_dataset(session, project_id, publish["documents"], kind="documents", param="publish.documents")
        collection = get_or_add_collection(
            session, project_id, publish["collection"], model=row, indexes=publish.get("indexes") or {}
        )
        request["publish"] = {"collection_id": collection.id, "dataset_id": documents.id}
        uses.add(documents.id)
    return queue_job(
        session,
        resources.queue,
        project_id=project_id,
        kind="train",
        request=request,
        uses=[dataset_id for dataset_id in uses if dataset_id is not None],
        model_id=row.id,
        dataset_id=found.id,
    )
