"""Fit a head to examples over base vectors. The encoder takes no part: an epoch is a few small matrix products."""

import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zerogate.errors import TooFewExamples, TrainingDiverged
from zerogate.examples import Kind
from zerogate.fit_state import FitState, Keeper, OnFitStep
from zerogate.folded import ServedHead
from zerogate.group_objectives import unit
from zerogate.hard_negatives import mine_hard_negatives
from zerogate.heads import Head, make_head
from zerogate.losses.distillation import similarity_distillation
from zerogate.objectives import Objective, batches, objective_for
from zerogate.precision import best_dtype
from zerogate.recipe import MIN_EXAMPLES, Recipe
from zerogate.records import Records
from zerogate.training import Examples, GroupExamples, PairExamples, ScoredExamples, named
from zerogate.vectors import Vectors

_KINDS: dict[type, Kind] = {PairExamples: "pairs", ScoredExamples: "scored", GroupExamples: "groups"}
# Texts whose similarities to each other are compared with the encoder's in every step, with stay_near_base.
_NEAR_ROWS = 256
# A head maps every row by itself: so many of each side tell whether it starts as the identity.
_CHECKED_ROWS = 256
# A document this close to the best known one may be an answer that nobody has marked: it is no negative.
_FALSE_NEGATIVE_SHARE = 0.05


@dataclass(frozen=True)
class Fit:
    """A fitted head, the seconds it took, and the mean loss of every epoch.

    identity_at_start: whether, before the first step, the head gave vectors of both sides back bit for bit.
    snapshots: the head after the epochs that were asked for. steps: of all epochs that were to be done; resumed_step: how many
    of them records had, 0 where this run began at the beginning. seconds: of earlier runs too, as far as records had them.
    """

    head: Head
    seconds: float
    losses: list[float]
    identity_at_start: bool
    snapshots: list[ServedHead]
    steps: int
    resumed_step: int


