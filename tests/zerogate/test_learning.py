"""From a task to a judged head, for every kind of dataset: it helps, it repeats itself, and the test takes no part before."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate import search
from zerogate.drift import drift
from zerogate.errors import TooFewExamples, ZerogateError
from zerogate.evaluation import RetrievalTest
from zerogate.examples import Kind, Row
from zerogate.fitting import fit
from zerogate.folded import FoldedHead, unit_rows
from zerogate.guard import Guard, make_guard
from zerogate.label_test import LabelTest
from zerogate.learning import Learned, assess, learn, make
from zerogate.plan import Way
from zerogate.recipe import Recipe
from zerogate.scored_test import ScoredTest
from zerogate.sides import evaluate_tuned
from zerogate.stacked import StackedHead
from zerogate.strength import STRENGTHS, choosing_texts
from zerogate.task_parts import Rows
from zerogate.tasks import Task, make_task
from zerogate.training import PairExamples
from zerogate.trials import trial_recipes
from zerogate.vectors import Vectors

DIM, MEANING, COUNT = 16, 5, 400
KINDS: tuple[Kind, ...] = ("pairs", "triplets", "queries", "scored", "groups")
Matrix = NDArray[np.float32]
HIDDEN, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))


class Texts:
    """Texts "q7" and "d7" that share a meaning: 5 hidden directions of 16, the others are noise. Every eighth is alike."""

    def __init__(self, count: int, *, seed: int, spread: float, noise: float) -> None:
        """spread: of the meanings of texts that are alike; noise: how loud the other directions are."""
        draw = np.random.default_rng(seed)
        centres = np.random.default_rng(3).normal(size=(8, MEANING))
        self.meaning = centres[np.arange(count) % 8] + spread * draw.normal(size=(count, MEANING))
        self._rows = {side: self._texts(noise, draw) for side in "qd"}

    def _texts(self, noise: float, draw: np.random.Generator) -> Matrix:
        meaning = self.meaning + 0.1 * draw.normal(size=self.meaning.shape)
        rows = np.hstack([meaning, noise * draw.normal(size=(len(meaning), DIM - MEANING))]) @ HIDDEN
        return unit_rows(rows.astype(np.float32))

    def vectors(self, some: Task | Guard) -> Vectors:
        sides = [
            np.asarray([self._rows[text[0]][int(text[1:])] for text in side], dtype=np.float32)
            for side in (some.queries, some.documents)
        ]
        return Vectors(*(side.reshape(-1, DIM) for side in sides))

    def score(self, one: int, other: int) -> float:
        a, b = self.meaning[one], self.meaning[other]
        return float(np.clip(0.5 + 0.5 * a @ b / np.linalg.norm(a) / np.linalg.norm(b), 0, 1))


def texts_of(kind: Kind) -> Texts:
    return ALIKE if kind in ("scored", "groups") else TEXTS


def rows_of(kind: Kind, count: int = COUNT, *, split: bool = True) -> Rows:
    """Text n makes a row, or two scored ones; a quarter is the validation, a quarter the test."""
    rows: list[Row] = []
    for n in range(count):
        match kind:
            case "scored":
                row: Row
                for other in ((7 * n + 1) % count, (11 * n + 5) % count):
                    row = {"sentence1": f"q{n}", "sentence2": f"d{other}", "score": ALIKE.score(n, other)}
                    rows.append(row)
                continue
            case "groups":
                row = {"text": f"q{n}", "label": "abcdefgh"[n % 8]}
            case "queries":
                row = {"query": f"q{n}", "documents": [f"id {n}"]}
            case _:
                row = {"anchor": f"q{n}", "positive": f"d{n}", "negatives": [f"d{(n + 5) % count}", f"d{(n + 11) % count}"]}
        rows.append(row)
    if split:
        rows = [
            {**row, "split": ("train", "train", "validation", "test")[n * count // len(rows) // 8 % 4]}
            for n, row in enumerate(rows)
        ]
    documents = {f"id {n}": f"d{n}" for n in range(count)} if kind == "queries" else {}
    return Rows(kind, rows, documents)


TEXTS = Texts(COUNT, seed=1, spread=0.7, noise=1.0)
ALIKE = Texts(COUNT, seed=1, spread=0.3, noise=1.5)


def guard_of(texts: Texts) -> tuple[Guard, Vectors]:
    guard = make_guard("scored", [{"sentence1": f"q{n}", "sentence2": f"d{n + 40}", "score": n / 80} for n in range(80)])
    vectors = texts.vectors(guard)
    halves: list[ScoredTest] = []
    for test in (guard.choosing, guard.reporting):
        assert isinstance(test, ScoredTest)
        # What the encoder says is right, but for some noise: whatever moves much costs something.
        cosines = np.einsum("kd,kd->k", *(vectors.queries[test.pairs[:, side]] for side in (0, 1)))
        noise = 0.05 * np.random.default_rng(len(halves)).normal(size=len(cosines))
        halves.append(replace(test, scores=(cosines + noise).astype(np.float32)))
    return replace(guard, choosing=halves[0], reporting=halves[1]), vectors


GUARD, GUARD_VECTORS = guard_of(Texts(COUNT, seed=5, spread=0.7, noise=1.0))
NEAR = choosing_texts(GUARD, GUARD_VECTORS)


@pytest.fixture(autouse=True)
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two recipes of the library's list, in large steps."""

    def fewer(kind: Kind, examples: int, *, seed: int) -> list[Recipe]:
        found = trial_recipes(kind, examples, seed=seed)[:2]
        return [replace(recipe, epochs=20, learning_rate=3e-2, stay_near_base=1.0) for recipe in found]

    monkeypatch.setattr(search, "trial_recipes", fewer)


