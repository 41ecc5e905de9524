"""Fitting a head: it learns, it repeats itself to the byte, it can be stopped, and it sees every example once an epoch."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from zerogate import fitting
from zerogate.errors import TooFewExamples, TrainingDiverged, ZerogateError
from zerogate.evaluation import RetrievalTest, Test
from zerogate.fitting import Fit, fit
from zerogate.folded import FoldedHead, ServedHead, unit_rows
from zerogate.head_shapes import HeadShape
from zerogate.heads import Head, make_head
from zerogate.label_test import LabelTest
from zerogate.objectives import objective_for
from zerogate.recipe import LOSSES, Recipe
from zerogate.scored_test import ScoredTest
from zerogate.sides import evaluate_tuned
from zerogate.training import Examples, GroupExamples, PairExamples, ScoredExamples
from zerogate.vectors import Vectors

DIM, MEANING = 32, 8
QUICK = Recipe(epochs=15, batch_size=128, temperature=0.05, skip_dropout=0.2)

Rows = NDArray[np.float32]
NOTHING: Rows = np.empty((0, DIM), dtype=np.float32)
HIDDEN, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))


def texts(meaning: NDArray[np.float64], draw: np.random.Generator) -> Rows:
    """Vectors that carry a meaning in 8 hidden directions of 32; the other 24 are noise, and louder."""
    count = len(meaning)
    rows = np.hstack([meaning + 0.1 * draw.normal(size=(count, MEANING)), 1.2 * draw.normal(size=(count, DIM - MEANING))])
    return unit_rows((rows @ HIDDEN).astype(np.float32))


def toy(count: int, *, seed: int) -> Vectors:
    """Queries and documents, of which those with one number share their meaning."""
    draw = np.random.default_rng(seed)
    meaning = draw.normal(size=(count, MEANING))
    return Vectors(texts(meaning, draw), texts(meaning, draw))


def one_to_one(count: int, negatives: NDArray[np.int64] | None = None) -> PairExamples:
    pairs = np.stack([np.arange(count), np.arange(count)], axis=1)
    return PairExamples(pairs, np.empty((count, 0), dtype=np.int64) if negatives is None else negatives)


def pair_task(count: int, seed: int) -> tuple[Vectors, Examples, Test]:
    wrong = (np.arange(count)[:, None] + np.random.default_rng(seed).integers(1, count, size=(count, 3))) % count
    return toy(count, seed=seed), one_to_one(count, wrong), RetrievalTest(np.arange(count), [[n] for n in range(count)], "mrr@10")


def scored_task(count: int, seed: int) -> tuple[Vectors, Examples, Test]:
    draw = np.random.default_rng(seed)
    meaning = draw.normal(size=(count, MEANING))
    pairs = draw.integers(count, size=(2 * count, 2))
    directions = meaning / np.linalg.norm(meaning, axis=1, keepdims=True)
    cosines = np.einsum("kd,kd->k", directions[pairs[:, 0]], directions[pairs[:, 1]])
    scores = np.clip(0.5 + cosines, 0, 1).astype(np.float32)
    return Vectors(texts(meaning, draw), NOTHING), ScoredExamples(pairs, scores), ScoredTest(pairs, scores)


def group_task(count: int, seed: int) -> tuple[Vectors, Examples, Test]:
    draw = np.random.default_rng(seed)
    centres, labels = np.random.default_rng(7).normal(size=(12, MEANING)), np.arange(count) % 12
    vectors = texts(centres[labels] + 0.3 * draw.normal(size=(count, MEANING)), draw)
    half = np.arange(count // 2), np.arange(count // 2, count)
    test = LabelTest(half[0], labels[half[0]], half[1], labels[half[1]])
    return Vectors(vectors, NOTHING), GroupExamples(np.arange(count), labels), test


TASKS = {"pairs": pair_task, "scored": scored_task, "groups": group_task}
MARGINS = {"triplet": 0.5, "online_contrastive": 0.9}  # noise is loud in the toys: what is apart has to be far apart


def fit_toy(recipe: Recipe = QUICK, *, count: int = 300, **more: Any) -> Fit:
    return fit(toy(count, seed=1), one_to_one(count), recipe, **more)


def digest(head: Head) -> str:
    return hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in head.parameters())).hexdigest()


def mrr(head: ServedHead, vectors: Vectors) -> float:
    test = RetrievalTest(np.arange(len(vectors.queries)), [[n] for n in range(len(vectors.queries))], "mrr@10")
    return evaluate_tuned(test, vectors, head, query_only=False).value


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in full precision, whatever the processor is good at."""
    monkeypatch.setattr(fitting, "best_dtype", lambda _: "float32")


