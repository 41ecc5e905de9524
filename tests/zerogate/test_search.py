"""The search: it finds what there is to find, keeps the encoder where there is nothing, and the simplest of equals."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate import search as search_module
from zerogate.errors import TrainingDiverged
from zerogate.evaluation import MeanEvaluation, RetrievalTest
from zerogate.examples import Kind
from zerogate.fitting import fit
from zerogate.folded import FoldedHead, ServedHead, unit_rows
from zerogate.guard import Guard, make_guard
from zerogate.learning import make
from zerogate.plan import Plan, Way
from zerogate.recipe import Recipe
from zerogate.scored_test import ScoredTest
from zerogate.search import Search, rungs_of
from zerogate.sides import evaluate_tuned
from zerogate.strength import Point, Scales, choosing_texts
from zerogate.task_parts import Rows
from zerogate.tasks import Task, make_task
from zerogate.trials import trial_recipes
from zerogate.vectors import Vectors

DIM, MEANING = 16, 5
Matrix = NDArray[np.float32]
HIDDEN, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))


def unit(count: int, *, seed: int) -> Matrix:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32))


def noisy(count: int, *, seed: int) -> Vectors:
    """Queries and documents that share a meaning in 5 hidden directions of 16: a linear map can find it."""
    draw = np.random.default_rng(seed)
    meaning = draw.normal(size=(count, MEANING))
    sides = [np.hstack([meaning + 0.1 * draw.normal(size=meaning.shape), draw.normal(size=(count, DIM - MEANING))]) for _ in "qd"]
    return Vectors(*(unit_rows((side @ HIDDEN).astype(np.float32)) for side in sides))


def turned(count: int, *, seed: int) -> Vectors:
    """Documents that are the queries, turned by 60 degrees in each of 8 planes."""
    queries = unit(count, seed=seed)
    plane = np.asarray([[np.cos(np.pi / 3), -np.sin(np.pi / 3)], [np.sin(np.pi / 3), np.cos(np.pi / 3)]])
    rotation = HIDDEN.T @ np.kron(np.eye(DIM // 2), plane) @ HIDDEN
    return Vectors(queries, (queries @ rotation.T).astype(np.float32))


def equal(count: int, *, seed: int) -> Vectors:
    """Nothing is left to learn."""
    queries = unit(count, seed=seed)
    return Vectors(queries, queries)


def world(vectors: Vectors, *, shuffled: int | None = None) -> tuple[Task, Vectors]:
    """Query n belongs to document n, or to a random one. A third of the queries is the validation, an eighth the test."""
    count = len(vectors.queries)
    belongs = np.arange(count) if shuffled is None else np.random.default_rng(shuffled).permutation(count)
    splits = ["validation" if n % 3 == 0 else "test" if n % 8 == 1 else "train" for n in range(count)]
    task = make_task(
        Rows("pairs", [{"anchor": f"q{n}", "positive": f"d{belongs[n]}", "split": split} for n, split in enumerate(splits)])
    )
    queries, documents = ([int(text[1:]) for text in side] for side in (task.queries, task.documents))
    return task, Vectors(vectors.queries[queries], vectors.documents[documents])


def guard() -> tuple[Guard, Vectors]:
    """A guard on which the encoder is perfect: everything that moves a similarity costs something."""
    own = make_guard("scored", [{"sentence1": f"a{n}", "sentence2": f"b{n}", "score": n / 120} for n in range(120)])
    vectors = unit(len(own.queries), seed=77)

    def perfect(test: Any) -> ScoredTest:
        assert isinstance(test, ScoredTest)
        return replace(test, scores=np.einsum("kd,kd->k", vectors[test.pairs[:, 0]], vectors[test.pairs[:, 1]]))

    found = replace(own, choosing=perfect(own.choosing), reporting=perfect(own.reporting))
    return found, Vectors(vectors, vectors[:0])


GUARD, GUARD_VECTORS = guard()


def searching(task: Task, vectors: Vectors, *, budget: float = 1.0, **more: Any) -> Search:
    scales = Scales(task, vectors, GUARD, GUARD_VECTORS, budget=budget)
    return Search(task, vectors, scales, near=choosing_texts(GUARD, GUARD_VECTORS), **more)


def made(plan: Plan, task: Task, vectors: Vectors) -> ServedHead:
    return make(plan.way, vectors, task.train, near=choosing_texts(GUARD, GUARD_VECTORS)).head.at_strength(plan.strength)


def fresh_gain(plan: Plan, task: Task, vectors: Vectors, fresh: Vectors) -> float:
    """What the plan's head gains on texts that nobody has seen, in MRR."""
    test = RetrievalTest(np.arange(len(fresh.queries)), [[n] for n in range(len(fresh.queries))], "mrr@10")
    head = made(plan, task, vectors)
    return evaluate_tuned(test, fresh, head, query_only=plan.way.query_only).value - test.evaluate(fresh).value


