"""/v1/models: models and versions, promote and roll back."""

from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy.orm import Session

from service.encoders.queries import find_encoder, list_encoders
from service.errors import InvalidRequest
from service.http.dependencies import ProjectId, ReadSession, ResourcesDep, WriteSession
from service.http.pages import Deleted, Page
from service.models.deletion import delete_model, delete_version
from service.models.operations import promote, roll_back
from service.models.queries import (
    find_model,
    get_model,
    get_version,
    list_models,
    list_promotions,
    list_versions,
    version_facts,
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
    models = [_model_answer(session, model) for model in list_models(session, project_id)]
    encoders = [encoder_as_model(row) for row in list_encoders(session, project_id)]
    return Page(data=models + encoders, has_more=False)


@router.get("/{ref}", summary="Get a model or version")
def look(session: ReadSession, project_id: ProjectId, ref: ModelRef) -> ModelAnswer | VersionAnswer:
    """A model (`faq`), one of its versions (`faq@3`), or an encoder by its name."""
    asked = parse_ref(ref, param="ref")
    encoder = find_encoder(session, project_id, asked.name)
    if encoder is not None and find_model(session, project_id, asked.name) is None and asked.version in (None, 0):
        return encoder_as_model(encoder)
    model = get_model(session, project_id, asked.name)
    return _model_answer(session, model) if asked.version is None else _version_answer(session, model, asked.version)


@router.delete("/{ref}", summary="Delete a model or version")
def delete(session: WriteSession, resources: ResourcesDep, project_id: ProjectId, ref: ModelRef) -> Deleted:
    """Delete a model with all its versions, or one version. 409 while a collection, a job, or a roll back needs it."""
    asked = parse_ref(ref, param="ref")
    if find_encoder(session, project_id, asked.name) is not None and find_model(session, project_id, asked.name) is None:
        raise InvalidRequest(f"'{asked.name}' is an encoder; encoders are configured, not deleted", param="ref")
    model = get_model(session, project_id, asked.name)
    if asked.version is None:
        delete_model(session, resources.artifacts, model)
        return Deleted(id=ref, object="model")
    delete_version(session, resources.artifacts, model, asked.version)
    return Deleted(id=ref, object="model.version")


@router.get("/{name}/versions/{number}", summary="Get a version")
def look_at_version(session: ReadSession, project_id: ProjectId, name: str, number: int) -> VersionAnswer:
    """One version with its scores, verdict and manifest."""
    return _version_answer(session, get_model(session, project_id, name), number)


@router.post("/{name}/promote", summary="Promote a version")
def make_live(
    session: WriteSession, resources: ResourcesDep, project_id: ProjectId, name: str, body: PromoteRequest
) -> LiveAnswer:
    """Make a version live. 409 with the numbers when the promotion check says no; `force` promotes it anyway.

    Searches use it in every collection of the model as soon as its vectors are there; until then they use the one before.
    """
    model = get_model(session, project_id, name)
    return _live_answer(model, promote(session, resources.queue, model, body.version, force=body.force))


@router.post("/{name}/rollback", summary="Roll back")
def go_back(session: WriteSession, resources: ResourcesDep, project_id: ProjectId, name: str) -> LiveAnswer:
    """Make live what was live before the current promotion; again, and it goes back further."""
    model = get_model(session, project_id, name)
    return _live_answer(model, roll_back(session, resources.queue, model))


@router.get("/{name}/promotions", summary="List promotions")
def history(session: ReadSession, project_id: ProjectId, name: str) -> Page[PromotionAnswer]:
    """The model's history, oldest first."""
    model = get_model(session, project_id, name)
    return Page(data=[promotion_answer(row) for row in list_promotions(session, model.id)], has_more=False)


def _model_answer(session: Session, model: Model) -> ModelAnswer:
    numbers = [version.number for version in list_versions(session, model.id)]
    encoder = session.get_one(EncoderRow, model.encoder_id)
    live = version_facts(get_version(session, model, model.live_version), model, encoder)
    return model_answer(model, encoder, numbers, live=live)


def _version_answer(session: Session, model: Model, number: int) -> VersionAnswer:
    return version_answer(get_version(session, model, number), model, session.get_one(EncoderRow, model.encoder_id))


def _live_answer(model: Model, row: Promotion) -> LiveAnswer:
    return LiveAnswer(model=model.name, live_version=model.live_version, promotion=promotion_answer(row))
