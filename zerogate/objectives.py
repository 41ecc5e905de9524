"""What a head is fitted by: for every kind of examples, the loss of a batch."""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.heads import Head
from zerogate.losses.contrastive import contrastive, multi_positive_contrastive, online_contrastive, same_pairs
from zerogate.losses.groups import circle, supervised_contrastive
from zerogate.losses.margin_softmax import MarginSoftmax
from zerogate.losses.scored import cosent, cosine_regression
from zerogate.losses.triplet import batch_hard, semi_hard_triplets, triplet
from zerogate.recipe import Recipe
from zerogate.training import Examples, GroupExamples, PairExamples, ScoredExamples

# Examples of one group that stay together in a batch: enough for positives, few enough for other groups beside them.
_TOGETHER = 8


class Objective(Protocol):
    """The loss of a batch, a scalar, and the order of an epoch."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weights of the loss itself, fitted beside the head and thrown away."""

    def order(self, draw: torch.Generator) -> Tensor:
        """The examples of one epoch in a random order, (k,) int64."""

    def __call__(self, rows: Tensor) -> Tensor:
        """The loss of the examples `rows`, (b,) int64."""


def objective_for(examples: Examples, queries: Tensor, documents: Tensor, head: Head, recipe: Recipe) -> Objective:
    """The objective that the (filled in) recipe names.

    queries: (n, dim), documents: (m, dim); base vectors on the head's device.
    """
    side = _Side(head)
    match examples:
        case PairExamples():
            if recipe.loss == "triplet" and not examples.negatives.shape[1]:
                raise ZerogateError(
                    "recipe.loss 'triplet' needs negatives: upload a dataset of kind triplets, or set recipe.hard_negatives"
                )
            return _Pairs(examples, queries, documents, side, recipe)
        case ScoredExamples():
            return _Scored(examples, queries, side, recipe)
        case GroupExamples():
            return _Groups(examples, queries, side, recipe)


