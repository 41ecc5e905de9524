"""Models, versions and promotions as the API takes and shows them."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.http.bodies import Body
from service.models.queries import Described, version_facts
from service.tables import EncoderRow, Model, Promotion, PromotionAction, Version


class ModelAnswer(BaseModel):
    """A model, or an encoder (which may be asked for embeddings just so). The first four fields are OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    encoder: str
    dim: int
    live_version: int
    versions: list[int]


class VersionAnswer(BaseModel):
    """A version. scores: of the encoder (`base`) and of this version (`tuned`) on the held-out items; `forgetting` and `drift` on
    the guard. verdict: the difference, its interval and outcome, and examples of what was won and lost.

    dim: of its vectors; query_only: whether documents keep the encoder's vectors.
    """

    id: str
    object: Literal["model.version"] = "model.version"
    created: int
    model: str
    version: int
    encoder: str
    live: bool
    dim: int
    query_only: bool
    strength: float
    scores: dict[str, Any]
    verdict: dict[str, Any] | None
    job: str | None
    manifest: dict[str, Any]


class PromotionAnswer(BaseModel):
    """A line of a model's history."""

    id: str
    object: Literal["promotion"] = "promotion"
    created: int
    action: PromotionAction
    from_version: int | None
    to_version: int
    forced: bool


class PromoteRequest(Body):
    """Which version shall be live."""

    version: int = Field(ge=0)
    force: bool = Field(default=False, description="promote it even when the promotion check says no")


class LiveAnswer(BaseModel):
    """What is live after a promotion or roll back."""

    object: Literal["model.live"] = "model.live"
    model: str
    live_version: int
    promotion: PromotionAnswer


def model_answer(found: Described) -> ModelAnswer:
    """The answer for a model; its `dim` is that of the live version."""
    return ModelAnswer(
        id=found.model.name,
        created=int(found.model.created_at.timestamp()),
        owned_by=found.model.project_id,
        encoder=found.encoder.name,
        dim=found.dim,
        live_version=found.model.live_version,
        versions=found.numbers,
    )


def encoder_as_model(encoder: EncoderRow) -> ModelAnswer:
    """The answer for an encoder that is asked for by its own name: a model with version 0 only."""
    return ModelAnswer(
        id=encoder.name,
        created=int(encoder.created_at.timestamp()),
        owned_by="zerogate",
        encoder=encoder.name,
        dim=encoder.dim,
        live_version=0,
        versions=[0],
    )


def version_answer(version: Version, model: Model, encoder: EncoderRow) -> VersionAnswer:
    """The answer for a version."""
    facts = version_facts(version, model, encoder)
    return VersionAnswer(
        id=f"{model.name}@{version.number}",
        created=int(version.created_at.timestamp()),
        model=model.name,
        version=version.number,
        encoder=encoder.name,
        live=version.number == model.live_version,
        dim=facts.dim,
        query_only=facts.query_only,
        strength=version.strength,
        scores=version.scores,
        verdict=version.verdict,
        job=version.job_id,
        manifest=version.manifest,
    )


def promotion_answer(row: Promotion) -> PromotionAnswer:
    """The answer for a line of the history."""
    return PromotionAnswer(
        id=row.id,
        created=int(row.created_at.timestamp()),
        action=row.action,
        from_version=row.from_version,
        to_version=row.to_version,
        forced=row.forced,
    )
