"""What training gives and what it costs: gain on the task, forgetting, seconds; and whole-encoder training beside it.

    python -m benchmarks.learning [--data DIR] [--only NAME ...] [--limit N] [--against full] [--mode full --mode lora]
                                  [--shuffled SEEDS] [--budget B] [--cache DIR] [--json]

DIR holds a folder for each dataset (pairs.jsonl, groups.jsonl, scored.jsonl, triplets.jsonl, or queries.jsonl with
documents.jsonl); without it the standard library's docstrings are used. --against full trains the whole encoder with
sentence-transformers on the same split; --mode tunes the encoder with the head behind it; --limit takes the first N training
rows; --shuffled gives every anchor a random positive and counts the verdicts. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning_data import STSB, datasets, read_folder
from zerogate.cache import CachedEncoder, EmbeddingCache
from zerogate.encoder import Encoder
from zerogate.guard import Guard, builtin_guard, make_guard
from zerogate.learning import Learned, assess, learn
from zerogate.recipe import MIN_EXAMPLES
from zerogate.sides import evaluate_tuned
from zerogate.task_parts import Rows
from zerogate.tasks import Task, make_task
from zerogate.training import PairExamples
from zerogate.vectors import Vectors

ENCODER = "all-MiniLM-L6-v2"
# The search over meaningless positives is cut short: what has nothing to find needs no long list of trials.
SHORT_SEARCH_SECONDS = 2.0


@dataclass(frozen=True)
class Bench:
    """What every measurement needs: the encoder, and the guards with their base vectors."""

    encoder: CachedEncoder
    guard: Guard
    stsb: Task | None
    budget: float

    def vectors(self, texts: Task | Guard, encoder: CachedEncoder | Encoder | None = None) -> Vectors:
        """Base vectors of a task's or a guard's texts, by another encoder where one is given."""
        chosen = encoder or self.encoder
        dim = self.encoder.encoder.dim
        return Vectors(
            chosen.encode(texts.queries, role="query"),
            chosen.encode(texts.documents, role="document") if texts.documents else np.empty((0, dim), np.float32),
        )


def measure(bench: Bench, task: Task) -> tuple[dict[str, Any], Learned]:
    """Learn a head and weigh it."""
    vectors, guard_vectors = bench.vectors(task), bench.vectors(bench.guard)
    learned = learn(task, vectors, bench.guard, guard_vectors, budget=bench.budget)
    head, query_only = learned.head.at_strength(learned.plan.strength), learned.plan.way.query_only
    judged = assess(task, vectors, bench.guard, guard_vectors, head, query_only=query_only)
    found = {
        "metric": judged.base.primary,
        "base": judged.base.value,
        "tuned": judged.tuned.value,
        "low": judged.verdict.low,
        "high": judged.verdict.high,
        "verdict": judged.verdict.outcome,
        "forgetting": judged.forgetting.value,
        "fit_seconds": learned.fit_seconds,
        "sweep_seconds": learned.plan.seconds,
        "scores": {"base": judged.base.scores, "tuned": judged.tuned.scores},
        "way": learned.plan.way.name,
        "strength": learned.plan.strength,
        "trials": learned.plan.finished,
        "examples": len(task.train),
        "test_items": task.test.test.size,
        "forgetting_interval": [judged.forgetting.low, judged.forgetting.high],
        "drift": judged.drift.to_dict(),
    }
    if bench.stsb is not None:
        stsb = bench.vectors(bench.stsb)
        test = bench.stsb.test.of(stsb)
        tuned = evaluate_tuned(bench.stsb.test.test, test, head, query_only=query_only)
        found["forgetting_stsb"] = bench.stsb.test.test.evaluate(test).value - tuned.value
    return found, learned


def against_full(bench: Bench, task: Task) -> dict[str, Any] | None:
    """sentence-transformers' whole-encoder training on the same split; None where its loss does not take the examples."""
    from benchmarks.learning_peers import train_whole_encoder  # here, because only this option pays for the trainer

    if not isinstance(task.train, PairExamples):
        return None
    anchors = [task.queries[number] for number in task.train.pairs[:, 0]]
    positives = [task.documents[number] for number in task.train.pairs[:, 1]]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "whole"
        seconds = train_whole_encoder(bench.encoder.encoder.files, anchors, positives, target)
        return {**_weigh_encoder(bench, task, target), "fit_seconds": seconds}