class _Side:
    """The head's unit rows of base vectors of any leading shape (..., dim)."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def __call__(self, base: Tensor) -> Tensor:
        return nn.functional.normalize(self._head(base), dim=-1)


class _Pairs:
    parameters: list[nn.Parameter] = []  # noqa: RUF012 (never changed)

    def __init__(self, examples: PairExamples, queries: Tensor, documents: Tensor, side: _Side, recipe: Recipe) -> None:
        device = queries.device
        self._pairs = torch.from_numpy(examples.pairs).to(device)  # (k, 2)
        self._negatives = torch.from_numpy(examples.negatives).to(device)  # (k, h)
        self._queries, self._documents = queries, documents
        self._query_side = side
        self._document_side: Callable[[Tensor], Tensor] = (lambda base: base) if recipe.query_only else side
        self._recipe = recipe
        self._loss = {
            "contrastive": self._contrastive,
            "multi_positive": self._multi_positive,
            "triplet": self._triplet,
            "online_contrastive": self._online_contrastive,
        }[recipe.loss]

    def order(self, draw: torch.Generator) -> Tensor:
        if self._recipe.loss == "multi_positive":  # the positives of one query should meet in a batch
            return grouped_order(self._pairs[:, 0].cpu(), draw)
        return torch.randperm(len(self._pairs), generator=draw)

    def __call__(self, rows: Tensor) -> Tensor:
        pairs = self._pairs[rows]  # (b, 2)
        anchors = self._query_side(self._queries[pairs[:, 0]])  # (b, dim)
        positives = self._document_side(self._documents[pairs[:, 1]])  # (b, dim)
        return self._loss(rows, pairs, anchors, positives)

    def _given(self, rows: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The given negatives, (b, h, dim), and which of them there are, (b, h)."""
        if not self._negatives.shape[1]:
            return None, None
        negatives = self._negatives[rows]
        return self._document_side(self._documents[negatives.clamp(min=0)]), negatives >= 0

    def _contrastive(self, rows: Tensor, pairs: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        negatives, present = self._given(rows)
        same = same_pairs(pairs[:, 0], pairs[:, 1])
        return contrastive(
            anchors, positives, temperature=self._recipe.temperature, same=same, negatives=negatives, present=present
        )

    def _multi_positive(self, _rows: Tensor, pairs: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        belongs = pairs[:, 0][:, None] == pairs[:, 0][None, :]  # (b, b)
        copy = same_pairs(pairs[:, 1], pairs[:, 1]) & ~belongs  # another query's positive, but the same text
        return multi_positive_contrastive(anchors, positives, belongs, temperature=self._recipe.temperature, ignored=copy)

    def _triplet(self, rows: Tensor, _pairs: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        negatives, present = self._given(rows)
        assert negatives is not None
        return triplet(anchors, positives, negatives, margin=self._recipe.margin, present=present)

    def _online_contrastive(self, rows: Tensor, pairs: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        negatives, present = self._given(rows)
        if negatives is None or present is None:  # the next row's positive, unless it is one's own as well
            negatives = positives.roll(1, dims=0)[:, None, :]  # (b, 1, dim)
            moved = pairs.roll(1, dims=0)
            present = ((moved != pairs).all(dim=1))[:, None]  # (b, 1)
        row, column = present.nonzero(as_tuple=True)
        first = torch.cat((anchors, anchors[row]))
        second = torch.cat((positives, negatives[row, column]))
        similar = torch.arange(len(first), device=first.device) < len(anchors)
        return online_contrastive(first, second, similar, margin=self._recipe.margin)


class _Scored:
    parameters: list[nn.Parameter] = []  # noqa: RUF012 (never changed)

    def __init__(self, examples: ScoredExamples, queries: Tensor, side: _Side, recipe: Recipe) -> None:
        self._pairs = torch.from_numpy(examples.pairs).to(queries.device)  # (k, 2)
        self._scores = torch.from_numpy(examples.scores).to(queries.device)  # (k,)
        self._queries, self._side, self._recipe = queries, side, recipe

    def order(self, draw: torch.Generator) -> Tensor:
        return torch.randperm(len(self._pairs), generator=draw)

    def __call__(self, rows: Tensor) -> Tensor:
        first, second = (self._side(self._queries[self._pairs[rows, column]]) for column in (0, 1))  # (b, dim)
        if self._recipe.loss == "cosine":
            return cosine_regression(first, second, self._scores[rows])
        return cosent(first, second, self._scores[rows], scale=1 / self._recipe.temperature)


class _Groups:
    def __init__(self, examples: GroupExamples, queries: Tensor, side: _Side, recipe: Recipe) -> None:
        self._texts = torch.from_numpy(examples.texts).to(queries.device)  # (k,)
        self._labels = torch.from_numpy(examples.labels).to(queries.device)  # (k,)
        self._queries, self._side = queries, side
        temperature, margin = recipe.temperature, recipe.margin
        self.parameters: list[nn.Parameter] = []
        self._loss: Callable[[Tensor, Tensor], Tensor]
        match recipe.loss:
            case "arcface" | "cosface":
                classes, dim = int(examples.labels.max()) + 1, side(queries[:1]).shape[1]
                softmax = MarginSoftmax(
                    dim, classes=classes, kind=recipe.loss, margin=margin, scale=1 / temperature, seed=recipe.seed
                ).to(queries.device)
                self.parameters = list(softmax.parameters())
                self._loss = softmax
            case "circle":
                self._loss = lambda rows, labels: circle(rows, labels, margin=margin, scale=1 / temperature)
            case "semi_hard_triplet":
                self._loss = lambda rows, labels: semi_hard_triplets(rows, labels, margin=margin)
            case "batch_hard_triplet":
                self._loss = lambda rows, labels: batch_hard(rows, labels, margin=margin)
            case _:
                self._loss = lambda rows, labels: supervised_contrastive(rows, labels, temperature=temperature)

    def order(self, draw: torch.Generator) -> Tensor:
        return grouped_order(self._labels.cpu(), draw)

    def __call__(self, rows: Tensor) -> Tensor:
        return self._loss(self._side(self._queries[self._texts[rows]]), self._labels[rows])


def grouped_order(labels: Tensor, draw: torch.Generator) -> Tensor:
    """A random order of the rows in which rows of one label come in runs of up to `_TOGETHER`, so that batches hold positives.

    labels: (k,) int64. Gives (k,) int64: every row once.
    """
    shuffled = torch.randperm(len(labels), generator=draw)
    by_label = shuffled[labels[shuffled].argsort(stable=True)]  # the rows of a label one after the other, in random order
    counts = torch.bincount(labels)
    counts = counts[counts > 0]  # in the order of the labels, as by_label
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    place = torch.arange(len(labels)) - starts  # of a row within its label
    new_run = place % _TOGETHER == 0
    run = new_run.long().cumsum(0) - 1  # (k,): the number of the run of every row
    keys = torch.rand(int(new_run.sum()), generator=draw)
    return by_label[keys[run].argsort(stable=True)]


def batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """The order cut into batches of equal size, at most `size`: a short last one would have easier negatives than the others."""
    yield from torch.tensor_split(order, max(1, -(-len(order) // size)))
