"""After the head, the encoder: tune it to the same examples, weigh the result against the original, store it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zerogate
from service.artifacts import Workspace
from service.embeddings.loaded_models import EncoderFacts
from service.jobs.finishing import TunedEncoderFacts
from service.resources import Resources
from workers.supervision import Supervision
from workers.train_inputs import Encoded, Inputs
from workers.train_report import library_versions, scores_of, verdict_of
from workers.workspace import saving
from zerogate.encoder_files import describe_encoder
from zerogate.folded import FoldedHead
from zerogate.guard import Guard, forgetting
from zerogate.tasks import Task
from zerogate.training import GroupExamples, PairExamples, ScoredExamples
from zerogate.tuning_recipe import TuningExamples
from zerogate.vectors import Vectors

if TYPE_CHECKING:
    from zerogate.learning import Judged, Learned  # loads torch
    from zerogate.tuning import TunedEncoder


@dataclass(frozen=True)
class _Weighed:
    """The tuned encoder beside the original one."""

    judged: "Judged"
    seconds: float


def tune(
    resources: Resources,
    inputs: Inputs,
    task: Task,
    guard: Guard,
    encoded: Encoded,
    learned: "Learned",
    work: Workspace,
    supervise: Supervision,
) -> TunedEncoderFacts:
    """Train the encoder with the head behind it, and store it as a new one. The instance that serves is never touched.

    A run that was interrupted goes on from its last checkpoint: the head before it comes out the same.
    """
    examples, head = tuning_examples(task), _start(learned)
    mine, tell = supervise.claim, saving(work, supervise)
    original = resources.models.encoder(inputs.encoder).encoder
    with resources.artifacts.scratch(f"{mine.job_id}-{mine.token}.") as scratch:
        made = zerogate.tune_encoder(
            original.files,
            head,
            examples,
            recipe=inputs.tuning,
            folder=scratch / "encoder",
            work=work.folder,
            device=original.device.type,
            on_step=lambda step, steps, _loss: tell("tune the encoder", step, steps),
        )
        encoder = _describe(inputs, made.path)
        weighed = _weigh(resources, encoder, task, guard, encoded, supervise)
        resources.models.forget(encoder.fingerprint)  # its folder moves now
        key = f"encoders/{mine.job_id}/{mine.token}"
        supervise.patiently(lambda: resources.artifacts.store_folder(key, made.path))
    return _facts(inputs, task, examples, encoder, made, weighed, key)


def tuning_examples(task: Task) -> TuningExamples:
    """The task's training examples as texts."""
    queries, documents = task.queries, task.documents
    match task.train:
        case PairExamples(pairs=pairs, negatives=negatives):
            columns: dict[str, list[Any]] = {
                "anchor": [queries[query] for query, _ in pairs.tolist()],
                "positive": [documents[document] for _, document in pairs.tolist()],
            }
            unlike = [[documents[place] for place in row if place >= 0] for row in negatives.tolist()]
            if unlike and all(unlike):
                return TuningExamples("triplets", {**columns, "negatives": unlike})
            return TuningExamples("pairs", columns)
        case ScoredExamples(pairs=pairs, scores=scores):
            one, other = ([queries[row[side]] for row in pairs.tolist()] for side in (0, 1))
            return TuningExamples("scored", {"sentence1": one, "sentence2": other, "score": scores.tolist()})
        case GroupExamples(texts=texts, labels=labels):
            return TuningExamples("groups", {"text": [queries[place] for place in texts.tolist()], "label": labels.tolist()})


def _start(learned: "Learned") -> FoldedHead:
    """What stands behind the encoder at first: the head at its strength, or nothing where it maps queries only."""
    if learned.plan.way.query_only or not isinstance(learned.head, FoldedHead):
        return FoldedHead.identity(learned.head.dim)
    return learned.head.at_strength(learned.plan.strength)


def _describe(inputs: Inputs, folder: Path) -> EncoderFacts:
    old = inputs.encoder
    files = describe_encoder(str(folder), prompts=old.prompts, max_length=old.max_length)
    return EncoderFacts(
        name=f"{inputs.model}-{inputs.mode}",
        source=str(folder),
        revision=None,
        prompts=files.prompts,
        max_length=files.max_length,
        fingerprint=files.fingerprint,
        dim=files.dim,
    )


def _weigh(
    resources: Resources, encoder: EncoderFacts, task: Task, guard: Guard, encoded: Encoded, supervise: Supervision
) -> _Weighed:
    """Both encoders on the same test and the same guard."""
    from zerogate.drift import drift
    from zerogate.learning import Judged

    started = time.perf_counter()
    tuned = resources.models.encoder(encoder)

    def progress(done: int, total: int) -> None:
        supervise("encode with the tuned encoder", done, total)

    def vectors(encode: Callable[..., Any], queries: list[str], documents: list[str]) -> Vectors:
        return Vectors(
            encode(queries, role="query", on_progress=progress), encode(documents, role="document", on_progress=progress)
        )

    placed = task.test
    after = vectors(
        tuned.encode,
        [task.queries[place] for place in placed.queries.tolist()],
        [task.documents[place] for place in placed.documents.tolist()],
    )
    guarded = vectors(tuned.matrix, guard.queries, guard.documents)
    base, better = placed.test.evaluate(placed.of(encoded.task)), placed.test.evaluate(after)
    lost = forgetting(guard.reporting.evaluate(encoded.guard), guard.reporting.evaluate(guarded))
    judged = Judged(base, better, zerogate.judge(base, better), lost, drift(encoded.guard.queries, guarded.queries))
    return _Weighed(judged, time.perf_counter() - started)


def _facts(
    inputs: Inputs,
    task: Task,
    examples: TuningExamples,
    encoder: EncoderFacts,
    made: "TunedEncoder",
    weighed: _Weighed,
    key: str,
) -> TunedEncoderFacts:
    assert inputs.tuning is not None  # of every job in mode lora or full
    scores, verdict = scores_of(weighed.judged), verdict_of(task, weighed.judged)
    manifest = {
        "mode": inputs.mode,
        "tuning": inputs.tuning.to_dict(),
        "examples_sha256": examples.digest(),
        "parent_encoder_fingerprint": inputs.encoder.fingerprint,
        "encoder_fingerprint": encoder.fingerprint,
        "forgetting_budget": inputs.budget,
        "libraries": library_versions(),
        "losses": made.losses,
    }
    result = {
        **scores,
        "verdict": weighed.judged.verdict.to_dict(),
        "examples": len(examples),
        "steps": made.steps,
        "resumed_from_step": made.resumed_from_step,
        "tune_seconds": made.seconds,
        "evaluate_seconds": weighed.seconds,
    }
    return TunedEncoderFacts(key, encoder, inputs.mode, manifest, scores, verdict, result)