def without_seconds(plan: Plan) -> dict[str, Any]:
    told = plan.to_dict()
    return {**told, "seconds": 0, "trials": [{**trial, "seconds": 0} for trial in told["trials"]]}


TrialList = Callable[[list[Recipe]], None]


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> TrialList:
    """Try these recipes, instead of the list that the library would try."""

    def instead(recipes: list[Recipe]) -> None:
        monkeypatch.setattr(search_module, "trial_recipes", lambda *_, **__: recipes)

    return instead


SHORT = [replace(recipe, epochs=12, batch_size=64) for recipe in trial_recipes("pairs", 200, seed=0)[:4]]


# What is found


def test_the_whole_search_finds_a_map_that_helps_texts_that_it_has_not_seen() -> None:
    task, vectors = world(noisy(200, seed=1))
    budget = 0.3

    plan = searching(task, vectors, budget=budget).run()

    assert plan.way.name != "identity"
    assert plan.planned == plan.finished == len({trial.number for trial in plan.trials})
    assert fresh_gain(plan, task, vectors, noisy(300, seed=2)) > 0.03
    best = plan.candidates[plan.way.name]
    assert best["score"] > plan.candidates["identity"]["score"]
    assert best["forgetting"] <= budget
    assert {"identity", "procrustes", "ridge", "linear", "head", "mean"} == plan.candidates.keys()


@pytest.mark.parametrize("seed", range(4))
def test_of_meaningless_pairs_the_encoder_is_kept(seed: int, trials: TrialList) -> None:
    task, vectors = world(noisy(240, seed=seed), shuffled=seed)
    trials(SHORT)

    plan = searching(task, vectors, seed=seed).run()

    assert plan.way.name == "identity"
    assert plan.strength == 0.0
    np.testing.assert_array_equal(made(plan, task, vectors).vectors(vectors.queries), unit_rows(vectors.queries))


def test_where_the_encoder_is_perfect_it_is_kept(trials: TrialList) -> None:
    task, vectors = world(equal(200, seed=1))
    trials(SHORT)

    plan = searching(task, vectors).run()

    assert plan.candidates["identity"]["score"] == 1.0
    assert (plan.way.name, plan.strength) == ("identity", 0.0)


def test_of_baselines_that_are_as_good_the_simpler_one_is_kept(trials: TrialList) -> None:
    """A rotation is all that is asked for: Procrustes finds it, and so does ridge regression."""
    task, vectors = world(turned(200, seed=1))
    trials([replace(recipe, query_only=True) for recipe in SHORT])

    plan = searching(task, vectors).run()

    assert plan.candidates["procrustes"]["score"] == plan.candidates["ridge"]["score"] == 1.0
    assert (plan.way.name, plan.way.query_only) == ("procrustes", True)
    assert fresh_gain(plan, task, vectors, turned(100, seed=2)) > 0.2


# The rule, by hand


def candidate(name: str, items: list[float], forgetting: float = 0.0) -> Any:
    point = Point(1.0, MeanEvaluation("x", {"x": np.asarray(items)}), forgetting)
    return search_module._Candidate(Way(name), [], [], point)  # type: ignore[arg-type]


def chosen(*found: Any) -> str:
    task, vectors = world(equal(80, seed=1))
    name: str = searching(task, vectors, budget=0.01)._simplest(list(found)).way.name
    return name