# Learning


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_falls_and_improves_a_test_of_texts_that_it_has_not_seen(loss: str) -> None:
    kind = {"scored": "scored", "groups": "groups"}.get(LOSSES[loss][0], "pairs")
    vectors, examples, _ = TASKS[kind](300, 1)
    held_out, _, test = TASKS[kind](240, 2)
    base = test.evaluate(held_out).value

    recipe = Recipe(loss=loss, epochs=25, batch_size=150, learning_rate=3e-2, margin=MARGINS.get(loss, 0.0))
    fitted = fit(vectors, examples, recipe)

    assert fitted.losses[-1] < 0.9 * fitted.losses[0]
    assert evaluate_tuned(test, held_out, fitted.head.served(), query_only=False).value > base + 0.05


@pytest.mark.parametrize(
    "shape",
    [
        {"blocks": 2},
        {"bias": True},
        {"merge": "concat"},
        {"merge": "concat", "blocks": 2},
        {"norm": "pre"},
        {"norm": "post"},
        {"activation": "relu"},
        {"activation": "gelu", "norm": "pre", "blocks": 2},
        {"activation": "tanh", "bias": True},
        {"head": "gated"},
        {"head": "linear"},
        {"head": "linear", "activation": "tanh", "blocks": 2, "bias": True},
    ],
)
def test_heads_of_every_shape_learn(shape: dict[str, Any]) -> None:
    held_out = toy(200, seed=2)
    # The hidden directions are no axes of the space, so weights for its axes alone can do little.
    gain = 0.005 if shape.get("head") == "gated" else 0.1
    start = make_head(DIM, Recipe(**shape).shape, seed=0)

    fitted = fit_toy(Recipe(**{"epochs": 25, "batch_size": 150, "learning_rate": 2e-2, "temperature": 0.05, **shape}))

    assert fitted.losses[-1] < 0.95 * fitted.losses[0]
    assert mrr(fitted.head.served(), held_out) > mrr(FoldedHead.identity(DIM), held_out) + gain
    assert all(not torch.equal(*both) for both in zip(start.parameters(), fitted.head.parameters(), strict=True))


def test_with_query_only_the_documents_stay_and_the_queries_come_to_them() -> None:
    turned = HIDDEN.T.astype(np.float32)  # what belongs together lies a rotation apart

    def apart(seed: int) -> Vectors:
        rows = unit_rows(np.random.default_rng(seed).normal(size=(300, DIM)).astype(np.float32))
        return Vectors(rows, rows @ turned)

    held_out, test = apart(2), RetrievalTest(np.arange(300), [[n] for n in range(300)], "mrr@10")
    recipe = Recipe(epochs=40, batch_size=100, temperature=0.05, skip_dropout=0.0, query_only=True)

    head = fit(apart(1), one_to_one(300), recipe).head.served()

    assert test.evaluate(held_out).value < 0.1
    assert evaluate_tuned(test, held_out, head, query_only=True).value > 0.6
    assert evaluate_tuned(test, held_out, head, query_only=False).value < 0.1


def test_a_fit_reports_one_loss_an_epoch_and_its_seconds() -> None:
    fitted = fit_toy()

    assert len(fitted.losses) == QUICK.epochs
    assert fitted.losses[-1] < 0.7 * fitted.losses[0]
    assert fitted.seconds > 0


def test_the_head_that_comes_back_is_ready_to_be_used() -> None:
    fitted = fit_toy()
    x = torch.from_numpy(toy(20, seed=3).queries)

    first, second = (fitted.head(x) for _ in range(2))

    assert not fitted.head.training
    assert torch.equal(first, second)  # nothing is dropped
    np.testing.assert_allclose(first.detach().numpy(), fitted.head.fold().raw(x.numpy()), atol=1e-6)


