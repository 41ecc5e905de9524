"""The way of one training job: encode, fit, evaluate, store, register."""

import hashlib
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import zerogate
from service.collections.operations import submit_publish
from service.datasets.queries import read_dataset
from service.embeddings.loaded_models import EncoderFacts
from service.encoders.queries import facts_of
from service.jobs.lifecycle import Claim, LeaseLost, add_event, held, succeed
from service.models.operations import add_version, passes_promotion_check, promote
from service.resources import Resources
from service.tables import Collection, Dataset, EncoderRow, Job, Model, Version
from workers.supervision import Supervision
from zerogate.evaluation import Evaluation
from zerogate.head_files import dump_head
from zerogate.pairs import PairTask
from zerogate.recipe import Recipe
from zerogate.verdict import Verdict

if TYPE_CHECKING:
    from zerogate.fitting import Fit  # loads torch, which a worker that only publishes never needs

# What "better on the task" is judged by.
TASK_SCORE = "ndcg@10"
_LIBRARIES = ("torch", "numpy", "sentence-transformers", "transformers", "safetensors")


@dataclass(frozen=True)
class _Inputs:
    """What the job's rows say; plain values, because no session stays open while the work goes on."""

    model_id: str
    encoder: EncoderFacts
    dataset_key: str
    dataset_sha256: str
    evaluation_key: str | None
    recipe: Recipe
    promote: str
    publish: dict[str, Any] | None


@dataclass(frozen=True)
class _Vectors:
    """Base vectors of the task's texts: (n, dim) float32, unit rows."""

    anchors: NDArray[np.float32]
    documents: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True)
class _Outcome:
    task: PairTask
    vectors: _Vectors
    fit: "Fit"
    base: Evaluation
    tuned: Evaluation
    verdict: Verdict
    evaluate_seconds: float


def run_training(resources: Resources, mine: Claim, supervise: Supervision) -> None:
    """Train the next version and register it, with what follows from it, in one transaction."""
    inputs = _read_inputs(resources, mine)
    supervise("read the dataset", 0, 1)
    task = _read_task(resources, inputs)
    vectors = _encode(resources, inputs, task, supervise)
    _tell(resources, mine, f"encoded {len(task.anchors) + len(task.documents)} texts in {vectors.seconds:.1f} s")
    fit = zerogate.fit(
        vectors.anchors,
        vectors.documents,
        task.train,
        inputs.recipe,
        device=resources.models.encoder(inputs.encoder).encoder.device,
        on_step=lambda step, steps, _loss: supervise("fit", step, steps),
    )
    _tell(
        resources,
        mine,
        f"fitted {len(task.train)} pairs in {fit.seconds:.1f} s",
        {"losses": [round(loss, 5) for loss in fit.losses]},
    )
    outcome = _evaluate(task, vectors, fit, supervise)
    artifact_key = f"heads/{mine.job_id}/{mine.token}"
    manifest = _store(resources, inputs, outcome, artifact_key)
    try:
        _register(resources, mine, inputs, outcome, artifact_key, manifest)
    except LeaseLost:
        resources.artifacts.delete(artifact_key)  # after any other error the outcome may be unknown: the next start tidies up
        raise


def _read_inputs(resources: Resources, mine: Claim) -> _Inputs:
    with resources.database.read() as session:
        job = session.get_one(Job, mine.job_id)
        dataset = session.get_one(Dataset, str(job.dataset_id))
        evaluation_id = job.request["evaluation_id"]
        evaluation = None if evaluation_id is None else session.get_one(Dataset, evaluation_id)
        model = session.get_one(Model, str(job.model_id))
        return _Inputs(
            model_id=model.id,
            encoder=facts_of(session.get_one(EncoderRow, model.encoder_id)),
            dataset_key=dataset.artifact_key,
            dataset_sha256=dataset.sha256,
            evaluation_key=None if evaluation is None else evaluation.artifact_key,
            recipe=Recipe.from_dict(job.request["recipe"]),
            promote=job.request["promote"],
            publish=job.request["publish"],
        )


def _read_task(resources: Resources, inputs: _Inputs) -> PairTask:
    evaluation = None if inputs.evaluation_key is None else read_dataset(resources.artifacts, inputs.evaluation_key)
    return zerogate.pair_task(read_dataset(resources.artifacts, inputs.dataset_key), evaluation)


