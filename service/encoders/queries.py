"""Reading encoders."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.embeddings.loaded_models import STORED, EncoderFacts
from service.errors import NotFound
from service.tables import EncoderRow, Model, Version


def find_encoder(session: Session, project_id: str, name: str) -> EncoderRow | None:
    """The encoder of this name, or None."""
    return session.scalar(select(EncoderRow).filter_by(project_id=project_id, name=name))


def get_encoder(session: Session, project_id: str, name: str) -> EncoderRow:
    """The encoder of this name. Raises NotFound, naming those that there are."""
    row = find_encoder(session, project_id, name)
    if row is None:
        known = ", ".join(f"'{other.name}'" for other in list_encoders(session, project_id))
        raise NotFound(f"there is no encoder '{name}'; this installation has {known}", code="encoder_not_found", param="encoder")
    return row


def list_encoders(session: Session, project_id: str) -> Sequence[EncoderRow]:
    """All encoders, by name."""
    return session.scalars(select(EncoderRow).filter_by(project_id=project_id).order_by(EncoderRow.name)).all()


def parent_versions(session: Session, project_id: str) -> dict[str, str]:
    """For every tuned encoder whose version is still there, by the encoder's id: that version, as `faq@3`."""
    found = session.execute(
        select(EncoderRow.id, Model.name, Version.number)
        .join(Version, EncoderRow.parent_version_id == Version.id)
        .join(Model, Version.model_id == Model.id)
        .where(EncoderRow.project_id == project_id)
    )
    return {encoder_id: f"{name}@{number}" for encoder_id, name, number in found}


def stored_keys(session: Session) -> set[str]:
    """The keys of the folders of all tuned encoders, of every project."""
    sources = session.scalars(select(EncoderRow.source).where(EncoderRow.source.startswith(STORED)))
    return {source.removeprefix(STORED) for source in sources}


def facts_of(row: EncoderRow) -> EncoderFacts:
    """The plain values that loading the encoder needs."""
    return EncoderFacts(
        name=row.name,
        source=row.source,
        revision=row.revision,
        prompts={role: row.prompts[role] for role in ("query", "document") if role in row.prompts},
        max_length=row.max_length,
        fingerprint=row.fingerprint,
        dim=row.dim,
    )
