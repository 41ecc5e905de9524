"""Submitting jobs."""

from typing import Any

from sqlalchemy.orm import Session

from service.collections.operations import get_or_create_collection
from service.datasets.queries import get_dataset
from service.errors import InvalidRequest
from service.jobs.queueing import queue_job
from service.models.operations import get_or_create_model
from service.names import check_name
from service.resources import Resources
from service.tables import Dataset, Job
from zerogate.errors import ZerogateError
from zerogate.recipe import Recipe

TRAINABLE = ("pairs",)


def submit_training(
    session: Session,
    resources: Resources,
    project_id: str,
    *,
    model: str,
    dataset: str,
    encoder: str | None = None,
    evaluation: str | None = None,
    recipe: dict[str, Any] | None = None,
    publish: dict[str, Any] | None = None,
    promote: str = "if_better",
) -> Job:
    """Queue a training job; its message is sent after the commit.

    model: made over `encoder` (default: the installation's first) where it is missing. dataset, evaluation: ids or names.
    recipe: numbers of `zerogate.Recipe`; None for the defaults.
    publish: `{collection, documents, indexes}`; the collection is made where it is missing.
    Raises NotFound and InvalidRequest; then nothing was made.
    """
    found = _trainable(session, project_id, dataset, param="dataset")
    judged_by = None if evaluation is None else _trainable(session, project_id, evaluation, param="evaluation")
    chosen = _recipe(recipe or {})
    if publish is not None:
        check_name(publish["collection"], param="publish.collection")
    row = get_or_create_model(session, project_id, model, encoder=encoder, default_encoder=resources.settings.default_encoder)
    request: dict[str, Any] = {
        "evaluation_id": None if judged_by is None else judged_by.id,
        "recipe": chosen.to_dict(),
        "promote": promote,
        "publish": None,
    }
    if publish is not None:
        documents = get_dataset(session, project_id, publish["documents"], kind="documents", param="publish.documents")
        collection = get_or_create_collection(
            session, resources.vectors, project_id, publish["collection"], model=row, indexes=publish.get("indexes") or {}
        )
        request["publish"] = {"collection_id": collection.id, "dataset_id": documents.id}
    return queue_job(
        session,
        resources.queue,
        project_id=project_id,
        kind="train",
        request=request,
        model_id=row.id,
        dataset_id=found.id,
    )


def _recipe(numbers: dict[str, Any]) -> Recipe:
    try:
        return Recipe.from_dict(numbers)
    except ZerogateError as error:
        raise InvalidRequest(str(error), code="invalid_recipe", param="recipe") from error


def _trainable(session: Session, project_id: str, ref: str, *, param: str) -> Dataset:
    dataset = get_dataset(session, project_id, ref, param=param)
    if dataset.kind not in TRAINABLE:
        raise InvalidRequest(
            f"dataset '{ref}' is of kind {dataset.kind}; training takes {' or '.join(TRAINABLE)}", code="wrong_kind", param=param
        )
    return dataset
