"""The fit benchmark: its peer learns the same, its floor counts what it says, and a tiny run has all figures."""

import json

import numpy as np
import pytest
import torch

from benchmarks.fit import Material, best_score, measure, to_target
from benchmarks.fit_peers import floor_seconds, plain_fit
from zerogate.evaluation import RetrievalTest
from zerogate.folded import unit_rows
from zerogate.guard import make_guard
from zerogate.plan import Trial
from zerogate.recipe import Recipe
from zerogate.sides import evaluate_tuned
from zerogate.task_parts import Rows
from zerogate.tasks import make_task
from zerogate.training import PairExamples
from zerogate.vectors import Vectors

DIM, MEANING = 24, 6
HIDDEN, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))
CPU = torch.device("cpu")


def meaningful(count: int, *, seed: int) -> Vectors:
    """Queries and documents that share a meaning in 6 hidden directions of 24."""
    draw = np.random.default_rng(seed)
    meaning = draw.normal(size=(count, MEANING))
    sides = [np.hstack([meaning + 0.1 * draw.normal(size=meaning.shape), draw.normal(size=(count, DIM - MEANING))]) for _ in "qd"]
    return Vectors(*(unit_rows((side @ HIDDEN).astype(np.float32)) for side in sides))


def material() -> Material:
    vectors, draw = meaningful(150, seed=1), np.random.default_rng(5)
    task = make_task(Rows("pairs", [{"anchor": f"q{n}", "positive": f"d{n}"} for n in range(150)]))
    queries, documents = ([int(text[1:]) for text in side] for side in (task.queries, task.documents))
    guard = make_guard("scored", [{"sentence1": f"a{n}", "sentence2": f"b{n}", "score": n / 60} for n in range(60)])
    guarding = unit_rows(draw.normal(size=(len(guard.queries), DIM)).astype(np.float32))
    return Material(
        task, Vectors(vectors.queries[queries], vectors.documents[documents]), guard, Vectors(guarding, guarding[:0]), CPU
    )


def test_the_plain_loop_learns_what_can_be_learnt() -> None:
    vectors, fresh = meaningful(300, seed=1), meaningful(200, seed=2)
    pairs = PairExamples(np.stack([np.arange(300)] * 2, axis=1), np.empty((300, 0), dtype=np.int64))
    test = RetrievalTest(np.arange(200), [[n] for n in range(200)], "mrr@10")

    head, seconds = plain_fit(vectors, pairs, Recipe(epochs=25, batch_size=100, temperature=0.05, skip_dropout=0.2), CPU)

    assert evaluate_tuned(test, fresh, head, query_only=False).value > test.evaluate(fresh).value + 0.1
    assert seconds > 0


def test_the_floor_counts_the_operations_of_five_products() -> None:
    seconds, operations = floor_seconds(8, 16, CPU)

    head, similarities = 2 * 16 * 16 * 16, 2 * 8 * 8 * 16
    assert operations == 2 * head + 3 * similarities
    assert seconds > 0


def trial(score: float | None, forgetting: float | None) -> Trial:
    return Trial(0, 1.0, Recipe(), score, forgetting, 1.0, 1.0)


def test_the_best_score_is_one_inside_the_budget() -> None:
    assert best_score([trial(0.9, 0.1), trial(0.5, 0.001), trial(None, None), trial(0.6, 0.005)]) == 0.6
    assert best_score([trial(0.9, 0.1)]) == 0.0


def test_a_target_is_reached_when_every_fit_reaches_it() -> None:
    assert to_target([(1.0, 0.6), (3.0, 0.53), (2.0, 0.54)], 0.53) == 2.0
    assert to_target([(1.0, 0.6), (3.0, 0.5299)], 0.53) is None


@pytest.mark.parametrize("full", [False, True])
def test_a_tiny_run_has_every_figure(full: bool) -> None:
    found = json.loads(json.dumps(measure(material(), rounds=1, epochs=4, recipes=5, full=full), allow_nan=False))

    assert {"ratio", "share_of_floor", "sweep_5_ratio", "seconds_to_mrr_0.53", "quick_mrr"} <= found.keys()
    fast, swept = found["speed"], found["sweep"]
    assert found["ratio"] == pytest.approx(fast["pairs_per_second"] / fast["plain_pairs_per_second"])
    assert found["share_of_floor"] == pytest.approx(fast["floor_seconds"] / fast["step_seconds"])
    assert found["sweep_5_ratio"] == pytest.approx(swept["seconds"] / fast["fit_seconds"])
    assert (swept["best"] is not None) is full
    assert all(0 <= one <= 1 for one in (*fast["mrr"], *fast["plain_mrr"], fast["base_mrr"]))
