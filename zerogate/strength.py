"""The strength of a head: how much of it is worth having, and how much of it the forgetting budget allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zerogate.evaluation import Evaluation, MeanEvaluation
from zerogate.folded import ServedHead
from zerogate.guard import Guard
from zerogate.label_test import LabelTest
from zerogate.records import Record, Records
from zerogate.scored_test import RankEvaluation, ScoredTest
from zerogate.sides import evaluate_tuned
from zerogate.tasks import Task
from zerogate.vectors import Vectors

STRENGTHS: Final = tuple(round(0.1 * step, 1) for step in range(1, 11))


@dataclass(frozen=True)
class Point:
    """What heads (one for each fold) earn at a strength: `found` over all folds together, and what they forget on the guard."""

    strength: float
    found: Evaluation
    forgetting: float

    def to_dict(self) -> dict[str, Any]:
        return {"strength": self.strength, "score": self.found.value, "forgetting": self.forgetting}


class Scales:
    """Weighs heads: gain on the folds' validation parts against forgetting on the choosing half of the guard."""

    def __init__(
        self,
        task: Task,
        vectors: Vectors,
        guard: Guard,
        guard_vectors: Vectors,
        *,
        budget: float,
        records: Records | None = None,
    ) -> None:
        """vectors, guard_vectors: base vectors of the task's and the guard's texts. budget: the forgetting that is allowed.

        records: what was weighed is kept there, and found again.
        """
        self.budget = budget
        self._folds = [(fold.validation.test, fold.validation.of(vectors)) for fold in task.folds]
        self._guard = guard
        self._guard_vectors = guard_vectors
        self._guard_base = guard.choosing.evaluate(guard_vectors).value
        self._records = records
        self._name = "" if records is None else records.name("scales", self._folds, guard.choosing, guard_vectors)

    def base(self) -> Point:
        """The encoder itself, strength 0."""
        return Point(0.0, pooled([test.evaluate(vectors) for test, vectors in self._folds]), 0.0)

    def curve(self, heads: Sequence[ServedHead], *, query_only: bool, strengths: Sequence[float] = STRENGTHS) -> list[Point]:
        """What the heads, one for each fold, earn and forget at each strength."""
        if self._records is None:
            return [self._point(heads, strength, query_only=query_only) for strength in strengths]
        name = self._records.name("heads", self._name, heads, query_only)
        return [self._recorded(self._records, name, heads, strength, query_only=query_only) for strength in strengths]

    def best(self, curve: Sequence[Point]) -> Point:
        """The point with the best score inside the budget, else the one that forgets least; of equal ones the weaker."""
        allowed = [point for point in curve if point.forgetting <= self.budget]
        if not allowed:
            return min(curve, key=lambda point: (point.forgetting, point.strength))
        return max(allowed, key=lambda point: (point.found.value, -point.strength))

    def forgetting(self, head: ServedHead, *, query_only: bool) -> float:
        """What a head at its full strength loses on the choosing half of the guard; below 0 is a gain."""
        found = evaluate_tuned(self._guard.choosing, self._guard_vectors, head, query_only=query_only)
        return self._guard_base - found.value

    def _recorded(
        self, records: Records, of_heads: str, heads: Sequence[ServedHead], strength: float, *, query_only: bool
    ) -> Point:
        name = records.name("point", of_heads, strength)
        record = records.find(name)
        if record is not None:
            return Point(strength, _evaluation_of(record), record.facts["forgetting"])
        point = self._point(heads, strength, query_only=query_only)
        records.keep(name, _record_of(point))
        return point

    def _point(self, heads: Sequence[ServedHead], strength: float, *, query_only: bool) -> Point:
        weaker = [head.at_strength(strength) for head in heads]
        found = [
            evaluate_tuned(test, vectors, head, query_only=query_only)
            for (test, vectors), head in zip(self._folds, weaker, strict=True)
        ]
        lost = [self.forgetting(head, query_only=query_only) for head in weaker]
        return Point(strength, pooled(found), float(np.mean(lost)))


def pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The evaluations of several tests of one kind as one over all of their items."""
    if len(evaluations) == 1:
        return evaluations[0]
    means = [one for one in evaluations if isinstance(one, MeanEvaluation)]
    if means:
        return MeanEvaluation(
            means[0].primary, {name: np.concatenate([one.per_item[name] for one in means]) for name in means[0].per_item}
        )
    ranked = [one for one in evaluations if isinstance(one, RankEvaluation)]
    return RankEvaluation(np.concatenate([one.cosines for one in ranked]), np.concatenate([one.wanted for one in ranked]))


def choosing_texts(guard: Guard, vectors: Vectors) -> NDArray[np.float32]:
    """Base vectors of the query-side texts of the choosing half, (n, dim): what a training may see of a guard."""
    match guard.choosing:
        case ScoredTest(pairs=pairs):
            rows = np.unique(pairs)
        case LabelTest(texts=texts):
            rows = np.unique(texts)
        case other:
            rows = np.unique(other.queries)  # type: ignore[attr-defined]
    return vectors.queries[rows]


def _record_of(point: Point) -> Record:
    facts = {"forgetting": point.forgetting, "primary": point.found.primary}
    match point.found:
        case MeanEvaluation(per_item=per_item):
            return Record(per_item, {**facts, "names": list(per_item)})
        case RankEvaluation(cosines=cosines, wanted=wanted):
            return Record({"cosines": cosines, "wanted": wanted}, facts)
        case other:
            raise TypeError(f"an evaluation of a search is a MeanEvaluation or a RankEvaluation, found {type(other)}")


def _evaluation_of(record: Record) -> Evaluation:
    if "names" in record.facts:
        return MeanEvaluation(record.facts["primary"], {name: record.arrays[name] for name in record.facts["names"]})
    return RankEvaluation(record.arrays["cosines"], record.arrays["wanted"], record.facts["primary"])
