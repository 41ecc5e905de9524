"""`recipe: "auto"`: try recipes on folds of the training data, and keep the simplest way that earns most within the budget.

Successive halving (Jamieson and Talwalkar 2016): all recipes get a few of their epochs, the better ones more, the best all. The
heads of the best few are averaged, the strength is chosen on the curve of score and forgetting, and what comes out has to beat
the baselines: the encoder itself, a rotation, ridge regression, and a plain linear layer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from zerogate.closed_form import RIDGE_PULLS, procrustes, ridge, sources_and_targets
from zerogate.errors import TrainingDiverged
from zerogate.fitting import Fit, fit
from zerogate.folded import FoldedHead, ServedHead
from zerogate.plan import Plan, Trial, Way
from zerogate.recipe import Recipe
from zerogate.records import Records
from zerogate.strength import STRENGTHS, Point, Scales
from zerogate.tasks import Task
from zerogate.trials import trial_recipes
from zerogate.vectors import Vectors

OnStep = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps); may raise to stop."""

# The first rung has about the epochs of so many whole fits, however many recipes there are; but a recipe gets at least so many
# steps of the optimizer, and at most this share of its epochs.
_FIRST_FITS: Final = 1.5
_FEWEST_STEPS: Final = 15
_FIRST_SHARE: Final = 0.25
_MIDDLE_POWER: Final = 0.6  # of the first share: who learns fast is told by then from who learns well
_KEPT_SHARE: Final = 0.2  # of the recipes goes on to more epochs
_FEWEST_KEPT: Final = 3
_AVERAGED: Final = 3
_CHECKPOINTS: Final = (0.5, 0.75, 1.0)  # of the epochs: where a fit may have been at its best
_TRIAL_STRENGTHS: Final = (0.3, 0.5, 0.75, 1.0)
_CAUTIOUS: Final = 0.5  # where a head at its full strength forgets more than the budget
_IDENTITY_ERRORS: Final = 2.5
_SIMPLER_ERRORS: Final = 1.0


@dataclass(frozen=True)
class _Candidate:
    """A way to make a head, the heads that it made of the folds, and their best point on the curve."""

    way: Way
    heads: list[ServedHead]
    curve: list[Point]
    point: Point