@pytest.mark.parametrize("loss", ["contrastive", "cosent", "arcface"])
def test_the_identity_has_nothing_to_train(loss: str) -> None:
    vectors, examples, _ = TASKS[{"contrastive": "pairs", "cosent": "scored", "arcface": "groups"}[loss]](60, 1)

    fitted = fit(vectors, examples, Recipe(loss=loss, head="identity"))

    assert fitted.losses == []
    assert fitted.identity_at_start is True
    np.testing.assert_array_equal(fitted.head.fold().matrix, np.eye(DIM))


@pytest.mark.parametrize(
    ("shape", "starts"),
    [
        ({}, True),
        ({"blocks": 3, "norm": "post"}, True),
        ({"merge": "concat", "blocks": 2}, True),
        ({"head": "gated"}, True),
        ({"head": "linear"}, False),
    ],
)
def test_the_identity_at_the_start_is_measured(shape: dict[str, Any], starts: bool) -> None:
    recipe = Recipe(epochs=1, **shape)
    fresh, x = make_head(DIM, recipe.shape, seed=recipe.seed).eval(), torch.from_numpy(toy(60, seed=1).queries)

    fitted = fit_toy(recipe, count=60)

    assert fitted.identity_at_start is starts
    y = fresh(x)
    assert (torch.equal(y[:, :DIM], x) and not y[:, DIM:].any()) is starts


def test_a_head_that_does_not_start_as_the_identity_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_gate(dim: int, shape: HeadShape, **more: Any) -> Head:
        head = make_head(dim, shape, **more)
        for gate in head.get_parameter("gates.0"), head.get_parameter("gates.1"):
            torch.nn.init.constant_(gate, 1e-3)
        return head

    monkeypatch.setattr(fitting, "make_head", open_gate)

    for merge in ("add", "concat"):
        assert fit_toy(Recipe(epochs=1, blocks=2, merge=merge), count=60).identity_at_start is False


# The same again


SAME: list[tuple[str, dict[str, Any]]] = [
    ("pairs", {"blocks": 2, "bias": True, "hard_negatives": 2, "stay_near_base": 5.0}),
    ("pairs", {"merge": "concat", "loss": "multi_positive"}),
    ("scored", {"norm": "pre", "activation": "gelu", "stay_near_base": 1.0}),
    ("groups", {"loss": "arcface"}),
    ("groups", {"head": "linear"}),
]


@pytest.mark.parametrize(("kind", "values"), SAME)
def test_the_same_seed_and_vectors_give_the_same_bytes_and_another_seed_others(kind: str, values: dict[str, Any]) -> None:
    vectors, examples, _ = TASKS[kind](150, 1)
    recipe, near = Recipe(**{"epochs": 5, "batch_size": 64, "seed": 3, **values}), toy(80, seed=8).queries

    first = fit(vectors, examples, recipe, near=near)
    torch.manual_seed(123)  # what others draw has no part in it
    torch.rand(7)
    second = fit(vectors, examples, recipe, near=near)
    other = fit(vectors, examples, replace(recipe, seed=4), near=near)

    assert digest(first.head) == digest(second.head)
    assert first.losses == second.losses
    assert digest(first.head) != digest(other.head)


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    vectors, recipe = toy(300, seed=1), replace(QUICK, stay_near_base=2.0)
    np.savez(tmp_path / "toy.npz", queries=vectors.queries, documents=vectors.documents, pairs=one_to_one(300).pairs)
    code = """
import hashlib, json, sys
import numpy as np
import torch
from zerogate.fitting import fit
from zerogate.recipe import Recipe
from zerogate.training import PairExamples
from zerogate.vectors import Vectors

torch.set_num_threads(int(sys.argv[3]))
toy = np.load(sys.argv[1])
examples = PairExamples(toy["pairs"], np.empty((len(toy["pairs"]), 0), dtype=np.int64))
fitted = fit(Vectors(toy["queries"], toy["documents"]), examples, Recipe.from_dict(json.loads(sys.argv[2])))
print(hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in fitted.head.parameters())).hexdigest())
"""
    arguments = [str(tmp_path / "toy.npz"), json.dumps(recipe.to_dict()), str(torch.get_num_threads())]

    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=120)

    assert found.stdout.strip() == digest(fit_toy(recipe).head)