HALF = [0.0, 1.0] * 50


def raised(by: float, spread: float) -> list[float]:
    """HALF, gaining `by` on average with that standard deviation of the gains."""
    return [value + by + spread * (1 if n % 4 < 2 else -1) for n, value in enumerate(HALF)]


def test_equals_are_decided_for_the_simpler_one() -> None:
    assert chosen(candidate("identity", HALF), candidate("ridge", HALF), candidate("head", HALF)) == "identity"
    assert chosen(candidate("identity", HALF), candidate("ridge", raised(0.1, 0)), candidate("head", raised(0.1, 0))) == "ridge"


@pytest.mark.parametrize(("gain", "winner"), [(0.2, "identity"), (0.3, "head")])
def test_the_encoder_has_to_be_beaten_by_two_and_a_half_standard_errors(gain: float, winner: str) -> None:
    # The gains have a standard deviation of 1 over 100 items: a standard error of 0.1.
    assert chosen(candidate("identity", HALF), candidate("head", raised(gain, 1.0))) == winner


@pytest.mark.parametrize(("gain", "winner"), [(0.08, "ridge"), (0.12, "mean")])
def test_a_simpler_way_has_to_be_beaten_by_one_standard_error(gain: float, winner: str) -> None:
    better = candidate("mean", [value + 10 for value in raised(gain, 1.0)])
    ridge = candidate("ridge", [value + 10 for value in HALF])

    assert chosen(candidate("identity", HALF), ridge, better) == winner


def test_what_forgets_more_than_the_budget_is_out_of_the_question() -> None:
    assert chosen(candidate("identity", HALF), candidate("head", raised(5, 0), 0.011)) == "identity"
    assert chosen(candidate("identity", HALF), candidate("head", raised(5, 0), 0.01)) == "head"


# Budget, strength and what is told


def test_the_strength_is_the_best_one_inside_the_budget(trials: TrialList) -> None:
    task, vectors = world(noisy(240, seed=1))
    trials(SHORT)

    strict, generous = (searching(task, vectors, budget=budget).run() for budget in (0.02, 1.0))

    assert strict.curve[0] == {"strength": 0.0, "score": strict.candidates["identity"]["score"], "forgetting": 0.0}
    at = {point["strength"]: point for point in strict.curve}
    if strict.way.name != "identity":
        inside = [point for point in strict.curve[1:] if point["forgetting"] <= 0.02]
        assert at[strict.strength]["score"] == max(point["score"] for point in inside)
    assert at[strict.strength]["forgetting"] <= 0.02
    assert generous.way.name != "identity"
    wide = {point["strength"]: point for point in generous.curve}
    assert wide[generous.strength]["forgetting"] > 0.02
    assert wide[generous.strength]["score"] == max(point["score"] for point in generous.curve)


def test_the_same_seed_gives_the_same_plan(trials: TrialList) -> None:
    task, vectors = world(noisy(160, seed=3))
    trials(SHORT)

    first, second = (searching(task, vectors, seed=4).run() for _ in range(2))

    assert without_seconds(first) == without_seconds(second)
    assert json.loads(json.dumps(first.to_dict(), allow_nan=False)) == json.loads(json.dumps(first.to_dict()))


def test_a_time_limit_of_nothing_still_gives_a_plan() -> None:
    task, vectors = world(noisy(120, seed=1))

    plan = searching(task, vectors, max_seconds=0.0).run()

    assert 1 <= plan.finished < plan.planned
    assert plan.finished == len({trial.number for trial in plan.trials})
    assert {"identity", "head"} <= plan.candidates.keys()
    assert made(plan, task, vectors).vectors(vectors.queries).shape == vectors.queries.shape


def test_recipes_that_diverge_are_told_and_lose(trials: TrialList) -> None:
    task, vectors = world(noisy(160, seed=1))
    hopeless = replace(SHORT[0], temperature=1e-40)  # similarities divided by it are no float32
    trials([hopeless, *SHORT[:2], replace(hopeless, seed=9)])

    plan = searching(task, vectors).run()

    lost = {trial.number for trial in plan.trials if trial.score is None}
    assert lost == {0, 3}
    assert all(trial.forgetting is None and trial.strength is None for trial in plan.trials if trial.number in lost)
    assert all(trial.score is not None for trial in plan.trials if trial.number not in lost)
    assert plan.finished == plan.planned == 4
    assert all(recipe.temperature > 1e-30 for recipe in plan.way.recipes)