def learned(task: Task, vectors: Vectors, **more: Any) -> Learned:
    return learn(task, vectors, GUARD, GUARD_VECTORS, **{"budget": 0.2, **more})


def digest(head: FoldedHead | StackedHead) -> str:
    if isinstance(head, FoldedHead):
        parts = [head.matrix] if head.offset is None else [head.matrix, head.offset]
    else:
        parts = [part for block in head.blocks for part in (block.gate, block.weight, block.bias) if part is not None]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


# The whole way


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_helps_on_the_test_and_is_made_again_from_plain_values(kind: Kind) -> None:
    task = make_task(rows_of(kind))
    vectors = texts_of(kind).vectors(task)

    found = learned(task, vectors)

    way = Way.from_dict(json.loads(json.dumps(found.plan.way.to_dict())))
    assert way == found.plan.way
    again = make(way, vectors, task.train, near=NEAR)
    assert digest(again.head) == digest(found.head)
    assert again.losses == found.losses
    head = found.head.at_strength(found.plan.strength)
    judged = assess(task, vectors, GUARD, GUARD_VECTORS, head, query_only=way.query_only)
    assert judged.verdict.outcome == "better"
    assert judged.tuned.value > judged.base.value
    assert judged.forgetting.value < 0.3


@pytest.mark.parametrize("kind", ["pairs", "groups"])
def test_what_is_reported_is_the_test_and_the_reporting_half_by_hand(kind: Kind) -> None:
    task = make_task(rows_of(kind))
    vectors = texts_of(kind).vectors(task)
    draw = np.random.default_rng(2)
    head = FoldedHead((np.eye(DIM) + 0.3 * draw.normal(size=(DIM, DIM))).astype(np.float32), None)

    judged = assess(task, vectors, GUARD, GUARD_VECTORS, head, query_only=False)

    own = task.test.of(vectors)
    tuned = Vectors(head.vectors(own.queries), head.vectors(own.documents))
    assert judged.base.scores == task.test.test.evaluate(own).scores
    assert judged.tuned.scores == task.test.test.evaluate(tuned).scores
    assert judged.verdict.difference == pytest.approx(judged.tuned.value - judged.base.value)
    guard_tuned = Vectors(head.vectors(GUARD_VECTORS.queries), GUARD_VECTORS.documents)
    lost = GUARD.reporting.evaluate(GUARD_VECTORS).value - GUARD.reporting.evaluate(guard_tuned).value
    assert judged.forgetting.value == pytest.approx(lost)
    assert judged.drift == drift(GUARD_VECTORS.queries, guard_tuned.queries)


