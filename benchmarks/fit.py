"""How fast a head is fitted: beside a plain PyTorch loop, beside the products alone, and how much a sweep of recipes costs.

    python -m benchmarks.fit [--json] [--full] [--rounds N] [--epochs N] [--recipes N] [--rows N] [--cache DIR] [--device D]

The data are the standard library's docstrings with the demo's split, the encoder all-MiniLM-L6-v2; vectors are encoded once,
before anything is timed. The peer is a DataLoader over the same vectors, in fp32, with the same head, loss, optimizer, schedule,
batch and dropout; rounds alternate, each with a seed of its own, and medians are told. The floor is the five products of a
step in the dtype of the fit, measured in the same run. The sweep draws its recipes as the service's search does, and counts all
that it fits and weighs; --full weighs every recipe after all of its epochs as well, and tells what the pruning lost.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.fit_peers import floor_seconds, plain_fit
from benchmarks.learning import ENCODER, Bench, limited
from benchmarks.learning_data import datasets
from zerogate.cache import CachedEncoder, EmbeddingCache
from zerogate.encoder import Encoder
from zerogate.fitting import fit
from zerogate.folded import ServedHead
from zerogate.guard import Guard, builtin_guard, make_guard
from zerogate.plan import Trial
from zerogate.recipe import Recipe
from zerogate.search import Search
from zerogate.sides import evaluate_tuned
from zerogate.strength import Scales, choosing_texts
from zerogate.tasks import Task, make_task
from zerogate.training import PairExamples
from zerogate.trials import trial_recipes
from zerogate.vectors import Vectors

TARGET_MRR = 0.53
# Chosen in advance: the shortest of the recipes whose every seed came to the target when it was chosen.
QUICK = Recipe(epochs=10, temperature=0.05)
BUDGET = 0.005


@dataclass(frozen=True)
class Material:
    """A task of pairs and the guard, with the base vectors of their texts."""

    task: Task
    vectors: Vectors
    guard: Guard
    guard_vectors: Vectors
    device: torch.device

    @property
    def examples(self) -> PairExamples:
        assert isinstance(self.task.train, PairExamples)
        return self.task.train

    def mrr(self, head: ServedHead) -> float:
        """Of the held-out test."""
        return evaluate_tuned(self.task.test.test, self.task.test.of(self.vectors), head, query_only=False).value

    def fit(self, recipe: Recipe) -> tuple[float, float]:
        """The seconds of a fit and the head's MRR."""
        found = fit(self.vectors, self.examples, recipe, device=self.device)
        return found.seconds, self.mrr(found.head.served())

    def plain(self, recipe: Recipe) -> tuple[float, float]:
        """The same by the peer."""
        head, seconds = plain_fit(self.vectors, self.examples, recipe, self.device)
        return seconds, self.mrr(head)


@dataclass(frozen=True)
class Speed:
    """Fits of the default recipe, ours and the peer's: medians over the rounds, lists of the rounds' MRR.

    floor_seconds: of the products of a step; share_of_floor: of a step's seconds; gflops: of the floor.
    """

    pairs_per_second: float
    plain_pairs_per_second: float
    ratio: float
    mrr: list[float]
    plain_mrr: list[float]
    base_mrr: float
    fit_seconds: float
    step_seconds: float
    floor_seconds: float
    share_of_floor: float
    gflops: float


@dataclass(frozen=True)
class Sweep:
    """A pruned search over so many recipes. ratio: its seconds over those of a whole fit; score: its best one's, on the fold.

    best: the score of the best of all recipes after all of their epochs; None where that was not asked for.
    """

    recipes: int
    seconds: float
    ratio: float
    score: float
    best: float | None
    full_seconds: float | None


