"""What the skip study compares: one kind of map from different starts, and the loop that trains them all alike."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zerogate.evaluation import MeanEvaluation, RetrievalTest
from zerogate.fitting import product_dtype
from zerogate.folded import Block, FoldedHead, unit_rows
from zerogate.guard import Guard
from zerogate.head_shapes import HeadShape
from zerogate.heads import Head, make_head
from zerogate.objectives import batches, objective_for
from zerogate.recipe import Recipe
from zerogate.tasks import Task
from zerogate.vectors import Vectors

Raw = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A map of base vectors, (n, dim), to raw outputs y, (n, out_dim)."""


@dataclass(frozen=True)
class Material:
    """A retrieval task and a guard with the base vectors of their texts. test: those of the task's test alone."""

    task: Task
    vectors: Vectors
    guard: Guard
    guard_vectors: Vectors

    @property
    def test(self) -> Vectors:
        return self.task.test.of(self.vectors)

    @property
    def dim(self) -> int:
        return int(self.vectors.queries.shape[1])


class SigmoidGatedHead(Head):
    """y = x + sigmoid(w) * (W x + b) with w = -4 and the W and b of a fresh `nn.Linear`: Quaterion's SkipConnectionHead."""

    kind = "skip"

    def __init__(self, dim: int, *, skip_dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__(dim, HeadShape(bias=True), skip_dropout=skip_dropout, seed=seed)
        start = torch.Generator().manual_seed(seed)
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound, generator=start))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound, generator=start))
        self.logit = nn.Parameter(torch.full((dim,), -4.0))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.logit) * nn.functional.linear(self.drop(x), self.weight, self.bias)

    def weights(self) -> FoldedHead:
        gate, weight, bias = (one.detach().numpy().copy() for one in (torch.sigmoid(self.logit), self.weight, self.bias))
        return FoldedHead.fold([Block(gate, weight, bias)])


def zero_gate(dim: int, recipe: Recipe) -> Head:
    return _made("skip", dim, recipe)


def sigmoid_gate(dim: int, recipe: Recipe) -> Head:
    return SigmoidGatedHead(dim, skip_dropout=recipe.skip_dropout, seed=recipe.seed)


def plain_random(dim: int, recipe: Recipe) -> Head:
    return _made("linear", dim, recipe)


def plain_identity(dim: int, recipe: Recipe) -> Head:
    """Plain layers whose W all start as the identity matrix: with activation "none" y = x at the start, without any skip."""
    head = _made("linear", dim, recipe)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.eye(dim))
    return head


Start = Callable[[int, Recipe], Head]
STARTS: Final[dict[str, Start]] = {
    "zero gate": zero_gate,
    "gate sigmoid(-4)": sigmoid_gate,
    "plain, random start": plain_random,
    "plain, identity start": plain_identity,
}


def train(head: Head, material: Material, recipe: Recipe, on_step: Callable[[int], None] | None = None) -> None:
    """Train a head of any start by the recipe: `zerogate.fitting.fit` step by step, which only knows the library's own starts.

    on_step: called with the number of steps done, before every step and after the last; the head is in evaluation mode.
    """
    recipe = recipe.for_kind(material.task.kind)
    examples = material.task.train
    dtype = product_dtype(torch.device("cpu"))
    queries, documents = (torch.from_numpy(side).to(dtype) for side in (material.vectors.queries, material.vectors.documents))
    objective = objective_for(examples, queries, documents, head, recipe)
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    steps = steps_of(material, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.learning_rate, total_steps=steps + 1)
    shuffle = torch.Generator().manual_seed(recipe.seed)
    step = 0
    for _ in range(recipe.epochs):
        for rows in batches(objective.order(shuffle), recipe.batch_size):
            if on_step is not None:
                head.eval()
                on_step(step)
            head.train()
            with nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype=dtype):
                loss = objective(rows)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            step += 1
    head.eval()
    if on_step is not None:
        on_step(step)


def steps_of(material: Material, recipe: Recipe) -> int:
    """How many steps a training has."""
    return recipe.epochs * -(-len(material.task.train) // recipe.batch_size)


def raw_of(head: nn.Module) -> Raw:
    """The map of a torch module in evaluation mode."""

    def raw(base: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = head.eval()(torch.from_numpy(base)).numpy()
        return found

    return raw


def score(raw: Raw, material: Material) -> float:
    """Held-out MRR@10 of the normalised outputs."""
    return evaluate(raw, material).scores["mrr@10"]


def evaluate(raw: Raw, material: Material) -> MeanEvaluation:
    """The held-out test of the normalised outputs."""
    found = material.task.test.test.evaluate(_tuned(raw, material))
    assert isinstance(found, MeanEvaluation)
    return found


def held_out_loss(raw: Raw, material: Material, temperature: float) -> float:
    """The mean over the test queries of -log softmax(similarities / temperature) at the (first) relevant one of all documents.

    Not the training loss, whose negatives are those of one batch: this one is the same for every batch size.
    """
    test = material.task.test.test
    assert isinstance(test, RetrievalTest)
    tuned = _tuned(raw, material)
    logits = torch.from_numpy(tuned.queries[test.queries] @ tuned.documents.T) / temperature  # (queries, documents)
    return float(nn.functional.cross_entropy(logits, torch.tensor([one[0] for one in test.relevant])))


def _tuned(raw: Raw, material: Material) -> Vectors:
    base = material.test
    return Vectors(unit_rows(raw(base.queries)), unit_rows(raw(base.documents)))


def _made(kind: str, dim: int, recipe: Recipe) -> Head:
    shape = HeadShape.from_dict({"kind": kind, "blocks": recipe.blocks, "activation": recipe.activation})
    return make_head(dim, shape, skip_dropout=recipe.skip_dropout, seed=recipe.seed)