def test_the_identity_is_judged_to_have_changed_nothing() -> None:
    task = make_task(rows_of("pairs"))

    judged = assess(task, TEXTS.vectors(task), GUARD, GUARD_VECTORS, FoldedHead.identity(DIM), query_only=False)

    assert judged.verdict.outcome == "no evidence"
    assert (judged.verdict.difference, judged.verdict.wins, judged.verdict.losses) == (0.0, 0, 0)
    assert judged.forgetting.value == 0.0
    assert (judged.drift.rank_correlation, judged.drift.neighbours) == pytest.approx((1.0, 1.0), abs=1e-9)


def test_the_same_seed_gives_the_same_bytes_and_another_another_head() -> None:
    task = make_task(rows_of("pairs"))
    vectors = TEXTS.vectors(task)

    first, second = (learned(task, vectors, seed=1) for _ in range(2))
    other = learned(task, vectors, recipe=replace(first.plan.way.recipes[0], seed=99))

    assert digest(first.head) == digest(second.head)
    assert first.plan.way == second.plan.way
    assert first.losses == second.losses
    assert digest(first.head) != digest(other.head)


# What must take no part


@pytest.mark.parametrize("kind", ["pairs", "scored", "groups"])
def test_the_answers_of_the_test_and_the_reporting_half_of_the_guard_change_nothing_that_is_learned(kind: Kind) -> None:
    task = make_task(rows_of(kind))
    vectors = texts_of(kind).vectors(task)
    reporting = GUARD.reporting
    assert isinstance(reporting, ScoredTest)
    other_task = replace(task, test=replace(task.test, test=with_other_answers(task.test.test)))
    other_guard = replace(GUARD, reporting=replace(reporting, scores=reporting.scores[::-1].copy()))

    first = learned(task, vectors)
    second = learn(other_task, vectors, other_guard, GUARD_VECTORS, budget=0.2)

    assert digest(first.head) == digest(second.head)
    assert (first.plan.way, first.plan.strength, first.plan.curve) == (second.plan.way, second.plan.strength, second.plan.curve)


def with_other_answers(test: Any) -> Any:
    match test:
        case RetrievalTest():
            return replace(test, relevant=test.relevant[::-1])
        case LabelTest():
            return replace(test, labels=test.labels[::-1].copy())
        case ScoredTest():
            return replace(test, scores=test.scores[::-1].copy())


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=4),
        Recipe(epochs=4, merge="concat", hard_negatives=2),
        Recipe(epochs=4, stay_near_base=50.0),
    ],
)
def test_the_vectors_of_the_tested_queries_change_nothing_that_is_learned(recipe: Recipe) -> None:
    task = make_task(rows_of("pairs"))
    vectors = TEXTS.vectors(task)
    queries = vectors.queries.copy()
    queries[task.test.queries] = queries[task.test.queries][::-1]

    first, second = (learned(task, some, recipe=recipe) for some in (vectors, Vectors(queries, vectors.documents)))

    assert digest(first.head) == digest(second.head)
    assert first.plan.strength == second.plan.strength


# A recipe that was asked for


def test_with_a_recipe_only_the_strength_is_chosen_inside_the_budget() -> None:
    task = make_task(rows_of("pairs"))
    vectors = TEXTS.vectors(task)
    recipe = Recipe(epochs=12, learning_rate=3e-2, loss="multi_positive", seed=4)

    free, bound = (learned(task, vectors, recipe=recipe, budget=budget) for budget in (10.0, 0.01))

    for found in (free, bound):
        (kept,) = found.plan.way.recipes
        assert replace(kept, stop_after=0) == recipe.for_kind("pairs")
        assert len(found.losses[0]) == (kept.stop_after or kept.epochs)
    assert digest(free.head) == digest(fit(vectors, task.train, free.plan.way.recipes[0], near=NEAR).head.fold())
    at = {point["strength"]: point["forgetting"] for point in bound.plan.curve}
    assert at[bound.plan.strength] <= 0.01
    assert bound.plan.strength < free.plan.strength


