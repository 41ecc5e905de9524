"""Fit a head to examples over base vectors. The encoder takes no part: an epoch is a few small matrix products."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zerogate.errors import TooFewExamples, TrainingDiverged
from zerogate.examples import Kind
from zerogate.hard_negatives import mine_hard_negatives
from zerogate.heads import Head, make_head
from zerogate.losses.distillation import similarity_distillation
from zerogate.objectives import Objective, batches, objective_for
from zerogate.precision import best_dtype
from zerogate.recipe import MIN_EXAMPLES, Recipe
from zerogate.training import Examples, GroupExamples, PairExamples, ScoredExamples, named
from zerogate.vectors import Vectors

_KINDS: dict[type, Kind] = {PairExamples: "pairs", ScoredExamples: "scored", GroupExamples: "groups"}
# Texts whose similarities to each other are compared with the encoder's in every step, with stay_near_base.
_NEAR_ROWS = 256
# A document this close to the best known one may be an answer that nobody has marked: it is no negative.
_FALSE_NEGATIVE_SHARE = 0.05


@dataclass(frozen=True)
class Fit:
    """A fitted head, the seconds it took, and the mean loss of every epoch.

    identity_at_start: whether, before the first step, the head gave all vectors back bit for bit.
    """

    head: Head
    seconds: float
    losses: list[float]
    identity_at_start: bool


def fit(
    vectors: Vectors,
    examples: Examples,
    recipe: Recipe,
    *,
    near: NDArray[np.float32] | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[int, Head], bool] | None = None,
) -> Fit:
    """Fit a head by the recipe's loss.

    vectors: base vectors of the texts that the examples' indices mean, float32 with unit rows.
    near: (r, dim) base vectors of general texts; with `stay_near_base` their similarities to each other and to the training
        texts are kept near the encoder's.
    on_step: called before every step with (step, steps, mean loss of the epoch before); it may raise to stop.
    on_epoch: called after every epoch with (epochs done, the head in evaluation mode); true ends the training.
    The same seed, vectors, device and number of threads give the same bytes.
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
        identity_at_start = all(_gives_back(head, side) for side in (queries, documents))
    objective = objective_for(examples, queries, documents, head, recipe)
    # Only what is trained on: the vectors of held-out texts may be there as well.
    trained = [side[torch.from_numpy(rows).to(device)] for side, rows in zip((queries, documents), named(examples), strict=True)]
    distil = _Distillation(head, [*trained, *([] if near is None else [_tensor(near, device)])], recipe)
    losses: list[float] = []
    if any(True for _ in head.parameters()):
        losses.extend(_epochs(head, objective, distil, len(examples), recipe, on_step, on_epoch))
    return Fit(head.eval().cpu(), time.perf_counter() - started, losses, identity_at_start)


def _epochs(
    head: Head,
    objective: Objective,
    distil: "_Distillation",
    count: int,
    recipe: Recipe,
    on_step: Callable[[int, int, float], None] | None,
    on_epoch: Callable[[int, Head], bool] | None,
) -> Iterator[float]:
    """Train, and give the mean loss of every epoch."""
    parameters = [*head.parameters(), *objective.parameters]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    per_epoch = max(1, -(-count // recipe.batch_size))
    steps = recipe.epochs * per_epoch
    # One step more than there are: the very last rate is 0, and a step of it would be lost.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.learning_rate, total_steps=steps + 1)
    shuffle = torch.Generator().manual_seed(recipe.seed)
    step, last = 0, float("nan")
    for epoch in range(1, (recipe.stop_after or recipe.epochs) + 1):
        head.train()
        total = torch.zeros((), device=device)
        for rows in batches(objective.order(shuffle).to(device), recipe.batch_size):
            if on_step is not None:
                on_step(step, steps, last)
            # A context a step: it remembers the weights that it has rounded, and the optimizer changes them.
            with _mixed_precision(device):
                loss = objective(rows) + distil()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.detach()  # read once an epoch: reading waits for a GPU
            step += 1
        last = float(total) / per_epoch
        if not (np.isfinite(last) and all(bool(torch.isfinite(one).all()) for one in parameters)):
            raise TrainingDiverged(step, last)
        yield last
        if on_epoch is not None and on_epoch(epoch, head.eval()):
            return


class _Distillation:
    """The stay-near-base term: similarities of random training and general texts shall stay the encoder's."""

    def __init__(self, head: Head, sides: list[Tensor], recipe: Recipe) -> None:
        self._head = head
        self._weight = recipe.stay_near_base
        self._base = torch.cat(sides) if self._weight else sides[0]
        # Half of every sample comes from the last side, the general texts where there are any, however many texts there are.
        self._general = len(sides[-1])
        self._draw = torch.Generator().manual_seed(recipe.seed + 2)

    def __call__(self) -> Tensor | float:
        if not self._weight:
            return 0.0
        count, half = len(self._base), _NEAR_ROWS // 2
        anywhere = torch.randint(count, (half,), generator=self._draw)
        general = torch.randint(count - self._general, count, (half,), generator=self._draw) if self._general else anywhere
        rows = torch.cat((anywhere, general)).to(self._base.device)
        teacher = self._base[rows]  # (r, dim)
        student = torch.nn.functional.normalize(self._head(teacher), dim=1)  # (r, out_dim)
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


def _mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Products in bf16 where the hardware multiplies it natively; weights, sums over steps and losses stay fp32."""
    if best_dtype(device) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
