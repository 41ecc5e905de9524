"""Fit a head to pairs of base vectors. The encoder takes no part: an epoch is a few small matrix products."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zerogate.errors import TooFewExamples, TrainingDiverged
from zerogate.heads import SkipHead
from zerogate.losses.contrastive import contrastive, same_pairs
from zerogate.recipe import MIN_PAIRS, Recipe


@dataclass(frozen=True)
class Fit:
    """A fitted head, the seconds it took, and the mean loss of every epoch.

    identity_at_start: whether, before the first step, the head gave all anchors and positives back bit for bit.
    """

    head: SkipHead
    seconds: float
    losses: list[float]
    identity_at_start: bool


def fit(
    anchors: NDArray[np.float32],
    positives: NDArray[np.float32],
    pairs: NDArray[np.int64],
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int, float], None] | None = None,
) -> Fit:
    """Fit a skip head so that the two sides of every pair come closer than any other two of its batch.

    anchors: (n, dim), positives: (m, dim); base vectors of distinct texts, float32 with unit rows.
    pairs: (k, 2); each row the index of an anchor and of its positive.
    on_step: called before every step with (step, steps, loss of the step before); it may raise to stop.
    The same seed, vectors and number of threads give the same bytes.
    Raises TooFewExamples below `MIN_PAIRS` pairs, TrainingDiverged when the loss is no finite number.
    """
    if len(pairs) < MIN_PAIRS:
        raise TooFewExamples("pairs to train on", found=len(pairs), needed=MIN_PAIRS)
    started = time.perf_counter()
    A, P = (torch.from_numpy(np.require(side, requirements=["C", "W"])).to(device) for side in (anchors, positives))
    index = torch.from_numpy(np.require(pairs, requirements=["C", "W"])).to(device)  # (k, 2)
    head = (
        SkipHead(A.shape[1], blocks=recipe.blocks, bias=recipe.bias, dropout=recipe.dropout, seed=recipe.seed).to(device).eval()
    )
    with torch.inference_mode():
        identity_at_start = torch.equal(head(A), A) and torch.equal(head(P), P)
    head.train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    batches = -(-len(pairs) // recipe.batch_size)
    steps = recipe.epochs * batches
    # One step more than there are: the very last rate is 0, and a step of it would be lost.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.learning_rate, total_steps=steps + 1)
    shuffle = torch.Generator().manual_seed(recipe.seed)
    losses: list[float] = []
    last = float("nan")
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(pairs), generator=shuffle).to(device)
        total = 0.0
        # Batches of equal size: a short last one would have easier negatives than the others.
        for number, rows in enumerate(torch.tensor_split(order, batches)):
            step = epoch * batches + number
            if on_step is not None:
                on_step(step, steps, last)
            batch = index[rows]  # (b, 2)
            a = torch.nn.functional.normalize(head(A[batch[:, 0]]), dim=1)  # (b, dim)
            p = torch.nn.functional.normalize(head(P[batch[:, 1]]), dim=1)  # (b, dim)
            same = same_pairs(batch[:, 0], batch[:, 1])  # (b, b)
            loss = contrastive(a, p, temperature=recipe.temperature, same=same)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            last = loss.item()
            if not np.isfinite(last):
                raise TrainingDiverged(step, last)
            total += last
        losses.append(total / batches)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in head.parameters()):
        raise TrainingDiverged(steps, float("nan"))
    return Fit(head.eval().cpu(), time.perf_counter() - started, losses, identity_at_start)
