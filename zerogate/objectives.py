"""What a head is fitted by: for every kind of examples, the loss of a batch."""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.group_objectives import Batches, Prototypes, Side, grouped_order, unit
from zerogate.heads import Head
from zerogate.losses.contrastive import contrastive, multi_positive_contrastive, online_contrastive, same_pairs
from zerogate.losses.raw_contrastive import raw_contrastive
from zerogate.losses.scored import cosent, cosine_regression
from zerogate.losses.triplet import triplet
from zerogate.recipe import Recipe
from zerogate.training import Examples, GroupExamples, PairExamples, ScoredExamples


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

    queries: (n, dim), documents: (m, dim); base vectors on the head's device, of the dtype in which the head shall multiply them.
    """
    side = Side(head)
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
            return (Prototypes if recipe.loss == "prototypical" else Batches)(examples, queries, side, recipe)


class _Known:
    """Which documents belong to which queries, in all examples: a batch alone does not show it for queries with several."""

    def __init__(self, pairs: Tensor) -> None:
        """pairs: (k, 2) int64, distinct."""
        # Only a query with several documents and a document of several queries can belong together unseen.
        self._several, self._shared = (pairs[:, column].bincount() > 1 for column in (0, 1))  # (queries,), (documents,)
        self._any_repeated = bool(self._several.any() | self._shared.any())
        self._any_unseen = bool((self._several[pairs[:, 0]] & self._shared[pairs[:, 1]]).any())
        self._documents = int(pairs[:, 1].max()) + 1
        self._keys = (pairs[:, 0] * self._documents + pairs[:, 1]).sort().values  # (k,)

    def others(self, pairs: Tensor) -> Tensor | None:
        """Where the query of row i belongs to the document of row j, (b, b) bool; false on the diagonal. None: nowhere."""
        if not self._any_repeated:
            return None
        same = same_pairs(pairs[:, 0], pairs[:, 1])
        if self._any_unseen:
            rows = self._several[pairs[:, 0]].nonzero()  # (r, 1)
            columns = self._shared[pairs[:, 1]].nonzero()[:, 0]  # (c,)
            same[rows, columns] |= self.belongs(pairs[rows, 0], pairs[columns, 1])
            same.fill_diagonal_(fill_value=False)
        return same

    def belongs(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Whether each document belongs to its query; two int64 tensors that broadcast. Gives their shape, bool."""
        asked = queries * self._documents + documents
        place = torch.searchsorted(self._keys, asked).clamp(max=len(self._keys) - 1)
        return self._keys[place] == asked


class _Pairs:
    parameters: list[nn.Parameter] = []  # noqa: RUF012 (never changed)

    def __init__(self, examples: PairExamples, queries: Tensor, documents: Tensor, side: Side, recipe: Recipe) -> None:
        device = queries.device
        self._pairs = torch.from_numpy(examples.pairs).to(device)  # (k, 2)
        self._negatives = torch.from_numpy(examples.negatives).to(device)  # (k, h)
        self._known = _Known(self._pairs)
        # One matrix of both sides, from which a batch is one gather.
        self._base = torch.cat((queries, documents))  # (n + m, dim)
        self._places = self._pairs + torch.tensor([0, len(queries)], device=device)  # (k, 2), rows of it
        self._documents = self._base[len(queries) :]
        self._side = side
        self._document_side: Callable[[Tensor], Tensor] = (lambda base: base.float()) if recipe.query_only else side
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
        base = self._base.index_select(0, self._places[rows].T.reshape(-1))  # (2b, dim), the queries first
        if self._recipe.query_only:
            queries, positives = base.tensor_split(2)  # (b, dim)
            anchors = self._side.raw(queries)
        else:  # one pass for both sides: half as many calls, and products of twice the height
            anchors, positives = self._side.raw(base).tensor_split(2)  # (b, dim)
        return self._loss(rows, self._pairs[rows], anchors, positives)

    def _given(self, rows: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The given negatives, (b, h, dim), and which of them there are, (b, h)."""
        if not self._negatives.shape[1]:
            return None, None
        negatives = self._negatives[rows]
        return self._document_side(self._documents[negatives.clamp(min=0)]), negatives >= 0

    def _contrastive(self, rows: Tensor, pairs: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        temperature, same = self._recipe.temperature, self._known.others(pairs)
        negatives, present = self._given(rows)
        if negatives is None:
            return raw_contrastive(anchors, positives, temperature=temperature, same=same)
        return contrastive(
            unit(anchors), unit(positives), temperature=temperature, same=same, negatives=negatives, present=present
        )

    def _multi_positive(self, _rows: Tensor, pairs: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        belongs = pairs[:, 0][:, None] == pairs[:, 0][None, :]  # (b, b)
        others = self._known.others(pairs)
        shared = None if others is None else others & ~belongs  # another query's positive, but this one's as well
        return multi_positive_contrastive(
            unit(anchors), unit(positives), belongs, temperature=self._recipe.temperature, ignored=shared
        )

    def _triplet(self, rows: Tensor, _pairs: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        negatives, present = self._given(rows)
        assert negatives is not None
        return triplet(unit(anchors), unit(positives), negatives, margin=self._recipe.margin, present=present)

    def _online_contrastive(self, rows: Tensor, pairs: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        anchors, positives = unit(anchors), unit(positives)
        negatives, present = self._given(rows)
        if negatives is None or present is None:  # the row before has a positive for it, unless that is one's own as well
            negatives = positives.roll(1, dims=0)[:, None, :]  # (b, 1, dim)
            moved = pairs.roll(1, dims=0)
            present = ~self._known.belongs(pairs[:, 0], moved[:, 1])[:, None]  # (b, 1)
        row, column = present.nonzero(as_tuple=True)
        first = torch.cat((anchors, anchors[row]))
        second = torch.cat((positives, negatives[row, column]))
        similar = torch.arange(len(first), device=first.device) < len(anchors)
        return online_contrastive(first, second, similar, margin=self._recipe.margin)


class _Scored:
    parameters: list[nn.Parameter] = []  # noqa: RUF012 (never changed)

    def __init__(self, examples: ScoredExamples, queries: Tensor, side: Side, recipe: Recipe) -> None:
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


def batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """The order cut into batches of equal size, at most `size`: a short last one would have easier negatives than the others."""
    yield from torch.tensor_split(order, max(1, -(-len(order) // size)))
