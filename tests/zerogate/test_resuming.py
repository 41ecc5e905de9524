"""A training that was stopped or killed goes on from what was done, does nothing twice, and gives the same bytes."""

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate import records as records_module
from zerogate import search, strength
from zerogate.errors import TrainingDiverged
from zerogate.examples import Kind, Row
from zerogate.fitting import Fit, fit
from zerogate.folded import FoldedHead, unit_rows
from zerogate.guard import Guard, make_guard
from zerogate.learning import Learned, learn
from zerogate.recipe import Recipe
from zerogate.records import Records
from zerogate.task_parts import Rows
from zerogate.tasks import Task, make_task
from zerogate.training import Examples, GroupExamples, PairExamples, ScoredExamples
from zerogate.trials import trial_recipes
from zerogate.vectors import Vectors

DIM, COUNT = 16, 240
KINDS: tuple[Kind, ...] = ("pairs", "scored", "groups")
NEAR = unit_rows(np.random.default_rng(5).normal(size=(60, DIM)).astype(np.float32))


def meanings(count: int) -> NDArray[np.float64]:
    """Of text n in 4 directions: one of 12, and a little of its own."""
    draw = np.random.default_rng(3)
    return draw.normal(size=(12, 4))[np.arange(count) % 12] + 0.3 * draw.normal(size=(count, 4))


def matrix(count: int, seed: int) -> NDArray[np.float32]:
    """Vectors that carry the meanings in 4 hidden directions of 16; the others are noise, and louder."""
    noise = 1.5 * np.random.default_rng(seed).normal(size=(count, DIM - 4))
    hidden, _ = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))
    return unit_rows((np.hstack([meanings(count), noise]) @ hidden).astype(np.float32))


def examples_of(kind: Kind, count: int = 150) -> Examples:
    numbers, draw = np.arange(count), np.random.default_rng(7)
    match kind:
        case "scored":
            return ScoredExamples(draw.integers(count, size=(count, 2)), draw.random(count).astype(np.float32))
        case "groups":
            return GroupExamples(numbers, numbers % 12)
        case _:
            return PairExamples(np.stack([numbers, numbers], axis=1), (numbers[:, None] + [5, 11]) % count)


FITS: list[tuple[Kind, dict[str, Any]]] = [
    ("pairs", {"skip_dropout": 0.5, "stay_near_base": 3.0, "hard_negatives": 2}),
    ("pairs", {"loss": "multi_positive", "merge": "concat", "blocks": 2}),
    ("pairs", {"query_only": True, "bias": True, "stop_after": 4}),
    ("scored", {"norm": "pre", "activation": "gelu", "stay_near_base": 1.0}),
    ("groups", {"loss": "arcface", "skip_dropout": 0.3}),
    ("groups", {"stay_near_base": 30.0, "blocks": 2}),
    ("groups", {"head": "linear", "loss": "supervised_contrastive"}),
    ("pairs", {"head": "gated"}),
]


class Stopped(BaseException):
    """Not an Exception: as KeyboardInterrupt."""


class Stops:
    """An on_step that counts what it is told, and stops the training at some of the calls."""

    def __init__(self, *at: int) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._at = at

    def __call__(self, *told: Any) -> None:
        self.told.append(told)
        if len(self.told) - 1 in self._at:
            raise Stopped


def fitted(
    kind: Kind, recipe: Recipe, records: Records | None = None, on_step: Any = None, snapshots: tuple[int, ...] = (2, 4)
) -> Fit:
    documents = matrix(150, 2) if kind == "pairs" else matrix(0, 2)
    vectors = Vectors(matrix(150, 1), documents)
    return fit(vectors, examples_of(kind), recipe, near=NEAR, on_step=on_step, snapshots=snapshots, records=records)


def result(found: Fit) -> tuple[Any, ...]:
    heads = [head.raw(NEAR).tobytes() for head in found.snapshots]
    return [one.detach().numpy().tobytes() for one in found.head.parameters()], found.losses, heads, found.steps


def records_in(folder: Path, **computer: Any) -> Records:
    return Records(folder, computer=computer)


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    write_at_every_step(monkeypatch.setattr)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_SECONDS", 0.1)
    monkeypatch.setattr(records_module, "_WRITING_SHARE", float("inf"))