class Search:
    """One search. Everything random follows from the seed; a time limit only shortens the list of trials."""

    def __init__(
        self,
        task: Task,
        vectors: Vectors,
        scales: Scales,
        *,
        near: NDArray[np.float32],
        seed: int = 0,
        max_seconds: float = float("inf"),
        device: torch.device | str = "cpu",
        on_step: OnStep | None = None,
        records: Records | None = None,
    ) -> None:
        """near: base vectors of general texts for the stay-near-base term. records: where fits are kept and found again."""
        self._task, self._vectors, self._scales, self._near = task, vectors, scales, near
        self._seed, self._max_seconds, self._device, self._on_step = seed, max_seconds, device, on_step
        self._records = records
        self._trials: list[Trial] = []
        self._resumed = 0
        self._expected = 1

    def run(self, recipes: Sequence[Recipe] = ()) -> Plan:
        """Try the recipes, weigh the best of them against the baselines, and decide. The task must have folds.

        recipes: ready for the task's kind; without any, those that the task's kind and size ask for.
        """
        started = time.perf_counter()
        recipes = recipes or trial_recipes(self._task.kind, len(self._task.train), seed=self._seed)
        tried = self._halve(recipes, started)
        candidates = [_Candidate(Way("identity"), self._identities(), [], self._scales.base()), *self._closed_forms()]
        if tried:
            # The plain layer comes last: it is no simpler than a head, and usually forgets more for the same score.
            candidates += [*self._averages(tried), *self._plain_linear(tried[0].way.recipes[0])]
        best = self._simplest(candidates)
        return self._plan(best, candidates, planned=len(recipes), started=started)

    def weigh(self, recipe: Recipe) -> Plan:
        """Only choose the strength for a recipe that somebody asked for."""
        started = time.perf_counter()
        found = self._try(0, recipe.for_kind(self._task.kind), 1.0)
        if found is None:
            raise TrainingDiverged(0, float("nan"))
        whole = self._candidate(found.way, found.heads)
        return self._plan(whole, [whole], planned=1, started=started)

    def _plan(self, best: _Candidate, candidates: Sequence[_Candidate], *, planned: int, started: float) -> Plan:
        return Plan(
            way=best.way,
            strength=best.point.strength,
            metric=best.point.found.primary,
            curve=[self._scales.base().to_dict(), *(point.to_dict() for point in best.curve)],
            candidates={one.way.name: one.point.to_dict() for one in candidates},
            trials=self._trials,
            planned=planned,
            finished=len({trial.number for trial in self._trials}),
            seconds=time.perf_counter() - started,
            resumed_trials=self._resumed,
        )

    def _halve(self, recipes: Sequence[Recipe], started: float) -> list[_Candidate]:
        """The candidates that got all of their epochs, the best first; none where every loss diverged."""
        rungs = rungs_of(len(recipes), self._steps(recipes[0]))
        self._expected = sum(count for _, count in rungs)
        going_on = list(enumerate(recipes))
        for place, (share, _) in enumerate(rungs[:-1]):
            tried = self._rung(going_on, share, started)
            kept = rungs[place + 1][1]
            going_on = [(number, recipes[number]) for number, _ in tried[:kept]] or [(0, recipes[0])]
        return [candidate for _, candidate in self._rung(going_on, 1.0, started)]

    def _steps(self, recipe: Recipe) -> int:
        """Of the optimizer, in a whole fit to a fold."""
        return recipe.epochs * -(-len(self._task.folds[0].part) // recipe.batch_size)

    def _rung(self, recipes: Sequence[tuple[int, Recipe]], share: float, started: float) -> list[tuple[int, _Candidate]]:
        found: list[tuple[int, _Candidate]] = []
        for number, recipe in recipes:
            if found and time.perf_counter() - started > self._max_seconds:
                break
            candidate = self._try(number, recipe, share)
            if candidate is not None:
                found.append((number, candidate))
        return sorted(found, key=lambda one: -self._worth(one[1].point))

    def _worth(self, point: Point) -> float:
        """The score inside the budget; what breaks it comes after all that keeps it."""
        return point.found.value if point.forgetting <= self._scales.budget else -1.0 - point.forgetting

    def _try(self, number: int, recipe: Recipe, share: float) -> _Candidate | None:
        """Fit a recipe to every fold, and weigh it at its best checkpoint; None where it diverged.

        A recipe that says where to stop is stopped there and nowhere else.
        """
        started = time.perf_counter()
        shortened = replace(recipe, epochs=max(1, round(share * recipe.epochs))) if share < 1.0 else recipe
        parts = _CHECKPOINTS if share == 1.0 else (1.0,)
        checkpoints = sorted({max(1, round(part * shortened.epochs)) for part in parts})
        if shortened.stop_after:
            checkpoints = [shortened.stop_after]
        try:
            fits = [self._fit(fold_number, shortened, checkpoints) for fold_number in range(len(self._task.folds))]
        except TrainingDiverged:
            self._trials.append(Trial(number, share, recipe, None, None, None, time.perf_counter() - started))
            return None
        self._resumed += all(one.resumed_step == one.steps > 0 for one in fits)
        found: list[_Candidate] = []
        for place, epoch in enumerate(checkpoints):
            heads = [one.snapshots[place] for one in fits]
            way = Way("head", (replace(shortened, stop_after=epoch % shortened.epochs),), query_only=recipe.query_only)
            found.append(self._glanced_at(way, heads))
        best = max(found, key=lambda one: self._worth(one.point))
        if share == 1.0:
            best = self._candidate(best.way, best.heads, _TRIAL_STRENGTHS)
        point = best.point.to_dict()
        self._trials.append(Trial(number, share, best.way.recipes[0], **point, seconds=time.perf_counter() - started))
        return best

    def _fit(self, fold: int, recipe: Recipe, checkpoints: Sequence[int]) -> Fit:
        """The recipe on a fold, with a snapshot of the head after each of the checkpoints, in epochs."""
        return fit(
            self._vectors,
            self._task.folds[fold].part,
            recipe,
            near=self._near,
            device=self._device,
            on_step=self._tell,
            snapshots=checkpoints,
            records=self._records,
        )

    def _tell(self, _step: int, _steps: int, _loss: float) -> None:
        if self._on_step is not None:
            self._on_step("search", len(self._trials), self._expected)

    def _candidate(self, way: Way, heads: list[ServedHead], strengths: Sequence[float] = STRENGTHS) -> _Candidate:
        curve = self._scales.curve(heads, query_only=way.query_only, strengths=strengths)
        return _Candidate(way, heads, curve, self._scales.best(curve))

    def _glanced_at(self, way: Way, heads: list[ServedHead]) -> _Candidate:
        """Weighed just well enough to drop a recipe or a checkpoint by: weighing costs as much as a short fit."""
        found = self._candidate(way, heads, (1.0,))
        return found if found.point.forgetting <= self._scales.budget else self._candidate(way, heads, (_CAUTIOUS,))

    def _identities(self) -> list[ServedHead]:
        return [FoldedHead.identity(self._vectors.queries.shape[1]) for _ in self._task.folds]

    def _closed_forms(self) -> Iterator[_Candidate]:
        """Procrustes, and ridge with the best of its pulls."""
        known = [sources_and_targets(self._vectors, fold.part) for fold in self._task.folds]
        given = [one for one in known if one is not None]
        if not given:
            return
        query_only = self._task.kind != "groups"
        yield self._candidate(Way("procrustes", query_only=query_only), [procrustes(*one) for one in given])
        ridges = [
            self._candidate(Way("ridge", pull=pull, query_only=query_only), [ridge(*one, pull) for one in given])
            for pull in RIDGE_PULLS
        ]
        yield max(ridges, key=lambda one: self._worth(one.point))

    def _plain_linear(self, winner: Recipe) -> Iterator[_Candidate]:
        """A plain layer y = W x, fitted with the winning numbers: is the skip worth having?"""
        if winner.shape.kind != "skip":
            return
        recipe = replace(winner, head="linear", blocks=1, merge="add", norm="none", activation="none", stop_after=0)
        try:
            heads = [self._fit(fold, recipe, [recipe.epochs]).snapshots[0] for fold in range(len(self._task.folds))]
        except TrainingDiverged:
            return
        yield self._candidate(Way("linear", (recipe,), query_only=recipe.query_only), heads)

    def _averages(self, tried: Sequence[_Candidate]) -> Iterator[_Candidate]:
        """The best head, and the mean of the best few."""
        yield self._candidate(tried[0].way, tried[0].heads)
        few = [one for one in tried if one.way.recipes[0].shape.can_average][:_AVERAGED]
        if len(few) > 1:
            recipes = tuple(one.way.recipes[0] for one in few)
            heads: list[ServedHead] = [
                FoldedHead.mean([head for head in of_fold if isinstance(head, FoldedHead)])
                for of_fold in zip(*(one.heads for one in few), strict=True)
            ]
            yield self._candidate(Way("mean", recipes, query_only=recipes[0].query_only), heads)

    def _simplest(self, candidates: Sequence[_Candidate]) -> _Candidate:
        """The first (simplest) candidate that is as good as the best one, as far as the validation parts can tell.

        As good: within one standard error of the paired difference (Breiman et al. 1984); the encoder itself within 2.5, because
        a version that is not worth having costs more than a version that is not made.
        """
        allowed = [one for one in candidates if one.point.forgetting <= self._scales.budget]  # the identity always is
        best = max(allowed, key=lambda one: one.point.found.value)
        for one in allowed:
            if one is best:
                break
            gain = one.point.found.compare(best.point.found)
            errors = _IDENTITY_ERRORS if one.way.name == "identity" else _SIMPLER_ERRORS
            if gain.difference <= errors * gain.standard_error:
                return one
        return best


def rungs_of(recipes: int, steps: int) -> list[tuple[float, int]]:
    """The rungs of a search over so many recipes: (share of their epochs, how many recipes get it), the last share being 1.

    steps: of a whole fit. There are three rungs at most; one that would drop no recipe is left out.
    """
    first = min(_FIRST_SHARE, max(_FIRST_FITS / recipes, _FEWEST_STEPS / steps))
    found: list[tuple[float, int]] = []
    for share in (first, first**_MIDDLE_POWER):
        kept = max(_FEWEST_KEPT, round(_KEPT_SHARE * recipes))
        if kept < recipes:
            found.append((share, recipes))
            recipes = kept
    return [*found, (1.0, recipes)]
