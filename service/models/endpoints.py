"""/v1/models: models and versions, promote and roll back."""

from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy.orm import Session

from service.encoders.queries import find_encoder, list_encoders
from service.errors import InvalidRequest
from service.http.dependencies import ProjectId, ReadSession, ResourcesDep
from service.http.pages import Deleted, Page
from service.models.deletion import delete_model, delete_version
from service.models.operations import promote, roll_back
from service.models.queries import (
    describe_models,
    find_model,
    get_model,
    get_version,
    list_promotions,
)
from service.models.schemas import (
    LiveAnswer,
    ModelAnswer,
    PromoteRequest,
    PromotionAnswer,
    VersionAnswer,
    encoder_as_model,
    model_answer,
    promotion_answer,
    version_answer,
)
from service.names import parse_ref
from service.tables import EncoderRow, Model, Promotion

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelRef = Annotated[str, Path(description="`faq`, `faq@3`, or an encoder's name", max_length=100)]


@router.get("", summary="List models and encoders")
def list_all(session: ReadSession, project_id: ProjectId) -> Page[ModelAnswer]:
    """All models, then the encoders: everything that an embeddings request may name. Not paginated, as OpenAI's is not."""
    models = [model_answer(found) for found in describe_models(session, project_id)]
    encoders = [encoder_as_model(row) for row in list_encoders(session, project_id)]
    return Page(data=models + encoders, has_more=False)


@router.get("/{ref}", summary="Get a model or version")
def look(session: ReadSession, project_id: ProjectId, ref: ModelRef) -> ModelAnswer | VersionAnswer:
    """A model (`faq`), one of its versions (`faq@3`), or an encoder by its name."""
    asked = parse_ref(ref, param="ref")
    if asked.version is None:
        described = describe_models(session, project_id, name=asked.name)
        if described:
            return model_answer(described[0])
    if asked.version in (None, 0) and find_model(session, project_id, asked.name) is None:
        encoder = find_encoder(session, project_id, asked.name)
        if encoder is not None:
            return encoder_as_model(encoder)
    return _version_answer(session, get_model(session, project_id, asked.name), asked.version or 0)


@router.delete("/{ref}", summary="Delete a model or version")
def delete(resources: ResourcesDep, project_id: ProjectId, ref: ModelRef) -> Deleted:
    """Delete a model with all its versions, or one version. 409 while a collection, a job, or a roll back needs it."""
    asked = parse_ref(ref, param="ref")
    with resources.database.write() as session:
        if find_encoder(session, project_id, asked.name) is not None and find_model(session, project_id, asked.name) is None:
            raise InvalidRequest(f"'{asked.name}' is an encoder; encoders are configured, not deleted", param="ref")
        model = get_model(session, project_id, asked.name)
        if asked.version is None:
            delete_model(session, resources.artifacts, model)
        else:
            delete_version(session, resources.artifacts, model, asked.version)
    return Deleted(id=ref, object="model" if asked.version is None else "model.version")


@router.get("/{name}/versions/{number}", summary="Get a version")
def look_at_version(session: ReadSession, project_id: ProjectId, name: str, number: int) -> VersionAnswer:
    """One version with its scores, verdict and manifest."""
    return _version_answer(session, get_model(session, project_id, name), number)


@router.post("/{name}/promote", summary="Promote a version")
def make_live(resources: ResourcesDep, project_id: ProjectId, name: str, body: PromoteRequest) -> LiveAnswer:
    """Make a version live. 409 with the numbers when the promotion check says no; `force` promotes it anyway.

    Searches by a text use it in every collection of the model at once: through the base vectors until its own are there.
    What it would change tells `POST /v1/collections/{name}/compare` before.
    """
    with resources.database.write() as session:
        model = get_model(session, project_id, name)
        return _live_answer(model, promote(session, resources.queue, model, body.version, force=body.force))


@router.post("/{name}/rollback", summary="Roll back")
def go_back(resources: ResourcesDep, project_id: ProjectId, name: str) -> LiveAnswer:
    """Make live what was live before the current promotion; again, and it goes back further."""
    with resources.database.write() as session:
        model = get_model(session, project_id, name)
        return _live_answer(model, roll_back(session, resources.queue, model))


@router.get("/{name}/promotions", summary="List promotions")
def history(session: ReadSession, project_id: ProjectId, name: str) -> Page[PromotionAnswer]:
    """The model's history, oldest first."""
    model = get_model(session, project_id, name)
    return Page(data=[promotion_answer(row) for row in list_promotions(session, model.id)], has_more=False)


def _version_answer(session: Session, model: Model, number: int) -> VersionAnswer:
    return version_answer(get_version(session, model, number), model, session.get_one(EncoderRow, model.encoder_id))


def _live_answer(model: Model, row: Promotion) -> LiveAnswer:
    return LiveAnswer(model=model.name, live_version=model.live_version, promotion=promotion_answer(row))
