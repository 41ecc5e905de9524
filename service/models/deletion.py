"""Deleting models and versions, with their files, when nothing needs them any more."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.artifacts import Artifacts
from service.db import after_commit
from service.embeddings.loaded_models import STORED
from service.errors import Conflict, NotFound
from service.models.queries import get_version, list_promotions, locked
from service.tables import TERMINAL_STATES, Collection, CollectionVector, EncoderRow, Job, Model, Version


def delete_model(session: Session, artifacts: Artifacts, model: Model) -> None:
    """Remove a model with its versions and history. Raises Conflict while a collection or an unfinished job needs it."""
    # Not `locked`, which lets rows come that refer to the model: this waits for those that are coming, and the checks see them.
    if session.scalar(select(Model.id).filter_by(id=model.id).with_for_update()) is None:
        raise NotFound("the model was deleted meanwhile", code="model_not_found", param="model")
    bound = session.scalars(select(Collection.name).filter_by(model_id=model.id)).all()
    if bound:
        raise Conflict(
            f"model '{model.name}' is bound to the collections {', '.join(bound)}; delete them first", code="model_in_use"
        )
    active = session.scalar(
        select(func.count()).select_from(Job).where(Job.model_id == model.id, Job.state.not_in(TERMINAL_STATES))
    )
    if active:
        raise Conflict(f"model '{model.name}' has {active} unfinished jobs; cancel them or wait", code="model_in_use")
    for key in session.scalars(select(Version.artifact_key).filter_by(model_id=model.id)).all():
        _forget_files(session, artifacts, key)
    encoder = session.get_one(EncoderRow, model.encoder_id)
    session.delete(model)
    session.flush()
    if encoder.parent_version_id is not None and not session.scalar(select(func.count()).where(Model.encoder_id == encoder.id)):
        _forget_encoder(session, artifacts, encoder)


def _forget_encoder(session: Session, artifacts: Artifacts, encoder: EncoderRow) -> None:
    """A tuned encoder goes with the last model over it; configured ones stay."""
    key = encoder.source.removeprefix(STORED)
    session.delete(encoder)
    session.flush()
    after_commit(session, lambda: artifacts.delete(key))


def delete_version(session: Session, artifacts: Artifacts, model: Model, number: int) -> None:
    """Remove a version. Raises Conflict for number 0, and while it is live, next in a roll back, or in a collection."""
    locked(session, model.id)
    version = get_version(session, model, number)
    reason = None
    if number == 0:
        reason = "version 0 is the encoder itself"
    elif number == model.live_version:
        reason = "it is live"
    elif _in_history(session, model, number):
        reason = "a roll back may return to it"
    elif session.scalar(
        select(func.count()).select_from(CollectionVector).join(Collection)
        .where(Collection.model_id == model.id, CollectionVector.version == number)
    ):  # fmt: skip
        reason = "a collection holds its vectors"
    if reason is not None:
        raise Conflict(f"{model.name}@{number} cannot be deleted: {reason}", code="version_in_use")
    _forget_files(session, artifacts, version.artifact_key)
    session.delete(version)
    session.flush()


def _in_history(session: Session, model: Model, number: int) -> bool:
    """Whether some chain of roll backs from the current promotion returns to this version."""
    history = {promotion.id: promotion for promotion in list_promotions(session, model.id)}
    promotion = history[model.promotion_id]
    while promotion.previous_id is not None:
        promotion = history[promotion.previous_id]
        if promotion.to_version == number:
            return True
    return False


def _forget_files(session: Session, artifacts: Artifacts, key: str | None) -> None:
    if key is not None:
        after_commit(session, lambda: artifacts.delete(key))
