"""The end of a training job: version, promotion, publish and the job's own state, written in one transaction."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.collections.operations import submit_publish
from service.embeddings.loaded_models import STORED, EncoderFacts, VersionFacts
from service.encoders.operations import add_tuned_encoder
from service.jobs.lifecycle import Claim, add_event, check_held, succeed
from service.models.operations import add_model, add_version, free_names, passes_promotion_check, promote, told_by_check
from service.models.queries import get_version, locked, version_facts
from service.queue import JobQueue
from service.tables import Collection, EncoderRow, Job, Model, Version


@dataclass(frozen=True)
class TrainedVersion:
    """A version whose files are stored and whose row is still to be written.

    result: of the job, without what only this module knows. metric, score: the primary score on the task's test.
    """

    artifact_key: str
    strength: float
    manifest: dict[str, Any]
    scores: dict[str, Any]
    verdict: dict[str, Any]
    result: dict[str, Any]
    metric: str
    score: float
    tuned: "TunedEncoderFacts | None" = None


@dataclass(frozen=True)
class TunedEncoderFacts:
    """An encoder that was tuned after the head; its files are stored under `artifact_key`, its rows still to be written.

    scores, verdict: of the original encoder (`base`) and this one (`tuned`). result: its part of the job's result.
    """

    artifact_key: str
    encoder: EncoderFacts
    mode: str
    manifest: dict[str, Any]
    scores: dict[str, Any]
    verdict: dict[str, Any]
    result: dict[str, Any]


@dataclass(frozen=True)
class Live:
    """A version that was live when it was weighed on the job's own test, and its primary score there."""

    version: VersionFacts
    score: float


def live_version(session: Session, model_id: str) -> VersionFacts:
    """The version that is live now."""
    model = session.get_one(Model, model_id)
    return version_facts(get_version(session, model, model.live_version), model, session.get_one(EncoderRow, model.encoder_id))


def finish_training(session: Session, queue: JobQueue, mine: Claim, trained: TrainedVersion, live: Live | None) -> bool:
    """Make the version's row, promote and publish as the job asks, and end the job.

    live: what the version must not fall behind; needed for `promote: if_better`. False, and nothing is written, when another
    version has gone live meanwhile: weigh that one, and come again. Raises LeaseLost; then nothing of the transaction stays.
    """
    check_held(session, mine)  # first: what follows may be there already, by a commit whose answer was lost
    job = session.get_one(Job, mine.job_id)
    model = locked(session, str(job.model_id))  # nothing else goes live until the commit
    if live is not None and model.live_version != live.version.number:
        return False
    version = add_version(
        session,
        model.id,
        job_id=mine.job_id,
        artifact_key=trained.artifact_key,
        strength=trained.strength,
        manifest=trained.manifest,
        scores=trained.scores,
        verdict=trained.verdict,
    )
    reason = _reason_against(job, model, trained, version, live)
    if reason is None:
        promote(session, queue, model, version.number, force=job.request["promote"] == "always")
    if job.request["publish"] is not None:
        _publish(session, queue, job)
    result = {
        "version": f"{model.name}@{version.number}",
        "promoted": reason is None,
        "not_promoted_because": reason,
        "live": None if live is None else {"version": f"{model.name}@{live.version.number}", "score": live.score},
        **trained.result,
        "tuned_encoder": None if trained.tuned is None else _add_tuned(session, model, version, trained.tuned),
    }
    succeed(session, mine, result)
    return True


def is_registered(session: Session, trained: TrainedVersion) -> bool:
    """Whether the version has a row."""
    return session.scalar(select(Version.id).filter_by(artifact_key=trained.artifact_key)) is not None


def _add_tuned(session: Session, model: Model, version: Version, tuned: TunedEncoderFacts) -> dict[str, Any]:
    """The tuned encoder's row, and a new model over it whose version 0 it is; gives their part of the job's result."""
    name, encoder_name = free_names(session, model.project_id, f"{model.name}-{version.number}-{tuned.mode}")
    encoder = add_tuned_encoder(
        session,
        model.project_id,
        encoder_name,
        tuned.encoder,
        source=f"{STORED}{tuned.artifact_key}",
        parent_version_id=version.id,
    )
    add_model(session, model.project_id, name, encoder, manifest=tuned.manifest, scores=tuned.scores, verdict=tuned.verdict)
    return {"model": name, "encoder": encoder.name, **tuned.result}


def _reason_against(job: Job, model: Model, trained: TrainedVersion, version: Version, live: Live | None) -> str | None:
    """Why the version is not promoted, in one sentence; None where it shall be."""
    if job.request["promote"] == "always":
        return None
    if job.request["promote"] == "never" or live is None:
        return "The job was submitted with promote: never."
    if not passes_promotion_check(version):
        return f"It did not pass the promotion check: {told_by_check(version)}."
    if trained.score < live.score:
        return (
            f"{model.name}@{live.version.number}, which is live, is better on the same test: "
            f"{trained.metric} {live.score:.4f} against {trained.score:.4f}."
        )
    return None


def _publish(session: Session, queue: JobQueue, job: Job) -> None:
    wanted = job.request["publish"]
    collection = session.get(Collection, wanted["collection_id"])
    if collection is None or collection.deleting:  # while we trained; the version is worth keeping all the same
        add_event(session, job.id, "not published: the collection was deleted meanwhile", level="warn")
        return
    submit_publish(session, queue, collection, dataset_id=wanted["dataset_id"], parent_job_id=job.id)