def speed(material: Material, recipe: Recipe, rounds: int) -> Speed:
    """Alternating rounds after a short one of each."""
    short = replace(recipe, epochs=2)
    material.fit(short)
    material.plain(short)
    ours, plain = [], []
    for number in range(rounds):
        seeded = replace(recipe, seed=number)
        ours.append(material.fit(seeded))
        plain.append(material.plain(seeded))
    count, dim = len(material.examples), material.vectors.queries.shape[1]
    steps = -(-count // recipe.batch_size)
    floor, operations = floor_seconds(count // steps, dim, material.device)
    seconds, plain_seconds = (median(one for one, _ in found) for found in (ours, plain))
    step = seconds / (steps * recipe.epochs)
    test = material.task.test
    return Speed(
        pairs_per_second=count * recipe.epochs / seconds,
        plain_pairs_per_second=count * recipe.epochs / plain_seconds,
        ratio=median(other / one for (one, _), (other, _) in zip(ours, plain, strict=True)),
        mrr=[value for _, value in ours],
        plain_mrr=[value for _, value in plain],
        base_mrr=test.test.evaluate(test.of(material.vectors)).value,
        fit_seconds=seconds,
        step_seconds=step,
        floor_seconds=floor,
        share_of_floor=floor / step,
        gflops=operations / floor / 1e9,
    )


def sweep(material: Material, recipes: list[Recipe], fit_seconds: float, *, full: bool) -> Sweep:
    """The search's own halving, and with `full` every recipe to its end."""
    scales = Scales(material.task, material.vectors, material.guard, material.guard_vectors, budget=BUDGET)
    near = choosing_texts(material.guard, material.guard_vectors)

    def search() -> Search:
        return Search(material.task, material.vectors, scales, near=near, device=material.device)

    pruned = search().run(recipes).trials
    whole = [search().weigh(recipe).trials[-1] for recipe in recipes] if full else []
    seconds = sum(trial.seconds for trial in pruned)
    return Sweep(
        recipes=len(recipes),
        seconds=seconds,
        ratio=seconds / fit_seconds,
        score=best_score([trial for trial in pruned if trial.share == 1.0]),
        best=best_score(whole) if whole else None,
        full_seconds=sum(trial.seconds for trial in whole) if whole else None,
    )


def best_score(trials: list[Trial]) -> float:
    """Of those that keep the forgetting budget; 0 where none does."""
    scores = [one.score for one in trials if one.score is not None and one.forgetting is not None and one.forgetting <= BUDGET]
    return max(scores, default=0.0)


def to_target(found: list[tuple[float, float]], target: float) -> float | None:
    """The median seconds of fits (seconds, MRR), or None where one of them stays below the target."""
    return median(seconds for seconds, _ in found) if min(value for _, value in found) >= target else None


def measure(material: Material, *, rounds: int, epochs: int, recipes: int, full: bool) -> dict[str, Any]:
    """All figures. epochs: of the default recipe where it shall have others than its own, else 0."""
    drawn = trial_recipes(material.task.kind, len(material.task.train), seed=0, count=recipes)
    default = replace(drawn[0], epochs=epochs or drawn[0].epochs)
    fast = speed(material, default, rounds)
    quick = [material.fit(replace(QUICK, seed=seed)) for seed in range(3)]
    swept = sweep(material, [default, *drawn[1:]], fast.fit_seconds, full=full)
    return {
        "ratio": fast.ratio,
        "share_of_floor": fast.share_of_floor,
        f"sweep_{recipes}_ratio": swept.ratio,
        f"seconds_to_mrr_{TARGET_MRR}": to_target(quick, TARGET_MRR),
        "quick_mrr": [value for _, value in quick],
        "speed": asdict(fast),
        "sweep": asdict(swept),
        "pairs": len(material.examples),
        "epochs": default.epochs,
        "threads": torch.get_num_threads(),
    }


def _table(found: dict[str, Any]) -> Table:
    fast, swept = found["speed"], found["sweep"]
    seconds = found[f"seconds_to_mrr_{TARGET_MRR}"]
    table = Table("", "", title=f"Fitting {found['pairs']:,} pairs, {found['epochs']} epochs, {found['threads']} threads")
    table.add_row("pairs a second", f"{fast['pairs_per_second']:,.0f}")
    table.add_row("plain loop, fp32", f"{fast['plain_pairs_per_second']:,.0f}")
    table.add_row("ratio", f"{found['ratio']:.2f}")
    table.add_row("MRR@10, base", f"{fast['base_mrr']:.4f}")
    table.add_row("MRR@10, by seed", " ".join(f"{one:.4f}" for one in fast["mrr"]))
    table.add_row("MRR@10 of the plain loop", " ".join(f"{one:.4f}" for one in fast["plain_mrr"]))
    table.add_row("a step", f"{1e3 * fast['step_seconds']:.2f} ms")
    table.add_row("its products alone", f"{1e3 * fast['floor_seconds']:.2f} ms, {fast['gflops']:,.0f} GFLOP/s")
    table.add_row("share of the floor", f"{found['share_of_floor']:.0%}")
    table.add_row(f"seconds to MRR {TARGET_MRR}", "not reached" if seconds is None else f"{seconds:.2f}")
    table.add_row("MRR@10 then, by seed", " ".join(f"{one:.4f}" for one in found["quick_mrr"]))
    table.add_row(f"sweep of {swept['recipes']} recipes", f"{swept['seconds']:.1f} s, {swept['ratio']:.1f} whole fits")
    if swept["best"] is not None:
        table.add_row("sweep without pruning", f"{swept['full_seconds']:.1f} s")
        table.add_row("score lost by pruning", f"{swept['best'] - swept['score']:.4f} of {swept['best']:.4f}")
    return table


def load(cache: Path, device: torch.device, rows: int | None) -> Material:
    """The docstrings and the built-in guard, encoded or found in the cache."""
    _, data = next(datasets(None))
    task, guard = make_task(limited(data, rows)), make_guard("scored", builtin_guard())
    bench = Bench(CachedEncoder(Encoder(ENCODER), EmbeddingCache(cache)), guard, None, BUDGET)
    return Material(task, bench.vectors(task), guard, bench.vectors(guard), device)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--full", action="store_true", help="also weigh every recipe of the sweep after all of its epochs")
    parser.add_argument("--rounds", type=int, default=3, help="of the plain loop and the fit in turn (default 3)")
    parser.add_argument("--epochs", type=int, default=0, help="of the default recipe (default: its own)")
    parser.add_argument("--recipes", type=int, default=32, help="of the sweep (default 32)")
    parser.add_argument("--rows", type=int, help="take only so many training rows")
    parser.add_argument("--cache", type=Path, help="folder of an embedding cache to keep")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="of the fits (default cpu)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        material = load(arguments.cache or Path(temporary), arguments.device, arguments.rows)
        found = measure(
            material, rounds=arguments.rounds, epochs=arguments.epochs, recipes=arguments.recipes, full=arguments.full
        )
    Console().print(_table(found))
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