def test_the_better_half_of_the_trials_gets_all_of_its_epochs(trials: TrialList) -> None:
    task, vectors = world(noisy(160, seed=1))
    slow = replace(SHORT[0], learning_rate=1e-6)  # never leaves the encoder
    trials([slow, replace(slow, seed=8), replace(slow, seed=9), *SHORT[1:]])

    plan = searching(task, vectors).run()

    short, whole = ([trial for trial in plan.trials if (trial.share == 1.0) is whole] for whole in (False, True))
    assert [trial.number for trial in short] == list(range(6))
    assert 0 < len(whole) < 6
    worst = sorted(trial.score for trial in short if trial.score is not None)[: 6 - len(whole)]
    of = {trial.number: trial.score for trial in short}
    assert all(of[trial.number] >= max(worst) for trial in whole)  # type: ignore[operator]
    assert all(trial.recipe.epochs < SHORT[0].epochs for trial in short)
    assert {trial.recipe.epochs for trial in whole} == {SHORT[0].epochs}


def test_progress_is_told_and_a_callback_that_raises_stops_the_search(trials: TrialList) -> None:
    class Cancelled(BaseException):
        pass

    task, vectors = world(noisy(120, seed=1))
    trials(SHORT)
    told: list[tuple[str, int, int]] = []

    searching(task, vectors, on_step=lambda *step: told.append(step)).run()

    assert {stage for stage, *_ in told} == {"search"}
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert done[0] == 0
    assert max(done) <= {total for *_, total in told}.pop()

    def stop(_: str, done: int, __: int) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        searching(task, vectors, on_step=stop).run()


# A recipe that somebody asked for


@pytest.mark.parametrize(
    "asked",
    [
        Recipe(epochs=10, loss="online_contrastive", margin=0.8, seed=5),
        Recipe(epochs=10, merge="concat"),
        Recipe(epochs=10, norm="pre", activation="gelu", blocks=2),
        Recipe(epochs=10, query_only=True, hard_negatives=2, stay_near_base=2.0),
    ],
)
def test_a_recipe_that_was_asked_for_is_kept_and_only_its_strength_chosen(asked: Recipe) -> None:
    task, vectors = world(noisy(160, seed=1))

    plan = searching(task, vectors, budget=0.05).weigh(asked)

    (found,) = plan.way.recipes
    assert replace(found, stop_after=0) == asked.for_kind("pairs")  # it may end at the epoch where it was best
    assert (plan.way.name, plan.way.query_only) == ("head", asked.query_only)
    assert (plan.planned, plan.finished) == (1, 1)
    inside = [point for point in plan.curve[1:] if point["forgetting"] <= 0.05] or plan.curve[1:2]
    assert plan.strength in {point["strength"] for point in inside}
    assert next(point for point in inside if point["strength"] == plan.strength)["score"] == max(one["score"] for one in inside)


def test_the_epoch_where_a_fit_was_best_is_remembered_so_that_it_comes_out_again() -> None:
    """Within so small a budget the later epochs, which forget more, are worth less."""
    task, vectors = world(noisy(160, seed=1))
    asked = Recipe(epochs=40, learning_rate=5e-2, skip_dropout=0.0, bias=True, blocks=2)

    plan = searching(task, vectors, budget=0.05).weigh(asked)

    (recipe,), (fold,) = plan.way.recipes, task.folds
    assert 0 < recipe.stop_after < 40
    head = fit(vectors, fold.part, recipe, near=choosing_texts(GUARD, GUARD_VECTORS)).head.fold()
    curve = Scales(task, vectors, GUARD, GUARD_VECTORS, budget=0.05).curve([head], query_only=False)
    assert plan.curve[1:] == [point.to_dict() for point in curve]