def test_inputs_are_not_modified() -> None:
    vectors, examples, near = toy(100, seed=1), one_to_one(100), toy(50, seed=4).queries
    inputs = (vectors.queries, vectors.documents, examples.pairs, examples.negatives, near)
    before = [one.tobytes() for one in inputs]

    fit(vectors, examples, replace(QUICK, stay_near_base=1.0, hard_negatives=2), near=near)

    assert [one.tobytes() for one in inputs] == before


def test_vectors_that_may_not_be_written_to_are_taken_as_they_are() -> None:
    vectors = toy(100, seed=1)
    frozen = Vectors(
        *(np.frombuffer(side.tobytes(), dtype=np.float32).reshape(side.shape) for side in (vectors.queries, vectors.documents))
    )

    assert digest(fit(frozen, one_to_one(100), QUICK).head) == digest(fit(vectors, one_to_one(100), QUICK).head)


def test_examples_choose_their_rows_by_index() -> None:
    vectors = toy(120, seed=1)
    order = np.random.default_rng(5).permutation(120)
    turned = PairExamples(np.stack([np.arange(120), np.argsort(order)], axis=1), np.empty((120, 0), dtype=np.int64))

    straight = fit(vectors, one_to_one(120), QUICK)
    mixed = fit(Vectors(vectors.queries, vectors.documents[order]), turned, QUICK)

    assert digest(straight.head) == digest(mixed.head)


# Stopping


def test_a_callback_that_raises_stops_at_once_and_its_exception_comes_through_untouched() -> None:
    class Cancelled(BaseException):
        pass

    stop = Cancelled("enough")
    seen = []

    def on_step(step: int, steps: int, loss: float) -> None:
        seen.append(step)
        if step == 4:
            raise stop

    with pytest.raises(Cancelled) as caught:
        fit_toy(on_step=on_step)

    assert caught.value is stop
    assert caught.value.__cause__ is None
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "values",
    [{}, {"merge": "concat", "stay_near_base": 3.0}, {"blocks": 2, "skip_dropout": 0.5}, {"norm": "pre", "activation": "tanh"}],
)
def test_stop_after_gives_the_head_that_the_whole_training_had_then(values: dict[str, Any]) -> None:
    """So a search that remembers a head after an epoch knows how to make it again."""
    recipe = replace(QUICK, **values)

    whole = fit_toy(recipe, snapshots=[3, 9, 15])
    stopped = {epoch: fit_toy(replace(recipe, stop_after=epoch)) for epoch in (3, 9, 15)}

    assert [served(one.head.served()) for one in stopped.values()] == [served(one) for one in whole.snapshots]
    assert len({served(one) for one in whole.snapshots}) == 3
    assert stopped[9].losses == whole.losses[:9]
    assert digest(stopped[15].head) == digest(whole.head)  # which taking the snapshots has not moved


def served(head: ServedHead) -> bytes:
    return head.raw(toy(20, seed=6).queries).tobytes()


# What a step sees


@pytest.mark.parametrize(
    ("count", "batch_size", "steps_of_epoch"), [(300, 128, 3), (256, 128, 2), (257, 128, 3), (8, 512, 1), (9, 2, 5)]
)
def test_there_are_as_many_steps_as_batches_and_each_is_told_with_the_loss_of_the_epoch_before(
    count: int, batch_size: int, steps_of_epoch: int
) -> None:
    told: list[tuple[int, int, float]] = []
    recipe = Recipe(epochs=4, batch_size=batch_size)

    fitted = fit_toy(recipe, count=count, on_step=lambda *step: told.append(step))

    assert [(step, steps) for step, steps, _ in told] == [(step, 4 * steps_of_epoch) for step in range(4 * steps_of_epoch)]
    assert all(math.isnan(loss) for *_, loss in told[:steps_of_epoch])
    expected = np.repeat(fitted.losses[:3], steps_of_epoch)
    assert [loss for *_, loss in told[steps_of_epoch:]] == expected.tolist()


def test_a_single_step_trains() -> None:
    fitted = fit_toy(Recipe(epochs=1), count=20)

    assert len(fitted.losses) == 1
    assert fitted.head.get_parameter("gates.0").abs().max() > 1e-6


