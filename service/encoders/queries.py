"""Reading encoders."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.embeddings.loaded_models import EncoderFacts
from service.errors import NotFound
from service.tables import EncoderRow


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
