"""Reading models, versions and promotions."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from service.embeddings.loaded_models import VersionFacts
from service.encoders.queries import facts_of, find_encoder, list_encoders
from service.errors import NotFound
from service.names import Ref
from service.tables import EncoderRow, Model, Promotion, Version


def find_model(session: Session, project_id: str, name: str) -> Model | None:
    """The model of this name, or None."""
    return session.scalar(select(Model).filter_by(project_id=project_id, name=name))


def get_model(session: Session, project_id: str, name: str) -> Model:
    """The model of this name. Raises NotFound."""
    model = find_model(session, project_id, name)
    if model is None:
        raise NotFound(f"there is no model '{name}'; GET /v1/models lists them", code="model_not_found", param="model")
    return model


def locked(session: Session, model_id: str) -> Model:
    """The model as it is now, kept from changing until the transaction ends: what is live, and what follows from it, agree.

    Raises NotFound when it was deleted meanwhile.
    """
    # NO KEY: rows that refer to the model may come meanwhile. SQLite has one writer at a time and needs no lock.
    found = select(Model).filter_by(id=model_id).with_for_update(key_share=True).execution_options(populate_existing=True)
    model = session.scalar(found)
    if model is None:
        raise NotFound("the model was deleted meanwhile", code="model_not_found", param="model")
    return model


@dataclass(frozen=True)
class Described:
    """A model and what is told of it. numbers: of its versions, ascending; dim: of the live version's vectors."""

    model: Model
    encoder: EncoderRow
    numbers: list[int]
    dim: int


def describe_models(session: Session, project_id: str, *, name: str | None = None) -> list[Described]:
    """All models, or those of this name, by name. Two SELECTs, and no manifest is read: they are 13 kB each."""
    chosen = [Model.project_id == project_id] + ([] if name is None else [Model.name == name])
    numbers: dict[str, list[int]] = defaultdict(list)
    found = select(Version.model_id, Version.number).join(Model, Version.model_id == Model.id).where(*chosen)
    for model_id, number in session.execute(found.order_by(Version.number)):
        numbers[model_id].append(number)
    out_dim = Version.manifest["out_dim"].as_integer()  # as `VersionFacts.dim`
    rows = session.execute(
        select(Model, EncoderRow, func.coalesce(out_dim, EncoderRow.dim))
        .join(EncoderRow, Model.encoder_id == EncoderRow.id)
        .join(Version, and_(Version.model_id == Model.id, Version.number == Model.live_version))
        .where(*chosen)
        .order_by(Model.name)
    )
    return [Described(model, encoder, numbers[model.id], dim) for model, encoder, dim in rows]


def version_numbers(session: Session, model_id: str) -> Sequence[int]:
    """The numbers of a model's versions, ascending; the first is 0."""
    return session.scalars(select(Version.number).filter_by(model_id=model_id).order_by(Version.number)).all()


def get_version(session: Session, model: Model, number: int) -> Version:
    """A version of the model. Raises NotFound, naming those that there are."""
    # A number that no column can hold is unknown like any other; the database's driver would crash on it.
    is_possible = 0 <= number < 2**63
    version = session.scalar(select(Version).filter_by(model_id=model.id, number=number)) if is_possible else None
    if version is None:
        known = ", ".join(map(str, version_numbers(session, model.id)))
        raise NotFound(f"model '{model.name}' has no version {number}; it has {known}", code="version_not_found", param="version")
    return version


def get_promotion(session: Session, promotion_id: str) -> Promotion:
    """A line of the history by id."""
    return session.get_one(Promotion, promotion_id)


def list_promotions(session: Session, model_id: str) -> Sequence[Promotion]:
    """A model's history, oldest first."""
    return session.scalars(select(Promotion).filter_by(model_id=model_id).order_by(Promotion.id)).all()


def version_before_live(session: Session, model: Model) -> int | None:
    """The version that a roll back would make live, or None where there is nothing to go back to."""
    previous_id = get_promotion(session, model.promotion_id).previous_id
    return None if previous_id is None else get_promotion(session, previous_id).to_version


def served_version(session: Session, project_id: str, ref: Ref) -> VersionFacts:
    """What `faq`, `faq@3` or an encoder's name serves. One SELECT for a model's ref. Raises NotFound."""
    number = Model.live_version if ref.version is None else ref.version
    found = session.execute(
        select(Version, Model, EncoderRow)
        .join(Model, Version.model_id == Model.id)
        .join(EncoderRow, Model.encoder_id == EncoderRow.id)
        .where(Model.project_id == project_id, Model.name == ref.name, Version.number == number)
    ).first()
    if found is not None:
        version, model, encoder = found
        return version_facts(version, model, encoder)
    encoder_alone = find_encoder(session, project_id, ref.name)
    if encoder_alone is not None and ref.version in (None, 0):
        return _encoder_as_version(encoder_alone)
    if encoder_alone is None and find_model(session, project_id, ref.name) is None:
        encoders = ", ".join(f"'{row.name}'" for row in list_encoders(session, project_id))
        raise NotFound(
            f"there is no model or encoder '{ref.name}'; GET /v1/models lists the models, the encoders are {encoders}",
            code="model_not_found",
            param="model",
        )
    raise NotFound(f"there is no version '{ref}'; GET /v1/models/{ref.name} lists them", code="version_not_found", param="model")


def version_facts(version: Version, model: Model, encoder: EncoderRow) -> VersionFacts:
    """The plain values that serving the version needs."""
    return VersionFacts(
        model=model.name,
        number=version.number,
        version_id=version.id,
        artifact_key=version.artifact_key,
        manifest=version.manifest,
        strength=version.strength,
        encoder=facts_of(encoder),
    )


def _encoder_as_version(row: EncoderRow) -> VersionFacts:
    return VersionFacts(
        model=row.name, number=0, version_id=row.id, artifact_key=None, manifest={}, strength=1.0, encoder=facts_of(row)
    )


def artifact_keys(session: Session) -> set[str]:
    """The keys of the folders of all versions' files, of every project."""
    return set(session.scalars(select(Version.artifact_key).where(Version.artifact_key.is_not(None))))