def write_at_every_step(put: Callable[[Any, str, Any], None]) -> None:
    put(records_module, "_SECONDS", -1.0)
    put(records_module, "_WRITING_SHARE", float("inf"))


# One fit


@pytest.mark.parametrize(("kind", "values"), FITS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_that_is_stopped_again_and_again_gives_the_same_bytes_and_no_step_twice(
    kind: Kind, values: dict[str, Any], seed: int, tmp_path: Path
) -> None:
    recipe = Recipe(**{"epochs": 6, "batch_size": 32, "learning_rate": 2e-2, "seed": seed, **values})
    whole = Stops()
    expected = fitted(kind, recipe, on_step=whole)
    draw = np.random.default_rng([seed, len(values)])
    told: list[tuple[Any, ...]] = []
    runs, found = 0, None

    while found is None:  # every run does 1 to 9 steps: they stop at the ends of epochs and inside them
        runs += 1
        stops = Stops(int(draw.integers(1, 10)))
        try:
            found = fitted(kind, recipe, records_in(tmp_path), stops)
            told += stops.told
        except Stopped:
            told += stops.told[:-1]  # the last one was stopped before it was done

    assert runs > 2
    assert result(found) == result(expected)
    assert repr(told) == repr(whole.told)  # losses of an epoch before the first are NaN
    assert found.resumed_step == stops.told[0][0]
    assert expected.resumed_step == 0


def test_a_fit_that_was_done_is_found_as_a_whole(tmp_path: Path) -> None:
    first = records_in(tmp_path)
    recipe = Recipe(epochs=5, batch_size=32)
    expected = fitted("pairs", recipe, first)
    assert list(tmp_path.iterdir()) == []  # it took no 15 seconds
    first.write()
    stops = Stops(0)

    found = fitted("pairs", recipe, records_in(tmp_path), stops)

    assert stops.told == []
    assert result(found) == result(expected)
    assert found.resumed_step == found.steps == 25


def test_a_long_epoch_is_written_in_its_middle(tmp_path: Path, at_every_step: None) -> None:
    """The process ends without a word: nothing is written at the end."""
    recipe = Recipe(epochs=2, batch_size=4, stay_near_base=1.0)
    expected = fitted("pairs", recipe, snapshots=(1,))

    class Killed(Records):
        def write(self) -> None:
            if not stops.told or stops.told[-1][0] < 29:
                super().write()

    stops = Stops(30)
    with pytest.raises(Stopped):
        fitted("pairs", recipe, Killed(tmp_path, computer={}), stops, snapshots=(1,))
    again = Stops()
    found = fitted("pairs", recipe, records_in(tmp_path), again, snapshots=(1,))

    assert again.told[0][:2] == (29, 76)  # of 38 an epoch: the state before step 29 was the last one to be written
    assert result(found) == result(expected)


def test_a_diverging_fit_diverges_again(tmp_path: Path, at_every_step: None) -> None:
    vectors = Vectors(np.full((20, DIM), np.nan, dtype=np.float32), matrix(20, 2))
    said = []
    for _ in range(2):
        with pytest.raises(TrainingDiverged) as caught:
            fit(vectors, examples_of("pairs", 20), Recipe(epochs=3, batch_size=8), records=records_in(tmp_path))
        said.append(str(caught.value))

    assert said[0] == said[1]


PAIRS = examples_of("pairs")
assert isinstance(PAIRS, PairExamples)
OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "queries": lambda: {"vectors": Vectors(matrix(150, 8), matrix(150, 2))},
    "documents": lambda: {"vectors": Vectors(matrix(150, 1), matrix(150, 8))},
    "examples": lambda: {"examples": examples_of("pairs", 149)},
    "their order": lambda: {"examples": PairExamples(PAIRS.pairs[::-1].copy(), PAIRS.negatives)},
    "negatives": lambda: {"examples": PairExamples(PAIRS.pairs, PAIRS.negatives[::-1].copy())},
    "recipe": lambda: {"recipe": Recipe(epochs=3, batch_size=32, stay_near_base=1.0, seed=1)},
    "near": lambda: {"near": NEAR[::-1].copy()},
    "snapshots": lambda: {"snapshots": [1]},
    "computer": lambda: {"computer": {"threads": 3}},
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_records_of_another_fit_are_not_looked_at(other: str, tmp_path: Path, at_every_step: None) -> None:
    given: dict[str, Any] = {
        "vectors": Vectors(matrix(150, 1), matrix(150, 2)),
        "examples": PAIRS,
        "recipe": Recipe(epochs=3, batch_size=32, stay_near_base=1.0),
        "near": NEAR,
        "snapshots": [2],
        "computer": {"threads": 2},
    }

    def run(vectors: Vectors, examples: Examples, recipe: Recipe, computer: dict[str, Any], **more: Any) -> Fit:
        return fit(vectors, examples, recipe, records=records_in(tmp_path, **computer), **more)

    run(**given)

    assert run(**{**given, **OTHERS[other]()}).resumed_step == 0
    assert run(**given).resumed_step == 15


# The whole training


def rows_of(kind: Kind) -> list[Row]:
    match kind:
        case "scored":
            cosines = np.clip(
                unit_rows(meanings(COUNT).astype(np.float32)) @ unit_rows(meanings(COUNT).astype(np.float32)).T, 0, 1
            )
            return [
                {"sentence1": f"q{n}", "sentence2": f"q{m}", "score": float(cosines[n, m])}
                for n in range(COUNT)
                for m in ((n + 12) % COUNT, (n * 7 + 1) % COUNT)
            ]
        case "groups":
            return [{"text": f"q{n}", "label": f"label {n % 12}"} for n in range(COUNT)]
        case _:
            return [{"anchor": f"q{n}", "positive": f"d{n}"} for n in range(COUNT)]


def vectors_of(some: Task | Guard, seed: int) -> Vectors:
    sides = {"q": matrix(COUNT, seed), "d": matrix(COUNT, seed + 1)}
    rows = [[sides[text[0]][int(text[1:])] for text in side] for side in (some.queries, some.documents)]
    return Vectors(*(np.asarray(side, dtype=np.float32).reshape(-1, DIM) for side in rows))


def train(kind: Kind, work: Path | None = None, on_step: Any = None, **more: Any) -> Learned:
    task = make_task(Rows(kind, rows_of(kind), {}))
    guard = make_guard("scored", [{"sentence1": f"q{n}", "sentence2": f"q{n + 80}", "score": n / 80} for n in range(80)])
    given = {"budget": 0.05, "work": work, "on_step": on_step, **more}
    return learn(task, vectors_of(task, 1), guard, vectors_of(guard, 20), **given)


def few_recipes(kind: Kind, examples: int, *, seed: int) -> list[Recipe]:
    """Of the library's list, and one with a head that does not fold."""
    found = trial_recipes(kind, examples, seed=seed)[:3]
    found.append(replace(found[0], activation="tanh"))
    return [replace(one, epochs=12, batch_size=64, learning_rate=3e-2, stay_near_base=1.0) for one in found]


@pytest.fixture(autouse=True)
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "trial_recipes", few_recipes)