def frozen(batch_size: int) -> Recipe:
    """A recipe that leaves the head where it is, so that every loss has a closed form."""
    return Recipe(epochs=2, batch_size=batch_size, learning_rate=1e-30, skip_dropout=0.0, temperature=0.5)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(50, 16, [12, 12, 13, 13]), (33, 32, [16, 17]), (48, 16, [16, 16, 16])]
)
def test_the_batches_of_an_epoch_are_of_nearly_equal_size(count: int, batch_size: int, sizes: list[int]) -> None:
    own_direction = np.eye(64, dtype=np.float32)[:count]

    fitted = fit(Vectors(own_direction, own_direction), one_to_one(count), frozen(batch_size))

    # All negatives are orthogonal: the loss of a batch of b pairs is log(1 + (b - 1) exp(-1 / 0.5)).
    per_batch = [math.log1p((size - 1) * math.exp(-2)) for size in sizes]
    assert fitted.losses == pytest.approx([np.mean(per_batch)] * 2, rel=1e-6)


@pytest.mark.usefixtures("exact")
def test_every_pair_is_seen_once_an_epoch() -> None:
    count, batch_size = 48, 16
    angles = np.linspace(0.0, 1.5, count)
    anchors = np.eye(2 * count)[:count]
    positives = np.cos(angles)[:, None] * anchors + np.sin(angles)[:, None] * np.eye(2 * count)[count:]

    fitted = fit(Vectors(anchors.astype(np.float32), positives.astype(np.float32)), one_to_one(count), frozen(batch_size))

    # Each pair has a loss of its own, and no pair touches another: seen twice or not at all, it would change the sum.
    per_pair = np.log1p((batch_size - 1) * np.exp(-np.cos(angles) / 0.5))
    assert fitted.losses == pytest.approx([per_pair.mean()] * 2, rel=1e-6)
    assert np.abs(np.diff(per_pair)).min() > 0


def test_pairs_that_share_a_text_are_no_negatives_of_each_other() -> None:
    vectors = Vectors(np.eye(16, dtype=np.float32), np.eye(16, dtype=np.float32)[:1])
    pairs = np.stack([np.arange(16), np.zeros(16, dtype=np.int64)], axis=1)

    fitted = fit(vectors, PairExamples(pairs, np.empty((16, 0), dtype=np.int64)), frozen(16))

    assert fitted.losses == [0.0, 0.0]


@pytest.mark.usefixtures("exact")
def test_given_negatives_stand_in_the_loss() -> None:
    """Each query has a further orthogonal document beside those of the batch."""
    own_direction = np.eye(64, dtype=np.float32)
    examples = one_to_one(16, np.arange(40, 56)[:, None])

    fitted = fit(Vectors(own_direction[:16], own_direction), examples, frozen(16))

    forward, backward = (math.log1p(others * math.exp(-2)) for others in (16, 15))
    assert fitted.losses == pytest.approx([(forward + backward) / 2] * 2, rel=1e-6)


def mined(monkeypatch: pytest.MonkeyPatch, vectors: Vectors, examples: PairExamples, per_query: int) -> NDArray[np.int64]:
    """The negatives that a fit trains on."""
    seen: list[PairExamples] = []

    def spy(found: PairExamples, *more: Any) -> Any:
        seen.append(found)
        return objective_for(found, *more)

    monkeypatch.setattr(fitting, "objective_for", spy)
    fit(vectors, examples, Recipe(epochs=1, hard_negatives=per_query))
    np.testing.assert_array_equal(seen[0].pairs, examples.pairs)
    return seen[0].negatives


