"""What a head is fitted by for texts with labels: the losses of a batch, and of a batch against the labels' prototypes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zerogate.heads import Head
from zerogate.losses.groups import circle, prototypical, supervised_contrastive
from zerogate.losses.margin_softmax import MarginSoftmax
from zerogate.losses.triplet import batch_hard, semi_hard_triplets
from zerogate.recipe import Recipe
from zerogate.training import GroupExamples

# Examples of one group that stay together in a batch: enough for positives, few enough for other groups beside them.
_TOGETHER = 8


class Side:
    """The head's unit rows of base vectors of any leading shape (..., dim), float32 whatever the dtype of the base vectors."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def __call__(self, base: Tensor) -> Tensor:
        return unit(self._head(base))

    def raw(self, base: Tensor) -> Tensor:
        """The rows as the head gives them, of the base vectors' dtype."""
        raw: Tensor = self._head(base)
        return raw.to(base.dtype)

    def still(self, base: Tensor) -> Tensor:
        """Unit rows without dropout."""
        was_training = self._head.training
        found = unit(self._head.eval()(base))
        self._head.train(was_training)
        return found


def unit(rows: Tensor) -> Tensor:
    """The rows, (..., dim), divided by their lengths; float32."""
    return nn.functional.normalize(rows.float(), dim=-1)


class Batches:
    """Losses over the rows of a batch; those with weights of their own keep them in `parameters`."""

    def __init__(self, examples: GroupExamples, queries: Tensor, side: Side, recipe: Recipe) -> None:
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


class Prototypes:
    """Every row of a batch against the prototypes of all labels: the head's output for the mean base vector of a label's texts.

    For a head without norm and activation that is the direction of the mean of its raw outputs.
    """

    def __init__(self, examples: GroupExamples, queries: Tensor, side: Side, recipe: Recipe) -> None:
        self.parameters: list[nn.Parameter] = []
        labels = torch.from_numpy(examples.labels)  # (k,)
        self._labels = labels.to(queries.device)
        self._base = queries[torch.from_numpy(examples.texts).to(queries.device)].float()  # (k, dim)
        counts = torch.bincount(labels)[:, None].float()  # (classes, 1)
        # On the CPU, once: on a GPU the order of an index_add, and so its last bits, are a matter of luck.
        sums = torch.zeros(len(counts), queries.shape[1]).index_add_(0, labels, self._base.cpu())
        self._counts, self._sums = counts.to(queries.device), sums.to(queries.device)  # (classes, 1), (classes, dim)
        self._side, self._temperature = side, recipe.temperature

    def order(self, draw: torch.Generator) -> Tensor:
        return torch.randperm(len(self._labels), generator=draw)

    def __call__(self, rows: Tensor) -> Tensor:
        base, labels = self._base[rows], self._labels[rows]
        counts = self._counts[labels]
        # Without the row itself; a label of one text has nothing else, so its prototype stays the text.
        own = torch.where(counts == 1, base, self._sums[labels] - base) / (counts - 1).clamp(min=1)  # (b, dim)
        prototypes = self._side.still(self._sums / self._counts)  # (classes, dim)
        return prototypical(self._side(base), prototypes, self._side.still(own), labels, temperature=self._temperature)


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
