"""Encoders as the API shows them."""

from typing import Literal

from pydantic import BaseModel

from service.tables import EncoderRow


class EncoderAnswer(BaseModel):
    """A frozen encoder of this installation. parent_version: of a tuned one, the version whose head it began with."""

    id: str
    object: Literal["encoder"] = "encoder"
    name: str
    source: str
    revision: str | None
    dim: int
    prompts: dict[str, str]
    max_length: int
    fingerprint: str
    parent_version: str | None
    created: int


def encoder_answer(row: EncoderRow, *, parent_version: str | None) -> EncoderAnswer:
    """The answer for one row. `id` is the encoder's name: that is what other requests take."""
    return EncoderAnswer(
        id=row.name,
        name=row.name,
        source=row.source,
        revision=row.revision,
        dim=row.dim,
        prompts=row.prompts,
        max_length=row.max_length,
        fingerprint=row.fingerprint,
        parent_version=parent_version,
        created=int(row.created_at.timestamp()),
    )
