"""Registering the encoders that the settings name."""

from sqlalchemy.orm import Session

from service.db import now
from service.embeddings.loaded_models import EncoderFacts
from service.encoders.queries import find_encoder
from service.errors import Conflict
from service.ids import new_id
from service.settings import EncoderSpec
from service.tables import EncoderRow, Project
from zerogate.encoder_files import EncoderFiles, describe_encoder


def ensure_project(session: Session, project_id: str) -> None:
    """Make the project's row where it is missing."""
    if session.get(Project, project_id) is None:
        session.add(Project(id=project_id, name=project_id, created_at=now()))
        session.flush()


def add_tuned_encoder(
    session: Session, project_id: str, name: str, facts: EncoderFacts, *, source: str, parent_version_id: str
) -> EncoderRow:
    """Make the row of an encoder that a version's tuning made."""
    row = EncoderRow(
        id=new_id("enc"),
        project_id=project_id,
        name=name,
        source=source,
        revision=facts.revision,
        dim=facts.dim,
        prompts=dict(facts.prompts),
        max_length=facts.max_length,
        fingerprint=facts.fingerprint,
        parent_version_id=parent_version_id,
        created_at=now(),
    )
    session.add(row)
    session.flush()
    return row


def describe(spec: EncoderSpec) -> EncoderFiles:
    """Find the encoder's files and digest them. Raises zerogate.errors.EncoderNotFound or EncoderMismatch."""
    return describe_encoder(spec.source, prompts=spec.prompts, max_length=spec.max_length, revision=spec.revision)


def register_encoder(session: Session, project_id: str, spec: EncoderSpec, files: EncoderFiles) -> EncoderRow:
    """Make the encoder's row, or check that the one of this name is still the same encoder.

    Raises Conflict when its files have changed: every model, head and vector over the old ones would silently be wrong.
    """
    row = find_encoder(session, project_id, spec.name)
    if row is None:
        row = EncoderRow(
            id=new_id("enc"),
            project_id=project_id,
            name=spec.name,
            source=spec.source,
            revision=spec.revision,
            dim=files.dim,
            prompts=dict(files.prompts),
            max_length=files.max_length,
            fingerprint=files.fingerprint,
            created_at=now(),
        )
        session.add(row)
        session.flush()
    elif row.fingerprint != files.fingerprint:
        raise Conflict(
            f"encoder '{spec.name}' is registered with fingerprint {row.fingerprint[:12]}, its files now have "
            f"{files.fingerprint[:12]} (weights, tokenizer, maximum length or prompts differ); give the new one another name",
            code="encoder_changed",
        )
    else:
        row.source, row.revision = spec.source, spec.revision  # the same files may have moved
    return row
