"""What fitting is compared with: a plain PyTorch loop over the same cached vectors, and the products of a step alone."""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from zerogate.fitting import product_dtype
from zerogate.folded import Block, FoldedHead
from zerogate.recipe import Recipe
from zerogate.training import PairExamples
from zerogate.vectors import Vectors

_FLOOR_ROUNDS = 200


class _VectorPairs(Dataset[tuple[Tensor, Tensor]]):
    """Row i: the base vectors of the query and the document of pair i, (dim,) each."""

    def __init__(self, vectors: Vectors, pairs: NDArray[np.int64]) -> None:
        self._queries = torch.from_numpy(vectors.queries[pairs[:, 0]])
        self._documents = torch.from_numpy(vectors.documents[pairs[:, 1]])

    def __len__(self) -> int:
        return len(self._queries)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self._queries[row], self._documents[row]


class _ZeroGate(nn.Module):
    """y = x + g * W dropout(x), g = 0 at the start."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.linear.weight, std=dim**-0.5)
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        skip: Tensor = x + self.gate * self.linear(self.dropout(x))
        return skip


def plain_fit(vectors: Vectors, examples: PairExamples, recipe: Recipe, device: torch.device) -> tuple[FoldedHead, float]:
    """The recipe (a skip head of one block, loss contrastive) by a DataLoader, autograd and fp32; the head and the seconds."""
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    loader = DataLoader(_VectorPairs(vectors, examples.pairs), batch_size=recipe.batch_size, shuffle=True)
    head = _ZeroGate(vectors.queries.shape[1], recipe.skip_dropout).to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    steps = recipe.epochs * len(loader) + 1  # the rate of the very last one is 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.learning_rate, total_steps=steps)
    for _ in range(recipe.epochs):
        for batch in loader:
            queries, documents = (nn.functional.normalize(head(side.to(device)), dim=1) for side in batch)
            similarities = queries @ documents.T / recipe.temperature
            target = torch.arange(len(queries), device=device)
            cross_entropy = nn.functional.cross_entropy
            loss = (cross_entropy(similarities, target) + cross_entropy(similarities.T, target)) / 2
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    gate, weight = (one.detach().cpu().numpy() for one in (head.gate, head.linear.weight))
    return FoldedHead.fold([Block(gate, weight, None)]), time.perf_counter() - started


def floor_seconds(batch: int, dim: int, device: torch.device) -> tuple[float, float]:
    """What the products of a step take, one after the other in the dtype of a fit: seconds, and operations in it.

    batch: pairs; dim: numbers of a vector. Forward: the head over both sides, the similarities. Backward: the similarities'
    slope with each side, and the matrix.
    """
    draw = torch.Generator().manual_seed(0)
    dtype = product_dtype(device)
    rows, gradients = (torch.randn(2 * batch, dim, generator=draw).to(device, dtype) for _ in range(2))
    matrix = torch.randn(dim, dim, generator=draw).to(device, dtype)
    slope = torch.randn(batch, batch, generator=draw).to(device, dtype)
    one, other = rows.tensor_split(2)
    products: list[Callable[[], Tensor]] = [
        lambda: rows @ matrix.T,
        lambda: one @ other.T,
        lambda: slope @ other,
        lambda: slope.T @ one,
        lambda: gradients.T @ rows,
    ]
    operations = 2 * (2 * batch) * dim * dim * 2 + 2 * batch * batch * dim * 3
    seconds = []
    for _ in range(_FLOOR_ROUNDS):
        started = time.perf_counter()
        for product in products:
            product()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds), operations
