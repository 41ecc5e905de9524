"""The curve of a head over its strength, the best point inside the budget, and several tests as one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zerogate.evaluation import Evaluation, MeanEvaluation, RetrievalTest
from zerogate.examples import Kind, Row
from zerogate.folded import FoldedHead, unit_rows
from zerogate.guard import Guard, make_guard
from zerogate.label_test import LabelTest
from zerogate.scored_test import ScoredTest
from zerogate.sides import tuned_vectors
from zerogate.strength import STRENGTHS, Point, Scales, choosing_texts, pooled
from zerogate.task_parts import Rows
from zerogate.tasks import Task, make_task
from zerogate.vectors import Vectors

DIM = 10
KINDS: tuple[Kind, ...] = ("pairs", "scored", "groups")


def unit(count: int, *, seed: int) -> NDArray[np.float32]:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32))


def rows_of(kind: Kind, count: int) -> Rows:
    rows: list[Row] = []
    for n in range(count):
        match kind:
            case "scored":
                rows.append({"sentence1": f"first {n}", "sentence2": f"second {n % 40}", "score": n % 7 / 6})
            case "groups":
                rows.append({"text": f"text {n}", "label": "abc"[n % 3]})
            case _:
                rows.append({"anchor": f"query {n}", "positive": f"document {n}"})
    return Rows(kind, rows)


def guard_of(kind: Kind = "scored") -> Guard:
    return make_guard(kind, rows_of(kind, 40).rows)


def vectors_for(some: Task | Guard, *, seed: int) -> Vectors:
    return Vectors(unit(len(some.queries), seed=seed), unit(len(some.documents), seed=seed + 1))


def head(seed: int, size: float = 0.6) -> FoldedHead:
    matrix = np.eye(DIM) + size * np.random.default_rng(seed).normal(size=(DIM, DIM))
    return FoldedHead(matrix.astype(np.float32), None)


def heads(task: Task, size: float = 0.6) -> list[FoldedHead]:
    return [head(seed, size) for seed in range(len(task.folds))]


def scales(kind: Kind = "pairs", *, budget: float = 0.005) -> tuple[Task, Vectors, Guard, Vectors, Scales]:
    task, guard = make_task(rows_of(kind, 150)), guard_of()
    vectors, guard_vectors = vectors_for(task, seed=1), vectors_for(guard, seed=3)
    return task, vectors, guard, guard_vectors, Scales(task, vectors, guard, guard_vectors, budget=budget)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("query_only", [False, True])
def test_at_strength_nothing_a_head_is_the_encoder(kind: Kind, query_only: bool) -> None:
    task, *_, own = scales(kind)

    (start,) = own.curve(heads(task), query_only=query_only, strengths=(0.0,))

    assert len(task.folds) > 1
    assert start.found.scores == own.base().found.scores
    assert start.forgetting == own.base().forgetting == 0.0
    assert start.to_dict() == own.base().to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_point_is_what_the_encoder_earns_on_every_fold(kind: Kind) -> None:
    task, vectors, *_, own = scales(kind)

    parts = [fold.validation.test.evaluate(fold.validation.of(vectors)) for fold in task.folds]

    assert own.base().found.value == pooled(parts).value
    assert len(own.base().found.items) == sum(len(one.items) for one in parts)


@pytest.mark.parametrize("query_only", [False, True])
def test_a_point_of_the_curve_is_each_fold_s_own_head_on_its_own_items_and_their_mean_forgetting(query_only: bool) -> None:
    task, vectors, guard, guard_vectors, own = scales()

    curve = own.curve(heads(task), query_only=query_only)

    assert [point.strength for point in curve] == list(STRENGTHS)
    for point in curve:
        items, lost = [], []
        for fold, one in zip(task.folds, heads(task), strict=True):
            weaker = one.at_strength(point.strength)
            found = fold.validation.test.evaluate(tuned_vectors(fold.validation.of(vectors), weaker, query_only=query_only))
            items.append(found.items)
            lost.append(guard.choosing.evaluate(guard_vectors).value - guard_value(guard, guard_vectors, weaker, query_only))
        np.testing.assert_array_equal(point.found.items, np.concatenate(items))
        assert point.forgetting == pytest.approx(np.mean(lost), abs=1e-12)


def guard_value(guard: Guard, vectors: Vectors, one: FoldedHead, query_only: bool) -> float:
    """What a head earns on the choosing half, from all pairs of vectors that could be compared."""
    test = guard.choosing
    assert isinstance(test, ScoredTest)
    tuned = one.vectors(vectors.queries)
    second = vectors.queries if query_only else tuned
    doubled = Vectors(np.concatenate([tuned, second]), vectors.documents)
    return replace(test, pairs=test.pairs + np.asarray([0, len(tuned)])).evaluate(doubled).value


def test_the_reporting_half_of_the_guard_has_no_part_in_it() -> None:
    task, vectors, guard, guard_vectors, own = scales()
    reporting = guard.reporting
    assert isinstance(reporting, ScoredTest)
    other = replace(guard, reporting=replace(reporting, scores=reporting.scores[::-1].copy()))

    found = Scales(task, vectors, other, guard_vectors, budget=own.budget).curve(heads(task), query_only=False)

    assert [one.to_dict() for one in found] == [one.to_dict() for one in own.curve(heads(task), query_only=False)]


def point(strength: float, score: float, forgetting: float) -> Point:
    return Point(strength, MeanEvaluation("x", {"x": np.asarray([score])}), forgetting)


curves = st.lists(
    st.tuples(st.sampled_from([0.2, 0.4, 0.4, 0.7]), st.sampled_from([-0.01, 0.0, 0.005, 0.0051, 0.02])), min_size=1
)


@given(curves, st.sampled_from([0.0, 0.005, 0.03]))
def test_the_best_point_is_inside_the_budget_where_any_is(found: list[tuple[float, float]], budget: float) -> None:
    own = Scales(*WORLD[:-1], budget=budget)
    curve = [point((n + 1) / len(found), score, lost) for n, (score, lost) in enumerate(found)]

    best = own.best(curve)

    inside = [one for one in curve if one.forgetting <= budget]
    if inside:
        assert best in inside
        assert best.found.value == max(one.found.value for one in inside)
        assert all(one.strength >= best.strength for one in inside if one.found.value == best.found.value)
    else:
        assert best.forgetting == min(one.forgetting for one in curve)
        assert all(one.strength >= best.strength for one in curve if one.forgetting == best.forgetting)


WORLD = scales()


def test_a_head_that_forgets_more_than_the_budget_is_turned_down() -> None:
    task, vectors, guard, guard_vectors, _ = scales()
    test = guard.choosing
    assert isinstance(test, ScoredTest)
    cosines = [float(guard_vectors.queries[one] @ guard_vectors.queries[other]) for one, other in test.pairs]
    guard = replace(guard, choosing=replace(test, scores=np.asarray(cosines, dtype=np.float32)))  # the encoder earns 1.0 on it
    own = Scales(task, vectors, guard, guard_vectors, budget=0.05)
    curve = own.curve(heads(task), query_only=False)

    best = own.best(curve)

    assert best.forgetting <= 0.05 < curve[-1].forgetting
    assert best.strength < 1.0


def split(test: RetrievalTest | LabelTest | ScoredTest, chosen: slice) -> RetrievalTest | LabelTest | ScoredTest:
    match test:
        case RetrievalTest():
            return replace(test, queries=test.queries[chosen], relevant=test.relevant[chosen])
        case LabelTest():
            return replace(test, texts=test.texts[chosen], labels=test.labels[chosen])
        case ScoredTest():
            return replace(test, pairs=test.pairs[chosen], scores=test.scores[chosen])


@pytest.mark.parametrize("kind", KINDS)
def test_several_tests_as_one_are_the_test_over_all_their_items(kind: Kind) -> None:
    task = make_task(rows_of(kind, 150))
    vectors = task.test.of(vectors_for(task, seed=5))
    test = task.test.test
    assert isinstance(test, RetrievalTest | LabelTest | ScoredTest)
    parts: list[Evaluation] = [split(test, chosen).evaluate(vectors) for chosen in (slice(0, 7), slice(7, 8), slice(8, None))]

    whole, found = test.evaluate(vectors), pooled(parts)

    assert found.scores == pytest.approx(whole.scores)
    assert found.primary == whole.primary
    np.testing.assert_allclose(found.items, whole.items)
    assert pooled(parts[:1]) is parts[0]


@pytest.mark.parametrize("kind", ["pairs", "scored", "groups"])
def test_what_a_training_may_see_of_a_guard_are_the_texts_of_its_choosing_half(kind: Kind) -> None:
    guard = guard_of(kind)
    vectors = vectors_for(guard, seed=1)

    found = choosing_texts(guard, vectors)

    def texts(test: object) -> set[int]:
        match test:
            case ScoredTest(pairs=rows) | LabelTest(texts=rows) | RetrievalTest(queries=rows):
                return set(rows.ravel().tolist())
        raise AssertionError(test)

    asked = sorted(texts(guard.choosing))
    np.testing.assert_array_equal(found, vectors.queries[asked])
    assert 0 < len(asked) < len(guard.queries)
    if kind != "scored":  # two pairs of one half each may share a text
        assert not set(asked) & texts(guard.reporting)