def _encode(resources: Resources, inputs: _Inputs, task: PairTask, supervise: Supervision) -> _Vectors:
    supervise("load the encoder", 0, 1)
    encoder = resources.models.encoder(inputs.encoder)
    started = time.perf_counter()
    anchors = encoder.encode(task.anchors, role="query", on_progress=_stage(supervise, "encode anchors"))
    documents = encoder.encode(task.documents, role="document", on_progress=_stage(supervise, "encode documents"))
    return _Vectors(anchors, documents, time.perf_counter() - started)


def _stage(supervise: Supervision, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: supervise(stage, done, total)


def _evaluate(task: PairTask, vectors: _Vectors, fit: "Fit", supervise: Supervision) -> _Outcome:
    """Score the encoder and the version on the same queries over the same corpus."""
    started = time.perf_counter()
    queries = vectors.anchors[task.queries]
    base = zerogate.evaluate(queries, vectors.documents, task.relevant, on_block=_stage(supervise, "evaluate encoder"))
    head = fit.head.fold()
    tuned = zerogate.evaluate(
        head.vectors(queries), head.vectors(vectors.documents), task.relevant, on_block=_stage(supervise, "evaluate version")
    )
    verdict = zerogate.judge(TASK_SCORE, base.per_query[TASK_SCORE], tuned.per_query[TASK_SCORE])
    return _Outcome(task, vectors, fit, base, tuned, verdict, time.perf_counter() - started)


def _store(resources: Resources, inputs: _Inputs, outcome: _Outcome, artifact_key: str) -> dict[str, Any]:
    """Write the head's two files and give the manifest."""
    matrix = hashlib.sha256(outcome.vectors.anchors.data)  # the arrays themselves, not a copy of their bytes
    matrix.update(outcome.vectors.documents.data)
    matrix.update(outcome.task.train.data)
    facts = {
        "encoder_dtype": resources.models.encoder(inputs.encoder).encoder.dtype,
        "dataset_sha256": inputs.dataset_sha256,
        "training_matrix_sha256": matrix.hexdigest(),
        "recipe": inputs.recipe.to_dict(),
        "scores": {"base": outcome.base.scores, "tuned": outcome.tuned.scores},
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    head = dump_head(outcome.fit.head.blocks(), strength=1.0, encoder_fingerprint=inputs.encoder.fingerprint, facts=facts)
    resources.artifacts.write(artifact_key, head.files)
    return head.manifest


def _register(
    resources: Resources, mine: Claim, inputs: _Inputs, outcome: _Outcome, artifact_key: str, manifest: dict[str, Any]
) -> None:
    with resources.database.write() as session:
        version = add_version(
            session,
            inputs.model_id,
            job_id=mine.job_id,
            artifact_key=artifact_key,
            strength=1.0,
            manifest=manifest,
            scores=manifest["scores"],
            verdict=outcome.verdict.to_dict(),
        )
        model = session.get_one(Model, inputs.model_id)
        promoted = _should_promote(inputs, version)
        if promoted:
            promote(session, resources.queue, model, version.number, force=inputs.promote == "always")
        if inputs.publish is not None:
            collection = session.get(Collection, inputs.publish["collection_id"])
            if collection is None or collection.deleting:  # while we trained; the version is worth keeping all the same
                add_event(session, mine.job_id, "not published: the collection was deleted meanwhile", level="warn")
            else:
                documents_id = inputs.publish["dataset_id"]
                submit_publish(session, resources.queue, collection, dataset_id=documents_id, parent_job_id=mine.job_id)
        # Last, because it raises when the job is no longer ours; then nothing of this transaction stays.
        succeed(session, mine, _result(model, version, outcome, promoted=promoted))


def _should_promote(inputs: _Inputs, version: Version) -> bool:
    return inputs.promote == "always" or (inputs.promote == "if_better" and passes_promotion_check(version))


def _result(model: Model, version: Version, outcome: _Outcome, *, promoted: bool) -> dict[str, Any]:
    return {
        "version": f"{model.name}@{version.number}",
        "promoted": promoted,
        "pairs": len(outcome.task.train),
        "test_queries": len(outcome.task.queries),
        "documents": len(outcome.task.documents),
        "base": outcome.base.scores,
        "tuned": outcome.tuned.scores,
        "verdict": outcome.verdict.to_dict(),
        "identity_at_start": outcome.fit.identity_at_start,
        "encode_seconds": outcome.vectors.seconds,
        "fit_seconds": outcome.fit.seconds,
        "evaluate_seconds": outcome.evaluate_seconds,
    }


def _tell(resources: Resources, mine: Claim, message: str, data: dict[str, Any] | None = None) -> None:
    with held(resources.database, mine) as session:
        add_event(session, mine.job_id, message, data=data)