def test_a_head_that_does_not_fold_is_learned_and_judged_all_the_same() -> None:
    task = make_task(rows_of("pairs"))
    vectors = TEXTS.vectors(task)

    found = learned(task, vectors, recipe=Recipe(epochs=25, learning_rate=2e-2, activation="tanh", norm="pre"))

    assert isinstance(found.head, StackedHead)
    assert found.identity_at_start is True
    head = found.head.at_strength(found.plan.strength)
    judged = assess(task, vectors, GUARD, GUARD_VECTORS, head, query_only=False)
    assert judged.tuned.value > judged.base.value


def test_progress_of_search_and_fit_is_told_and_a_callback_that_raises_stops_both() -> None:
    class Cancelled(BaseException):
        pass

    task = make_task(rows_of("pairs"))
    vectors = TEXTS.vectors(task)
    told: list[tuple[str, int, int]] = []

    learned(task, vectors, recipe=Recipe(epochs=3, batch_size=64), on_step=lambda *step: told.append(step))

    stages = [stage for stage, *_ in told]
    assert stages == ["search"] * stages.count("search") + ["fit"] * stages.count("fit")
    assert stages.count("fit") > 0
    assert all(0 <= done <= total for _, done, total in told)
    shares = [done / total for stage, done, total in told if stage == "fit"]
    assert shares == sorted(shares)
    for stage in ("search", "fit"):
        with pytest.raises(Cancelled):
            learned(task, vectors, recipe=Recipe(epochs=3), on_step=raising(stage, Cancelled))


def test_a_callback_that_raises_stops_the_judging() -> None:
    class Cancelled(BaseException):
        pass

    task = make_task(rows_of("pairs"))
    told: list[str] = []

    def judged(on_step: Callable[[str, int, int], None]) -> None:
        vectors = TEXTS.vectors(task)
        assess(task, vectors, GUARD, GUARD_VECTORS, FoldedHead.identity(DIM), query_only=False, on_step=on_step)

    judged(lambda stage, *_: told.append(stage))
    assert len(dict.fromkeys(told)) > 1
    for stage in dict.fromkeys(told):
        with pytest.raises(Cancelled):
            judged(raising(stage, Cancelled))


def raising(stage: str, error: type[BaseException]) -> Callable[[str, int, int], None]:
    def on_step(found: str, _: int, __: int) -> None:
        if found == stage:
            raise error

    return on_step


# Tiny data


@pytest.mark.parametrize("kind", KINDS)
def test_of_tiny_data_the_guard_alone_chooses_the_strength(kind: Kind) -> None:
    task = make_task(rows_of(kind, 30, split=False))
    vectors = texts_of(kind).vectors(task)
    assert task.folds == ()

    free, bound = (learned(task, vectors, budget=budget) for budget in (10.0, 0.01))

    assert free.plan.strength == STRENGTHS[-1]
    assert digest(free.head) == digest(bound.head)
    lost = {}
    for strength in STRENGTHS:
        tuned = evaluate_tuned(
            GUARD.choosing, GUARD_VECTORS, bound.head.at_strength(strength), query_only=bound.plan.way.query_only
        )
        lost[strength] = GUARD.choosing.evaluate(GUARD_VECTORS).value - tuned.value
    inside = [strength for strength in STRENGTHS if lost[strength] <= 0.01]
    assert bound.plan.strength == max(inside, default=STRENGTHS[0])
    told = {point["strength"]: point["forgetting"] for point in bound.plan.curve}
    assert told == pytest.approx({0.0: 0.0, **lost})
    assert (bound.plan.planned, bound.plan.finished, bound.plan.trials) == (0, 0, [])


