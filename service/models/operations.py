"""Making models, registering versions, and moving what is live forward and back."""

import itertools
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.collections.reheads import schedule_reheads
from service.db import now
from service.encoders.queries import find_encoder, get_encoder
from service.errors import Conflict, InvalidRequest
from service.ids import new_id
from service.models.queries import find_model, get_model, get_promotion, get_version, locked, version_before_live
from service.names import check_name
from service.queue import JobQueue
from service.tables import EncoderRow, Model, Promotion, Version


def get_or_create_model(session: Session, project_id: str, name: str, *, encoder: str | None, default_encoder: str) -> Model:
    """The model of this name, made over the encoder (with its version 0, live) where it is missing.

    Raises InvalidRequest when the name is an encoder's, or the model stands over another encoder; NotFound for the encoder.
    """
    model = find_model(session, project_id, check_name(name, param="model"))
    if model is None:
        if find_encoder(session, project_id, name) is not None:
            raise InvalidRequest(
                f"'{name}' is the name of an encoder; give the model another one", code="name_taken", param="model"
            )
        row = get_encoder(session, project_id, encoder or default_encoder)
        with suppress(IntegrityError), session.begin_nested():  # PostgreSQL: another request was faster
            return add_model(session, project_id, name, row)
        model = get_model(session, project_id, name)
    own = session.get_one(EncoderRow, model.encoder_id)
    if encoder is not None and encoder != own.name:
        get_encoder(session, project_id, encoder)
        raise InvalidRequest(
            f"model '{name}' stands over encoder '{own.name}' for good; for '{encoder}' choose another model name",
            code="other_encoder",
            param="encoder",
        )
    return model


def free_names(session: Session, project_id: str, wanted: str) -> tuple[str, str]:
    """Names for a tuned model and its encoder, with a number behind the model's where a model or encoder has one of them."""
    numbers = itertools.count(2)
    names = wanted, f"{wanted}-encoder"
    while any(find_model(session, project_id, name) or find_encoder(session, project_id, name) for name in names):
        numbered = f"{wanted}-{next(numbers)}"
        names = numbered, f"{numbered}-encoder"
    return names


def add_model(
    session: Session,
    project_id: str,
    name: str,
    encoder: EncoderRow,
    *,
    manifest: dict[str, Any] | None = None,
    scores: dict[str, Any] | None = None,
    verdict: dict[str, Any] | None = None,
) -> Model:
    """A new model over the encoder, with version 0 live. manifest, scores, verdict: of version 0, for a tuned encoder."""
    first = Promotion(id=new_id("prm"), action="created", from_version=None, to_version=0, previous_id=None, created_at=now())
    model = Model(
        id=new_id("mdl"), project_id=project_id, name=name, encoder_id=encoder.id, promotion_id=first.id, created_at=now()
    )
    first.model_id = model.id
    zero = Version(id=new_id("ver"), model_id=model.id, number=0, created_at=now())
    zero.manifest, zero.scores, zero.verdict = manifest or {}, scores or {}, verdict
    session.add(model)
    session.flush()
    session.add_all([first, zero])
    session.flush()
    return model


def add_version(
    session: Session,
    model_id: str,
    *,
    job_id: str,
    artifact_key: str,
    strength: float,
    manifest: dict[str, Any],
    scores: dict[str, Any],
    verdict: dict[str, Any],
) -> Version:
    """Register the next version of the model. Its number is the last one ever given plus 1."""
    model = locked(session, model_id)
    model.last_version += 1
    version = Version(
        id=new_id("ver"),
        model_id=model.id,
        number=model.last_version,
        job_id=job_id,
        artifact_key=artifact_key,
        strength=strength,
        manifest=manifest,
        scores=scores,
        verdict=verdict,
        query_only=manifest.get("query_only", False),
        created_at=now(),
    )
    session.add(version)
    session.flush()
    return version


def passes_promotion_check(version: Version) -> bool:
    """Whether the version may go live without force: number 0 always, any other when it is better and has forgotten little."""
    return version.number == 0 or (_is_better(version) and _is_within_budget(version))


def _is_better(version: Version) -> bool:
    return version.verdict is not None and version.verdict["outcome"] == "better"


def _is_within_budget(version: Version) -> bool:
    """Versions from before there was a guard have no budget that they could break."""
    forgetting = version.scores.get("forgetting")
    return forgetting is None or forgetting["value"] <= version.manifest["forgetting_budget"]


def promote(session: Session, queue: JobQueue, model: Model, number: int, *, force: bool = False) -> Promotion:
    """Make the version live, and let its vectors be made in every collection of the model.

    Live already: nothing changes, but vectors that are missing somewhere are made.

    Raises NotFound for an unknown version, Conflict with the numbers when the promotion check says no.
    """
    locked(session, model.id)
    version = get_version(session, model, number)
    if number == model.live_version:
        schedule_reheads(session, queue, model)  # an earlier one may have failed or been cancelled
        return get_promotion(session, model.promotion_id)
    if not force and not passes_promotion_check(version):
        raise Conflict(f"{model.name}@{number} did not pass the promotion check: {told_by_check(version)}; "
                       "force: true promotes it anyway",
                       code="promotion_check_failed", param="version")  # fmt: skip
    row = _record(session, model, "promote", to=number, previous_id=model.promotion_id, forced=force)
    schedule_reheads(session, queue, model)
    return row


def roll_back(session: Session, queue: JobQueue, model: Model) -> Promotion:
    """Make live what was live before the current promotion. Raises Conflict where there is nothing to go back to."""
    locked(session, model.id)
    target_number = version_before_live(session, model)
    if target_number is None:
        raise Conflict(
            f"{model.name}@{model.live_version} is live and was never preceded by another version: nothing to roll back to",
            code="nothing_to_roll_back",
        )
    current = get_promotion(session, model.promotion_id)
    target = get_promotion(session, str(current.previous_id))
    row = _record(session, model, "rollback", to=target.to_version, previous_id=target.previous_id)
    schedule_reheads(session, queue, model)
    return row


def _record(session: Session, model: Model, action: Any, *, to: int, previous_id: str | None, forced: bool = False) -> Promotion:
    row = Promotion(
        id=new_id("prm"),
        model_id=model.id,
        action=action,
        from_version=model.live_version,
        to_version=to,
        previous_id=previous_id,
        forced=forced,
        created_at=now(),
    )
    session.add(row)
    model.live_version = to
    model.promotion_id = row.id
    session.flush()
    return row


def told_by_check(version: Version) -> str:
    """The numbers that the promotion check looks at, and what it needs."""
    verdict, forgetting = version.verdict, version.scores.get("forgetting")
    if verdict is None:
        return "it was never judged"
    told = (
        f"{verdict['score']} changed by {verdict['difference']:+.4f} "
        f"(95 % interval {verdict['low']:+.4f} to {verdict['high']:+.4f}, {verdict['queries']} queries), "
        f"which is '{verdict['outcome']}' ('better' is needed)"
    )
    if forgetting is None:
        return told
    return (
        f"{told}; it forgot {forgetting['value']:+.4f} of the guard's {forgetting['score']} "
        f"(at most {version.manifest['forgetting_budget']:.4f} is allowed)"
    )