def test_hard_negatives_are_the_nearest_documents_that_may_be_wrong_and_never_a_known_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = toy(60, seed=1)
    # Every query knows three documents: its own, and two that are among the nearest to it.
    nearest = np.argsort(-(vectors.queries @ vectors.documents.T), axis=1)[:, :2]
    known = {(n, int(document)) for n in range(60) for document in (n, *nearest[n])}
    examples = PairExamples(np.asarray(sorted(known)), np.empty((len(known), 0), dtype=np.int64))

    negatives = mined(monkeypatch, vectors, examples, 3)

    assert negatives.shape == (len(known), 3)
    assert (negatives >= 0).mean() > 0.9
    for (query, _), row in zip(examples.pairs, negatives, strict=True):
        own = [document for one, document in known if one == query]
        cosines = vectors.queries[query] @ vectors.documents.T
        taken = [int(document) for document in row if document >= 0]
        assert not set(taken) & set(own)
        assert len(set(taken)) == len(taken)
        assert all(cosines[one] >= cosines[other] for one, other in pairwise(taken))
        # None is as near as the best known one, and none is left out but those in between.
        best, last = cosines[own].max(), cosines[taken].min() if taken else -1
        assert cosines[taken].max(initial=-1) < best
        left_out = [n for n in range(60) if n not in own and n not in taken and cosines[n] > last]
        assert all(cosines[n] > 0.8 * best for n in left_out)


def test_hard_negatives_stand_beside_the_given_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, given = toy(40, seed=2), ((np.arange(40) + 7) % 40)[:, None]

    negatives = mined(monkeypatch, vectors, one_to_one(40, given), 2)

    np.testing.assert_array_equal(negatives[:, :1], given)
    np.testing.assert_array_equal(negatives[:, 1:], mined(monkeypatch, vectors, one_to_one(40), 2))


# Staying near the base


def moved(head: ServedHead, rows: Rows) -> float:
    """The root mean square change of the similarities of texts to each other."""
    before, after = rows @ rows.T, head.vectors(rows) @ head.vectors(rows).T
    return float(np.sqrt(np.square(after - before).mean()))


@pytest.mark.parametrize("values", [{}, {"norm": "pre", "activation": "tanh"}, {"merge": "concat"}])
def test_similarities_stay_nearer_the_base_where_that_weighs(values: dict[str, Any]) -> None:
    general, vectors = toy(200, seed=8).queries, toy(300, seed=1)
    recipe = replace(QUICK, **values)

    free, held = (fit_toy(replace(recipe, stay_near_base=weight), near=general).head.served() for weight in (0.0, 1000.0))

    for rows in (vectors.queries, vectors.documents, general, toy(100, seed=9).queries):
        assert moved(free, rows) > 1.5 * moved(held, rows) > 0


def test_general_texts_are_kept_more_where_they_take_part() -> None:
    draw = np.random.default_rng(1)
    # Little but meaning, unlike the training texts.
    parts = np.hstack([draw.normal(size=(150, MEANING)), 0.3 * draw.normal(size=(150, DIM - MEANING))])
    general = unit_rows((parts @ HIDDEN).astype(np.float32))
    recipe = replace(QUICK, stay_near_base=300.0)

    without, with_them = (fit_toy(recipe, count=200, near=near).head.served() for near in (None, general))

    assert moved(with_them, general) < 0.9 * moved(without, general)


# What is refused


def test_fewer_than_eight_examples_are_too_few() -> None:
    with pytest.raises(TooFewExamples, match="examples to train on: found 7, at least 8 are needed") as caught:
        fit_toy(count=7)

    assert (caught.value.found, caught.value.needed) == (7, 8)
    assert len(fit_toy(count=8).losses) == QUICK.epochs


@pytest.mark.parametrize(("kind", "loss"), [("pairs", "cosent"), ("scored", "contrastive"), ("groups", "triplet")])
def test_a_loss_for_other_examples_is_refused(kind: str, loss: str) -> None:
    vectors, examples, _ = TASKS[kind](60, 1)

    with pytest.raises(ZerogateError, match=r"recipe\.loss must be auto, .* for a dataset of kind"):
        fit(vectors, examples, Recipe(loss=loss))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_training(poison: float) -> None:
    vectors = toy(100, seed=1)
    vectors.queries[3, 5] = poison

    with pytest.raises(TrainingDiverged, match="the loss became nan at step 1") as caught:
        fit(vectors, one_to_one(100), QUICK)

    assert caught.value.step == 1
    assert math.isnan(caught.value.loss)


def test_weights_that_leave_all_numbers_behind_stop_the_training() -> None:
    """The numbers of one text become too large for float32 only after some steps."""
    vectors = toy(100, seed=1)
    vectors.queries[:50] *= 3e38

    with pytest.raises(TrainingDiverged):
        fit(vectors, one_to_one(100), replace(QUICK, learning_rate=1.0))