def fit(
    vectors: Vectors,
    examples: Examples,
    recipe: Recipe,
    *,
    near: NDArray[np.float32] | None = None,
    device: torch.device | str = "cpu",
    on_step: OnFitStep | None = None,
    snapshots: Sequence[int] = (),
    records: Records | None = None,
) -> Fit:
    """Fit a head by the recipe's loss.

    vectors: base vectors of the texts that the examples' indices mean, float32 with unit rows.
    near: (r, dim) base vectors of general texts; with `stay_near_base` their similarities to each other and to the training
        texts are kept near the encoder's.
    on_step: called before every step that is done with (step, steps, mean loss of the epoch before); it may raise to stop.
    snapshots: epochs that the recipe comes to, ascending: after each of them the head is remembered.
    records: where the fit stands is kept there, and a fit with the same arguments goes on from it.
    The same seed, vectors, device and number of threads give the same bytes, whether the fit was stopped in between or not.
    Raises TooFewExamples below `MIN_EXAMPLES`, TrainingDiverged when the loss is no finite number, ZerogateError for a recipe
    that does not go with the examples.
    """
    if len(examples) < MIN_EXAMPLES:
        raise TooFewExamples("examples to train on", found=len(examples), needed=MIN_EXAMPLES)
    recipe = recipe.for_kind(_KINDS[type(examples)])
    started = time.perf_counter()
    examples = _with_hard_negatives(vectors, examples, recipe)
    queries, documents = (_tensor(side, device) for side in (vectors.queries, vectors.documents))
    head = make_head(queries.shape[1], recipe.shape, skip_dropout=recipe.skip_dropout, seed=recipe.seed).to(device).eval()
    with torch.inference_mode():
        identity_at_start = all(_gives_back(head, side[:: 1 + len(side) // _CHECKED_ROWS]) for side in (queries, documents))
    # Rounded once, for products that would round them in every step.
    dtype = product_dtype(queries.device)
    objective = objective_for(examples, queries.to(dtype), documents.to(dtype), head, recipe)
    trained: list[NDArray[np.float32]] = []
    if recipe.stay_near_base or records is not None:
        # Only what is trained on: the vectors of held-out texts may be there as well.
        trained = [side[rows] for side, rows in zip((vectors.queries, vectors.documents), named(examples), strict=True)]
    general = [] if near is None else [near]
    distil = _Distillation(head, [_tensor(side, device) for side in (*trained, *general)], recipe)
    if not any(True for _ in head.parameters()):
        found = head.cpu()
        return Fit(found, time.perf_counter() - started, [], identity_at_start, [found.served() for _ in snapshots], 0, 0)
    draws = {"masks": head.drop.masks(queries.device), "near": distil.draw}
    state = FitState(head, objective, recipe, len(examples), draws)
    name = "" if records is None else _name(records, recipe, examples, trained, near, snapshots)
    keeper = Keeper(records, name, state, started)
    keeper.load()
    resumed = state.step
    _train(head, objective, distil, recipe, state, keeper, snapshots=snapshots, on_step=on_step)
    head.eval().cpu()
    remembered = _served(head, [state.snapshots[epoch] for epoch in snapshots])
    return Fit(head, keeper.seconds, state.losses, identity_at_start, remembered, state.step, resumed)


def _name(
    records: Records,
    recipe: Recipe,
    examples: Examples,
    trained: Sequence[NDArray[np.float32]],
    near: NDArray[np.float32] | None,
    snapshots: Sequence[int],
) -> str:
    """Of the record of this fit. examples: with the negatives that were mined; trained: the vectors that they name."""
    return records.name("fit", recipe.to_dict(), examples, trained, near, list(snapshots))


def _served(head: Head, snapshots: Sequence[Sequence[Tensor]]) -> list[ServedHead]:
    """The head with the parameters of each of the snapshots; it keeps its own."""
    own = [one.detach().clone() for one in head.parameters()]
    found: list[ServedHead] = []
    for snapshot in snapshots:
        _set(head, snapshot)
        found.append(head.served())
    _set(head, own)
    return found


def _set(head: Head, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for one, value in zip(head.parameters(), values, strict=True):
            one.copy_(value)


def _train(
    head: Head,
    objective: Objective,
    distil: "_Distillation",
    recipe: Recipe,
    state: FitState,
    keeper: Keeper,
    *,
    snapshots: Collection[int],
    on_step: OnFitStep | None,
) -> None:
    """Do the epochs that are left, from the step where the state stands."""
    head.train()
    while not state.is_done:
        order = state.order().to(state.device)
        for rows in islice(batches(order, recipe.batch_size), state.step % state.per_epoch, None):
            keeper.before_step(on_step)
            state.set_rate()
            # A context a step: it remembers the weights that it has rounded, and the optimizer changes them.
            with _mixed_precision(state.device):
                loss = objective(rows) + distil()
            state.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            state.optimizer.step()
            state.total += loss.detach()
            state.step += 1
        last = state.end_epoch()
        if not (np.isfinite(last) and state.is_finite):
            raise TrainingDiverged(state.step, last)
        if len(state.losses) in snapshots:
            state.take_snapshot()
    keeper.keep()


class _Distillation:
    """The stay-near-base term: similarities of random training and general texts shall stay the encoder's."""

    def __init__(self, head: Head, sides: list[Tensor], recipe: Recipe) -> None:
        self._head = head
        self._weight = recipe.stay_near_base
        if self._weight:
            self._base = torch.cat(sides)
            # Half of every sample comes from the last side, the general texts where there are any, however many there are.
            self._general = len(sides[-1])
        self.draw = torch.Generator().manual_seed(recipe.seed + 2)

    def __call__(self) -> Tensor | float:
        if not self._weight:
            return 0.0
        count, half = len(self._base), _NEAR_ROWS // 2
        anywhere = torch.randint(count, (half,), generator=self.draw)
        general = torch.randint(count - self._general, count, (half,), generator=self.draw) if self._general else anywhere
        rows = torch.cat((anywhere, general)).to(self._base.device)
        teacher = self._base[rows]  # (r, dim)
        student = unit(self._head(teacher.to(product_dtype(teacher.device))))  # (r, out_dim)
        return self._weight * similarity_distillation(student, teacher)


def _with_hard_negatives(vectors: Vectors, examples: Examples, recipe: Recipe) -> Examples:
    """The examples with mined negatives beside the given ones, where the recipe wants some."""
    if not recipe.hard_negatives or not isinstance(examples, PairExamples):
        return examples
    queries, place = np.unique(examples.pairs[:, 0], return_inverse=True)
    relevant: list[list[int]] = [[] for _ in queries]
    for row, document in zip(place.tolist(), examples.pairs[:, 1].tolist(), strict=True):
        relevant[row].append(document)
    mined = mine_hard_negatives(
        vectors.queries[queries],
        vectors.documents,
        relevant,
        per_query=recipe.hard_negatives,
        margin=0.0,
        relative_margin=_FALSE_NEGATIVE_SHARE,
    )
    return PairExamples(examples.pairs, np.concatenate((examples.negatives, mined[place]), axis=1))


def _gives_back(head: Head, base: Tensor) -> bool:
    if head.shape.merge == "concat":  # the appended part must be nothing
        y = head(base)
        return torch.equal(y[:, : base.shape[1]], base) and not bool(y[:, base.shape[1] :].any())
    return torch.equal(head(base), base)


def _tensor(side: NDArray[np.float32], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.require(side, requirements=["C", "W"])).to(device)


def product_dtype(device: torch.device) -> torch.dtype:
    """Of the products of a fit: bf16 where the hardware multiplies it natively; weights, sums over steps and losses stay fp32."""
    return torch.bfloat16 if best_dtype(device) == "bfloat16" else torch.float32


def _mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    dtype = product_dtype(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
