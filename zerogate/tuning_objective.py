"""What an encoder is tuned by: for every kind of examples the loss of a batch, the data as the trainer wants it, its order."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn

from zerogate.losses.contrastive import multi_positive_contrastive
from zerogate.losses.groups import supervised_contrastive
from zerogate.losses.scored import cosent
from zerogate.tuning_model import TuningModel
from zerogate.tuning_recipe import TuningExamples, TuningKind

# Each is one more text to encode for every row of a batch; mined negatives come with the hardest first.
_MAX_NEGATIVES: Final = 4


class Objective(nn.Module):
    """The loss of a batch: in-batch contrastive for pairs and triplets, CoSENT for scored, supervised contrastive for groups."""

    def __init__(self, model: TuningModel, kind: TuningKind, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        self._temperature = temperature

    def forward(self, columns: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """columns: what the tokenizer made of each text column; labels: as `dataset_of` gives them. Gives a scalar."""
        vectors = self.model.vectors(list(columns))
        if self.kind == "groups":
            return supervised_contrastive(vectors[0], labels, temperature=self._temperature)
        if self.kind == "scored":
            return cosent(vectors[0], vectors[1], labels, scale=1 / self._temperature)
        return ranking(vectors, labels, temperature=self._temperature)


def ranking(vectors: list[Tensor], texts: Tensor, *, temperature: float) -> Tensor:
    """In-batch contrastive loss from anchors to documents, as sentence-transformers' MultipleNegativesRankingLoss.

    Unlike there, a document that the batch shows to be a positive of an anchor is not its negative: where there are few
    distinct answers (an FAQ), a batch holds many such.

    vectors: anchors, positives, then columns of negatives; each (n, dim), unit rows. temperature: divides the similarities, > 0.
    texts: (n, columns), integers, equal where the texts of the vectors are. Gives the mean over the anchors, a scalar.
    """
    anchors, documents = vectors[0], torch.cat(vectors[1:])  # (n, dim), (m, dim)
    together = texts[:, 0][:, None] == texts[:, 0][None, :]  # (n, n): rows of one anchor
    positive = texts[:, 1][:, None] == texts[:, 1:].T.flatten()[None, :]  # (n, m): a copy of the row's own positive
    known = together.float() @ positive.float() > 0  # (n, m): the same of any row of the anchor
    own = torch.eye(len(anchors), len(documents), dtype=torch.bool, device=anchors.device)
    return multi_positive_contrastive(anchors, documents, own, temperature=temperature, ignored=known & ~own)


def dataset_of(examples: TuningExamples) -> Dataset:
    """The examples as the trainer wants them: columns of texts, and one that goes to the loss as `labels`.

    scored: `score`, (n,) floats; groups: `label`, (n,) integers; else `label`, (n, text columns) integers, equal where texts are.
    """
    columns = {name: list(column) for name, column in examples.columns.items()}
    match examples.kind:
        case "scored":
            return Dataset.from_dict({**columns, "score": [float(score) for score in columns["score"]]})
        case "groups":
            return Dataset.from_dict({"text": columns["text"], "label": _numbers(columns["label"])})
    negatives = columns.pop("negatives", None)
    if negatives is not None:
        many = min(_MAX_NEGATIVES, max(map(len, negatives)))
        # A row with fewer repeats its own.
        columns |= {f"negative_{place + 1}": [row[place % len(row)] for row in negatives] for place in range(many)}
    count = len(columns["anchor"])
    numbers = _numbers([text for column in columns.values() for text in column])
    rows = zip(*(numbers[start : start + count] for start in range(0, len(numbers), count)), strict=True)
    return Dataset.from_dict({**columns, "label": [list(row) for row in rows]})


def _numbers(values: list[Any]) -> list[int]:
    """Numbers from 0, equal where the values are."""
    known: dict[Any, int] = {}
    return [known.setdefault(value, len(known)) for value in values]


class ShuffledBatches(DefaultBatchSampler):
    """All rows in a random order that depends on the seed and the epoch only: a resumed run sees the same batches."""

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, **options)
        self._count = len(dataset)

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self._count, generator=draw).tolist()
        for start in range(0, self._count, self.batch_size):
            yield order[start : start + self.batch_size]

    def __len__(self) -> int:
        return math.ceil(self._count / self.batch_size)
