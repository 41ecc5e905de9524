"""From a task to a judged head: search, fit on everything, weigh against the encoder on the test and on the guard."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from zerogate.closed_form import procrustes, ridge, sources_and_targets
from zerogate.drift import Drift, drift
from zerogate.errors import ZerogateError
from zerogate.evaluation import Evaluation, OnBlock
from zerogate.fitting import fit
from zerogate.folded import FoldedHead, ServedHead
from zerogate.guard import Forgetting, Guard, forgetting
from zerogate.plan import Plan, Way
from zerogate.recipe import Recipe
from zerogate.records import Records
from zerogate.search import OnStep, Search
from zerogate.sides import evaluate_tuned, tuned_vectors
from zerogate.stacked import StackedHead
from zerogate.strength import STRENGTHS, Scales, choosing_texts
from zerogate.tasks import Task
from zerogate.training import Examples
from zerogate.trials import default_recipe
from zerogate.vectors import Vectors
from zerogate.verdict import Verdict, judge

DEFAULT_BUDGET: Final = 0.005


@dataclass(frozen=True)
class Learned:
    """A head at full strength, how it came about, and what it is worth at the plan's strength.

    losses: for every recipe that was fitted to all examples, the mean loss of each epoch. fit_seconds: of those fits.
    identity_at_start: whether every fitted head gave its input back bit for bit before its first step (None: nothing was
    fitted, or heads that do not promise it). resumed_step: how many steps of those fits an earlier run had done; what it had
    done of the search says the plan.
    """

    plan: Plan
    head: FoldedHead | StackedHead
    losses: list[list[float]]
    fit_seconds: float
    identity_at_start: bool | None
    resumed_step: int


@dataclass(frozen=True)
class Judged:
    """A version beside the encoder: on the test, on the reporting half of the guard, and without labels."""

    base: Evaluation
    tuned: Evaluation
    verdict: Verdict
    forgetting: Forgetting
    drift: Drift


def learn(
    task: Task,
    vectors: Vectors,
    guard: Guard,
    guard_vectors: Vectors,
    *,
    recipe: Recipe | None = None,
    budget: float = DEFAULT_BUDGET,
    seed: int = 0,
    max_seconds: float = float("inf"),
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    work: Path | None = None,
) -> Learned:
    """Decide how to make the head, and make it of all training examples.

    vectors, guard_vectors: base vectors of the task's and the guard's texts. recipe: None searches; with one only the strength is
    chosen. budget: the forgetting on the choosing half of the guard that is allowed. max_seconds: of the search; it only shortens
    the list of trials. on_step: called with (stage, done, total); it may raise to stop.
    work: a folder for what is done already, written every 15 seconds and where the training is stopped. A run with the same
        arguments and the same `work` goes on from there. The caller removes the folder.
    The same seed, vectors, device and number of threads give the same bytes, whether the training was stopped in between or not,
    unless `max_seconds` cut the search.
    """
    records = None if work is None else Records(work, computer=_computer(device))
    near = choosing_texts(guard, guard_vectors)
    scales = Scales(task, vectors, guard, guard_vectors, budget=budget, records=records)
    if task.folds:
        search = Search(
            task,
            vectors,
            scales,
            near=near,
            seed=seed,
            max_seconds=max_seconds,
            device=device,
            on_step=on_step,
            records=records,
        )
        plan = search.run() if recipe is None else search.weigh(recipe)
    else:
        plan = _without_search(task, recipe, seed)
    made = make(plan.way, vectors, task.train, near=near, device=device, on_step=on_step, records=records)
    if not task.folds:
        plan = _by_guard(plan, made.head, scales)
    return Learned(plan, made.head, made.losses, made.seconds, made.identity_at_start, made.resumed_step)


@dataclass(frozen=True)
class Made:
    """A head made in one way; see Learned."""

    head: FoldedHead | StackedHead
    losses: list[list[float]]
    seconds: float
    identity_at_start: bool | None
    resumed_step: int


def make(
    way: Way,
    vectors: Vectors,
    examples: Examples,
    *,
    near: NDArray[np.float32],
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    records: Records | None = None,
) -> Made:
    """Make the head at full strength. The same way, vectors, device and number of threads give the same bytes.

    records: where the fits are kept and found again.
    """
    started = time.perf_counter()
    if not way.recipes:
        return Made(_closed_form(way, vectors, examples), [], time.perf_counter() - started, None, 0)
    tell = _stage(on_step)
    fits = [
        fit(vectors, examples, recipe, near=near, device=device, on_step=tell(number, len(way.recipes)), records=records)
        for number, recipe in enumerate(way.recipes)
    ]
    heads = [one.head.weights() for one in fits]
    folded = [head for head in heads if isinstance(head, FoldedHead)]
    head = heads[0] if len(heads) == 1 else FoldedHead.mean(folded)
    promised = [one.identity_at_start for one in fits if one.head.shape.is_identity_at_start]
    return Made(
        head,
        [one.losses for one in fits],
        sum(one.seconds for one in fits),
        all(promised) if promised else None,
        sum(one.resumed_step for one in fits),
    )


def assess(
    task: Task,
    vectors: Vectors,
    guard: Guard,
    guard_vectors: Vectors,
    head: ServedHead,
    *,
    query_only: bool,
    on_step: OnStep | None = None,
) -> Judged:
    """Weigh a head, at the strength that it has, against the encoder. The reporting half of the guard took no part before.

    on_step: called with (stage, done, total); it may raise to stop.
    """
    test_vectors = task.test.of(vectors)
    base = task.test.test.evaluate(test_vectors, _blocks(on_step, "evaluate encoder"))
    tuned = evaluate_tuned(
        task.test.test, test_vectors, head, query_only=query_only, on_block=_blocks(on_step, "evaluate version")
    )
    lost = forgetting(
        guard.reporting.evaluate(guard_vectors), evaluate_tuned(guard.reporting, guard_vectors, head, query_only=query_only)
    )
    moved = drift(guard_vectors.queries, tuned_vectors(guard_vectors, head, query_only=query_only).queries)
    return Judged(base, tuned, judge(base, tuned), lost, moved)


def _closed_form(way: Way, vectors: Vectors, examples: Examples) -> FoldedHead:
    known = sources_and_targets(vectors, examples)
    if way.name == "identity":
        return FoldedHead.identity(vectors.queries.shape[1])
    if known is None:
        raise ZerogateError(f"'{way.name}' needs pairs or groups, found scored pairs")
    return procrustes(*known) if way.name == "procrustes" else ridge(*known, way.pull)


def _without_search(task: Task, recipe: Recipe | None, seed: int) -> Plan:
    """Too few examples to choose anything by: the recipe as it is."""
    chosen = recipe.for_kind(task.kind) if recipe else default_recipe(task.kind, len(task.train), seed=seed)
    way = Way("head", (chosen,), query_only=chosen.query_only)
    return Plan(way, 1.0, "", [], {}, [], planned=0, finished=0, seconds=0.0)


def _by_guard(plan: Plan, head: ServedHead, scales: Scales) -> Plan:
    """The plan with the largest strength that the budget allows; nothing else is known about it."""
    lost = {s: scales.forgetting(head.at_strength(s), query_only=plan.way.query_only) for s in STRENGTHS}
    allowed = [strength for strength, forgotten in lost.items() if forgotten <= scales.budget]
    told: list[dict[str, Any]] = [{"strength": s, "score": None, "forgetting": found} for s, found in {0.0: 0.0, **lost}.items()]
    return Plan(plan.way, max(allowed, default=STRENGTHS[0]), "", told, {}, [], planned=0, finished=0, seconds=0.0)


def _computer(device: torch.device | str) -> dict[str, Any]:
    """What of the machine decides the last bits of a head."""
    chosen = torch.device(device)
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type,
    }


def _blocks(on_step: OnStep | None, stage: str) -> OnBlock | None:
    return None if on_step is None else lambda done, total: on_step(stage, done, total)


def _stage(on_step: OnStep | None) -> Callable[[int, int], Callable[[int, int, float], None] | None]:
    def of_fit(number: int, count: int) -> Callable[[int, int, float], None] | None:
        if on_step is None:
            return None
        return lambda step, steps, _loss: on_step("fit", number * steps + step, count * steps)

    return of_fit