def test_of_tiny_data_a_head_that_cannot_keep_the_budget_is_as_weak_as_can_be() -> None:
    task = make_task(rows_of("pairs", 30, split=False))

    found = learned(task, TEXTS.vectors(task), budget=-1.0)

    assert found.plan.strength == STRENGTHS[0]


def test_of_tiny_data_a_recipe_that_was_asked_for_is_taken_as_it_is() -> None:
    task = make_task(rows_of("pairs", 30, split=False))
    vectors = TEXTS.vectors(task)
    recipe = Recipe(epochs=5, query_only=True, stop_after=3)

    found = learned(task, vectors, recipe=recipe)

    assert found.plan.way == Way("head", (recipe.for_kind("pairs"),), query_only=True)
    assert len(found.losses[0]) == 3


# Ways


def test_the_mean_of_heads_is_that_of_their_folded_matrices() -> None:
    task = make_task(rows_of("pairs"))
    vectors = TEXTS.vectors(task)
    recipes = tuple(Recipe(epochs=3, blocks=blocks, seed=blocks, stay_near_base=20.0).for_kind("pairs") for blocks in (1, 2, 3))

    found = make(Way("mean", recipes), vectors, task.train, near=NEAR)

    alone = [fit(vectors, task.train, recipe, near=NEAR) for recipe in recipes]
    assert isinstance(found.head, FoldedHead)
    np.testing.assert_array_equal(found.head.matrix, FoldedHead.mean([one.head.fold() for one in alone]).matrix)
    assert found.losses == [one.losses for one in alone]
    assert found.identity_at_start is True
    assert digest(found.head) != digest(alone[0].head.fold())


def test_the_baselines_are_made_of_the_training_examples() -> None:
    task = make_task(rows_of("pairs"))
    vectors = TEXTS.vectors(task)
    assert isinstance(task.train, PairExamples)
    X, T = (side[task.train.pairs[:, column]] for column, side in enumerate((vectors.queries, vectors.documents)))

    identity, rotation, pulled = (
        make(Way(*way), vectors, task.train, near=NEAR).head for way in (("identity",), ("procrustes",), ("ridge", (), 2.0))
    )

    assert isinstance(identity, FoldedHead)
    assert isinstance(rotation, FoldedHead)
    assert isinstance(pulled, FoldedHead)
    np.testing.assert_array_equal(identity.matrix, np.eye(DIM))
    np.testing.assert_allclose(rotation.matrix @ rotation.matrix.T, np.eye(DIM), atol=1e-5)
    assert np.square(X @ rotation.matrix.T - T).sum() < np.square(X - T).sum()
    weight = 2.0 * np.trace(X.T @ X) / DIM
    gradient = (X @ pulled.matrix.T - T).T @ X + weight * (pulled.matrix - np.eye(DIM))
    np.testing.assert_allclose(gradient, 0, atol=1e-3)


def test_a_linear_head_promises_no_identity_and_a_formula_none_either() -> None:
    task = make_task(rows_of("pairs"))
    vectors = TEXTS.vectors(task)
    linear = Recipe(epochs=2, head="linear").for_kind("pairs")

    found = [make(way, vectors, task.train, near=NEAR).identity_at_start for way in (Way("linear", (linear,)), Way("procrustes"))]

    assert found == [None, None]


def test_scored_pairs_have_no_formula() -> None:
    task = make_task(rows_of("scored"))

    for name in ("procrustes", "ridge"):
        with pytest.raises(ZerogateError, match=f"'{name}' needs pairs or groups, found scored pairs"):
            make(Way(name, pull=1.0), TEXTS.vectors(task), task.train, near=NEAR)


def test_too_few_examples_are_told_before_anything_else() -> None:
    task = make_task(rows_of("pairs"))
    few = replace(task, train=PairExamples(np.zeros((3, 2), dtype=np.int64), np.empty((3, 0), dtype=np.int64)), folds=())

    with pytest.raises(TooFewExamples, match="found 3, at least 8"):
        learned(few, TEXTS.vectors(task))