def tuned_encoder(bench: Bench, task: Task, learned: Learned, mode: str) -> dict[str, Any] | None:
    """The encoder tuned behind the head; None for heads and examples that cannot be tuned."""
    from zerogate.folded import FoldedHead
    from zerogate.tuning import tune_encoder
    from zerogate.tuning_recipe import TuningExamples, TuningRecipe

    head = learned.head.at_strength(learned.plan.strength)
    if not isinstance(task.train, PairExamples) or not isinstance(head, FoldedHead) or learned.plan.way.query_only:
        return None
    examples = TuningExamples(
        "pairs",
        {
            "anchor": [task.queries[number] for number in task.train.pairs[:, 0]],
            "positive": [task.documents[number] for number in task.train.pairs[:, 1]],
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        done = tune_encoder(
            bench.encoder.encoder.files,
            head,
            examples,
            recipe=TuningRecipe.from_dict({"mode": mode}),
            folder=Path(folder) / "tuned",
            work=Path(folder) / "work",
        )
        return {**_weigh_encoder(bench, task, done.path), "fit_seconds": done.seconds}


def _weigh_encoder(bench: Bench, task: Task, folder: Path) -> dict[str, Any]:
    """Another encoder on the task's test and on the guards, beside the encoder."""
    encoder = Encoder(str(folder))
    tuned = task.test.test.evaluate(task.test.of(bench.vectors(task, encoder)))
    guard = [bench.guard.reporting.evaluate(bench.vectors(bench.guard, one)).value for one in (None, encoder)]
    found = {"tuned": tuned.value, "scores": tuned.scores, "forgetting": guard[0] - guard[1]}
    if bench.stsb is not None:
        stsb = bench.stsb.test
        values = [stsb.test.evaluate(stsb.of(bench.vectors(bench.stsb, one))).value for one in (None, encoder)]
        found["forgetting_stsb"] = values[0] - values[1]
    return found


def shuffled_verdicts(bench: Bench, data: Rows, seeds: int) -> dict[str, int]:
    """Verdicts over datasets of pairs whose positives were dealt out at random."""
    guard_vectors = bench.vectors(bench.guard)
    counts: dict[str, int] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(data.rows)).tolist()
        rows = [{**row, "positive": data.rows[other]["positive"]} for row, other in zip(data.rows, order, strict=True)]
        task = make_task(data.with_rows(rows))
        vectors = bench.vectors(task)
        learned = learn(
            task, vectors, bench.guard, guard_vectors, budget=bench.budget, seed=seed, max_seconds=SHORT_SEARCH_SECONDS
        )
        head = learned.head.at_strength(learned.plan.strength)
        judged = assess(task, vectors, bench.guard, guard_vectors, head, query_only=learned.plan.way.query_only)
        counts[judged.verdict.outcome] = counts.get(judged.verdict.outcome, 0) + 1
        print(f"  seed {seed}: {learned.plan.way.name} at strength {learned.plan.strength}, {judged.verdict.outcome}", flush=True)
    return counts


def limited(data: Rows, limit: int | None) -> Rows:
    """The dataset with only the first `limit` of its training rows; all others stay."""
    if limit is None:
        return data
    train = [row for row in data.rows if row.get("split") in (None, "train")][: max(limit, MIN_EXAMPLES)]
    kept = {id(row) for row in train}
    return data.with_rows([row for row in data.rows if row.get("split") not in (None, "train") or id(row) in kept])


def _told(name: str, found: dict[str, Any]) -> Iterator[str]:
    gain = found["tuned"] - found["base"]
    yield (
        f"{name:<12} {found['metric']:<18} {found['base']:.4f} -> {found['tuned']:.4f}  {gain:+.4f} "
        f"[{found['low']:+.4f}, {found['high']:+.4f}] {found['verdict']:<12} forgetting {found['forgetting']:+.4f}"
        f"{_stsb(found)}  fit {found['fit_seconds']:.1f} s, sweep {found['sweep_seconds']:.1f} s, {found['way']} "
        f"at {found['strength']}"
    )
    for other in ("full", "mode_full", "mode_lora"):
        if found.get(other):
            one = found[other]
            yield (
                f"  {other:<10} {'':<18} {'':>6}    {one['tuned']:.4f}  {one['tuned'] - found['base']:+.4f} "
                f"forgetting {one['forgetting']:+.4f}{_stsb(one)}  {one['fit_seconds']:.1f} s"
            )


def _stsb(found: dict[str, Any]) -> str:
    return f", STS-B {found['forgetting_stsb']:+.4f}" if "forgetting_stsb" in found else ""


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    encoder = Encoder(ENCODER)
    with tempfile.TemporaryDirectory() as temporary:
        cached = CachedEncoder(encoder, EmbeddingCache(arguments.cache or Path(temporary)))
        stsb_rows = read_folder(arguments.data / STSB) if arguments.data and (arguments.data / STSB).is_dir() else None
        bench = Bench(
            cached,
            make_guard("scored", builtin_guard()),
            make_task(stsb_rows) if stsb_rows else None,
            arguments.budget,
        )
        answer: dict[str, Any] = {"datasets": {}}
        for name, data in datasets(arguments.data):
            if arguments.only and name not in arguments.only:
                continue
            task = make_task(limited(data, arguments.limit))
            found, learned = measure(bench, task)
            if arguments.against:
                found["full"] = against_full(bench, task)
            for mode in arguments.mode:
                found[f"mode_{mode}"] = tuned_encoder(bench, task, learned, mode)
            if arguments.shuffled and data.kind == "pairs":
                found["shuffled"] = shuffled_verdicts(bench, limited(data, arguments.limit), arguments.shuffled)
            answer["datasets"][name] = found
            for line in _told(name, found):
                print(line, flush=True)
    if arguments.json:
        print(json.dumps(answer))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with a folder for each dataset; default: the docstrings")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this dataset; may be repeated")
    parser.add_argument("--limit", type=int, help="take only so many training rows")
    parser.add_argument("--against", choices=["full"], help="train the whole encoder with sentence-transformers as well")
    parser.add_argument("--mode", action="append", default=[], choices=["full", "lora"], help="tune the encoder as well")
    parser.add_argument("--shuffled", type=int, default=0, metavar="SEEDS", help="meaningless positives, with so many seeds")
    parser.add_argument("--budget", type=float, default=0.005, help="the forgetting that is allowed (default 0.005)")
    parser.add_argument("--cache", type=Path, help="folder of an embedding cache to keep")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    if arguments.data and not arguments.data.is_dir():
        sys.exit(f"--data must be a folder, found {arguments.data}")
    return arguments


if __name__ == "__main__":
    main()
