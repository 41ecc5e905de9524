"""What a training tells: the facts of the manifest, the scores and verdict of the version, and the result of the job."""

import importlib.metadata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workers.train_inputs import Encoded, Inputs, guard_facts, guard_matrix_sha256, matrix_sha256
from zerogate.evaluation import RetrievalTest
from zerogate.guard import Guard
from zerogate.label_test import LabelTest
from zerogate.plan import Way
from zerogate.scored_test import ScoredTest
from zerogate.tasks import Task
from zerogate.training import PairExamples
from zerogate.verdict import examples

if TYPE_CHECKING:
    from zerogate.encoder import Encoder
    from zerogate.lazy_encoder import LazyEncoder
    from zerogate.learning import Judged, Learned  # loads torch

LIBRARIES = ("zerogate", "torch", "numpy", "sentence-transformers", "transformers", "safetensors")


def library_versions() -> dict[str, str]:
    """The versions of all that decides the bytes of a head."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def computer_facts(encoder: "Encoder | LazyEncoder") -> dict[str, Any]:
    """What of the machine decides the last bits of vectors and heads."""
    import torch

    return {"encoder_dtype": encoder.dtype, "device": encoder.device.type, "torch_threads": torch.get_num_threads()}


def manifest_facts(
    inputs: Inputs,
    task: Task,
    guard: Guard,
    encoded: Encoded,
    learned: "Learned",
    judged: "Judged",
    encoder: "Encoder | LazyEncoder",
) -> dict[str, Any]:
    """How the version came about. No time of day stands in it; made again it says the same but for how long things took."""
    plan = learned.plan.to_dict()
    return {
        **computer_facts(encoder),
        "dataset_sha256": inputs.dataset.sha256,
        "dataset_kind": inputs.dataset.kind,
        "evaluation_sha256": None if inputs.evaluation is None else inputs.evaluation.sha256,
        "guard": guard_facts(inputs),
        "training_matrix_sha256": matrix_sha256(encoded.task, task.train),
        "guard_matrix_sha256": guard_matrix_sha256(guard, encoded.guard),
        "examples": len(task.train),
        "seed": 0 if inputs.recipe is None else inputs.recipe.seed,
        "mode": inputs.mode,
        "recipe": "auto" if inputs.recipe is None else inputs.recipe.to_dict(),
        "forgetting_budget": inputs.budget,
        "query_only": learned.plan.way.query_only,
        **{name: plan[name] for name in ("way", "metric", "curve", "candidates", "trials", "planned", "finished")},
        "sweep_seconds": learned.plan.seconds,
        "fit_seconds": learned.fit_seconds,
        "libraries": library_versions(),
        "scores": {"base": judged.base.scores, "tuned": judged.tuned.scores},
        "verdict": judged.verdict.to_dict(),
        "forgetting": judged.forgetting.to_dict(),
        "drift": judged.drift.to_dict(),
    }


def scores_of(judged: "Judged") -> dict[str, Any]:
    """A version's scores: on the task, and on the guard."""
    return {
        "base": judged.base.scores,
        "tuned": judged.tuned.scores,
        "forgetting": judged.forgetting.to_dict(),
        "drift": judged.drift.to_dict(),
    }


def verdict_of(task: Task, judged: "Judged") -> dict[str, Any]:
    """A version's verdict, with the items that won and lost most and their texts."""
    found = examples(judged.base, judged.tuned)
    texts = _texts_of_items(task)
    told = {
        name: [{**texts(change.item), "before": change.before, "after": change.after} for change in changes]
        for name, changes in (("won", found.won), ("lost", found.lost))
    }
    return {**judged.verdict.to_dict(), "examples": told}


def _texts_of_items(task: Task) -> Callable[[int], dict[str, Any]]:
    """What an item of the task's test is, to a reader."""

    def text(place: int) -> str:
        return task.queries[int(task.test.queries[place])]

    match task.test.test:
        case RetrievalTest(queries=queries):
            return lambda item: {"query": text(queries[item])}
        case LabelTest(texts=texts):
            return lambda item: {"text": text(texts[item])}
        case ScoredTest(pairs=pairs, scores=scores):
            return lambda item: {
                "sentence1": text(pairs[item, 0]),
                "sentence2": text(pairs[item, 1]),
                "score": round(float(scores[item]), 6),
            }
        case other:
            raise TypeError(f"a test of an unknown kind: {type(other).__name__}")


def result_of(
    task: Task, encoded: Encoded, learned: "Learned", judged: "Judged", *, budget: float, evaluate_seconds: float
) -> dict[str, Any]:
    """The result of a job, without what only its registration knows."""
    plan = learned.plan
    pairs = {"pairs": len(task.train)} if isinstance(task.train, PairExamples) else {}
    return {
        **pairs,
        "examples": len(task.train),
        "test_queries": task.test.test.size,
        "documents": len(task.documents),
        "metric": judged.base.primary,
        "base": judged.base.scores,
        "tuned": judged.tuned.scores,
        "verdict": judged.verdict.to_dict(),
        "forgetting": judged.forgetting.to_dict(),
        "forgetting_budget": budget,
        "drift": judged.drift.to_dict(),
        "way": plan.way.name,
        "recipes": [recipe.to_dict() for recipe in plan.way.recipes],
        "strength": plan.strength,
        "query_only": plan.way.query_only,
        "trials": {"planned": plan.planned, "finished": plan.finished},
        "identity_at_start": learned.identity_at_start,
        "encode_seconds": encoded.seconds,
        "sweep_seconds": plan.seconds,
        "fit_seconds": learned.fit_seconds,
        "evaluate_seconds": evaluate_seconds,
    }


def sentence_of(judged: "Judged") -> str:
    """The verdict in one sentence, for the job's events."""
    verdict, lost = judged.verdict, judged.forgetting
    return (
        f"{verdict.outcome}: {verdict.score} {judged.base.value:.4f} -> {judged.tuned.value:.4f} "
        f"({verdict.difference:+.4f}, 95 % interval {verdict.low:+.4f} to {verdict.high:+.4f}); forgot {lost.value:+.4f} of the "
        f"guard's {lost.score}"
    )


def way_of(manifest: dict[str, Any]) -> Way:
    """How the version of this manifest was made."""
    return Way.from_dict(manifest["way"])