def said(found: Learned) -> tuple[Any, ...]:
    """All but for how long it took."""
    plan = found.plan.to_dict()
    plan = {**plan, "seconds": 0, "trials": [{**trial, "seconds": 0} for trial in plan["trials"]]}
    head = (found.head.matrix.tobytes(), found.head.offset) if isinstance(found.head, FoldedHead) else found.head.raw(NEAR)
    return repr(plan), repr(head), found.losses, found.identity_at_start


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_stopped_anywhere_gives_the_same_plan_and_bytes_and_does_nothing_twice(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed = 0
    own = strength.evaluate_tuned

    def counting(*arguments: Any, **more: Any) -> Any:
        nonlocal weighed
        weighed += 1
        return own(*arguments, **more)

    monkeypatch.setattr(strength, "evaluate_tuned", counting)
    whole = Stops()
    expected = train(kind, on_step=whole)
    of_whole, weighed = weighed, 0
    steps = len(whole.told)
    draw = np.random.default_rng(len(kind))
    done, runs, found = 0, 0, None

    while found is None:
        runs += 1
        stops = Stops(int(draw.integers(steps // 5, steps // 2)))
        try:
            found = train(kind, tmp_path, stops)
        except Stopped:
            done -= 1  # the step that was stopped had not begun
        done += len(stops.told)

    assert runs > 2
    assert found.losses  # a head was fitted, and no formula chosen
    assert said(found) == said(expected)
    assert done == steps
    assert weighed <= of_whole
    assert found.plan.resumed_trials > 0
    assert expected.plan.resumed_trials == expected.resumed_step == 0
    assert "resumed" not in str(found.plan.to_dict())


def test_what_was_done_to_the_end_is_found_to_the_end(tmp_path: Path, at_every_step: None) -> None:
    expected = train("pairs", tmp_path)
    stops = Stops(0)

    found = train("pairs", tmp_path, stops)

    assert stops.told == []
    assert said(found) == said(expected)
    assert found.plan.resumed_trials == len(found.plan.trials)
    per_epoch = -(-len(make_task(Rows("pairs", rows_of("pairs"), {})).train) // 64)
    assert found.resumed_step == per_epoch * sum(len(losses) for losses in found.losses) > 0


def test_a_short_training_writes_nothing(tmp_path: Path) -> None:
    found = train("groups", tmp_path / "new" / "work")

    assert list((tmp_path / "new" / "work").iterdir()) == []
    assert said(found) == said(train("groups"))


def test_a_recipe_that_was_asked_for_is_resumed_too(tmp_path: Path) -> None:
    recipe = Recipe(epochs=8, batch_size=64)
    whole = Stops()
    expected = train("pairs", on_step=whole, recipe=recipe)
    last = len(whole.told) - 3  # inside the fit of everything

    with pytest.raises(Stopped):
        train("pairs", tmp_path, Stops(last), recipe=recipe)
    stops = Stops()
    found = train("pairs", tmp_path, stops, recipe=recipe)

    assert said(found) == said(expected)
    assert stops.told == whole.told[last:]
    assert found.plan.resumed_trials == 1
    assert found.resumed_step == whole.told[last][1]


def test_of_damaged_records_everything_is_done_again(tmp_path: Path, often: None) -> None:
    expected = train("pairs", tmp_path)
    assert len(list(tmp_path.glob("fit-*"))) > 5
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        content = bytearray(path.read_bytes())
        content[-1 - number % 40] ^= 1
        path.write_bytes(content if number % 3 else content[: len(content) // 2])
    (tmp_path / ".half-1234").write_bytes(b"half")

    found = train("pairs", tmp_path)

    assert found.plan.resumed_trials == found.resumed_step == 0
    assert said(found) == said(expected)


def test_the_records_of_another_training_change_nothing(tmp_path: Path, often: None) -> None:
    """What fits of another seed, another budget or other evaluations left is no part of it."""
    for more in ({"seed": 1}, {"budget": 0.001}, {"recipe": Recipe(epochs=6, batch_size=64)}):
        train("pairs", tmp_path, **more)

    assert said(train("pairs", tmp_path)) == said(train("pairs"))


def train_slowly(kind: Kind, work: str) -> None:
    """In a process of its own: it says every step."""
    search.trial_recipes = few_recipes
    write_at_every_step(setattr)
    train(kind, Path(work), lambda *told: print(*told, flush=True))  # noqa: T201 (that is how it says it)


KILLED = "import runpy, sys; runpy.run_path(sys.argv[1])['train_slowly'](*sys.argv[2:])"


@pytest.mark.parametrize(("kind", "share"), [("pairs", 0.4), ("groups", 0.98)])
def test_a_training_that_was_killed_goes_on_from_what_was_written(kind: Kind, share: float, tmp_path: Path) -> None:
    whole = Stops()
    expected = train(kind, on_step=whole)
    lines = int(share * len(whole.told))
    process = subprocess.Popen([sys.executable, "-c", KILLED, __file__, kind, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

    stops = Stops()
    found = train(kind, tmp_path, stops)

    assert said(found) == said(expected)
    assert len(stops.told) <= len(whole.told) - lines + 1  # all but the step that it was killed in
    assert found.plan.resumed_trials > 0