def test_a_recipe_that_was_asked_for_and_diverges_says_so() -> None:
    task, vectors = world(noisy(120, seed=1))

    with pytest.raises(TrainingDiverged):
        searching(task, vectors).weigh(Recipe(epochs=2, temperature=1e-40))


# Kinds and averages


def test_heads_that_do_not_fold_are_not_averaged(trials: TrialList) -> None:
    task, vectors = world(noisy(160, seed=1))
    bent = [replace(recipe, activation="tanh", norm="pre") for recipe in SHORT[:3]]

    trials(bent)
    assert "mean" not in searching(task, vectors).run().candidates
    trials([*bent[:1], *SHORT[1:]])
    assert "mean" in searching(task, vectors).run().candidates


def test_an_average_is_weighed_as_the_mean_of_the_folded_heads_of_each_fold(trials: TrialList) -> None:
    task, vectors = world(noisy(200, seed=1))
    trials(SHORT)
    plan = searching(task, vectors).run()
    (fold,) = task.folds
    near = choosing_texts(GUARD, GUARD_VECTORS)

    best = [trial.recipe for trial in plan.trials if trial.share == 1.0]
    heads = [fit(vectors, fold.part, recipe, near=near).head.fold() for recipe in best]
    scales = Scales(task, vectors, GUARD, GUARD_VECTORS, budget=1.0)
    curve = scales.curve([FoldedHead.mean(heads)], query_only=False)

    assert len(best) == 3
    assert plan.candidates["mean"] == pytest.approx(scales.best(curve).to_dict(), abs=1e-9)


@pytest.mark.parametrize("kind", ["scored", "groups"])
def test_kinds_without_documents_have_the_baselines_that_fit_them(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(150, seed=1)
    rows: list[dict[str, Any]] = [{"text": f"{n}", "label": "abc"[n % 3]} for n in range(150)]
    if kind == "scored":
        rows = [{"sentence1": f"{n}", "sentence2": f"{(n * 7 + 1) % 150}", "score": n % 5 / 4} for n in range(150)]
    for n, row in enumerate(rows):
        row["split"] = ("train", "train", "validation", "test")[n % 4]
    task = make_task(Rows(kind, rows))
    own = vectors[[int(text) for text in task.queries]]
    quick = [replace(recipe, epochs=4) for recipe in trial_recipes(kind, 75, seed=0)[:3]]
    monkeypatch.setattr(search_module, "trial_recipes", lambda *_, **__: quick)

    plan = searching(task, Vectors(own, own[:0])).run()

    baselines = {"procrustes", "ridge"} if kind == "groups" else set()
    assert plan.candidates.keys() == {"identity", "linear", "head", "mean"} | baselines
    assert plan.metric == {"scored": "spearman", "groups": "accuracy@centroid"}[kind]


# Rungs


@pytest.mark.parametrize(
    ("recipes", "steps", "rungs"),
    [
        (32, 300, [(0.05, 32), (0.165723, 6), (1.0, 3)]),
        (12, 300, [(0.125, 12), (1.0, 3)]),
        (20, 300, [(0.075, 20), (0.211366, 4), (1.0, 3)]),
        (20, 75, [(0.2, 20), (0.380731, 4), (1.0, 3)]),  # 15 steps
        (20, 30, [(0.25, 20), (0.435275, 4), (1.0, 3)]),  # at most a quarter
        (4, 1_000_000, [(0.25, 4), (1.0, 3)]),
        (3, 300, [(1.0, 3)]),
        (1, 1, [(1.0, 1)]),
    ],
)
def test_the_rungs_of_a_search_are_short_for_many_and_whole_for_few(
    recipes: int, steps: int, rungs: list[tuple[float, int]]
) -> None:
    found = rungs_of(recipes, steps)

    assert [count for _, count in found] == [count for _, count in rungs]
    assert [share for share, _ in found] == pytest.approx([share for share, _ in rungs], rel=1e-5)


def test_recipes_that_are_given_are_tried_and_no_others() -> None:
    task, vectors = world(noisy(160, seed=1))

    plan = searching(task, vectors).run(SHORT[:2])

    assert plan.planned == 2
    assert {trial.recipe.seed for trial in plan.trials} == {recipe.seed for recipe in SHORT[:2]}
