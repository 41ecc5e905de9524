"""The loss of a batch of pairs, the data as the trainer gets it, and the order of an epoch."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from zerogate.tuning_objective import ShuffledBatches, dataset_of, ranking
from zerogate.tuning_recipe import TuningExamples

TEXTS = [f"text {number}" for number in range(8)]


def unit(count: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, 6, generator=draw, dtype=torch.float64), dim=1)


def naive(vectors: list[NDArray[np.float64]], texts: list[list[int]], temperature: float) -> float:
    anchors, documents = vectors[0], [document for column in vectors[1:] for document in column]
    names = [row[column] for column in range(1, len(vectors)) for row in texts]
    losses = []
    for row, anchor in enumerate(anchors):
        positives = {other[1] for other in texts if other[0] == texts[row][0]}
        similar = [float(anchor @ document) / temperature for document in documents]
        counted = [value for place, value in enumerate(similar) if place == row or names[place] not in positives]
        if len(counted) > 1:
            losses.append(math.log(sum(map(math.exp, counted))) - similar[row])
    return sum(losses) / max(1, len(losses))


@pytest.mark.parametrize(
    "texts",
    [
        [[0, 10, 20], [1, 11, 21], [2, 12, 22], [3, 13, 23]],  # no text twice
        [[0, 10, 20], [1, 10, 21], [2, 12, 20], [3, 13, 20]],  # a positive of two anchors, a negative of three
        [[0, 10, 20], [0, 11, 21], [2, 12, 10], [3, 13, 11]],  # an anchor with two positives that are others' negatives
        [[0, 10, 20], [0, 10, 21], [0, 12, 22], [1, 12, 23]],
    ],
)
def test_the_loss_of_pairs_is_what_a_slow_twin_says(texts: list[list[int]]) -> None:
    vectors = [unit(4, seed) for seed in range(3)]

    found = ranking(vectors, torch.tensor(texts), temperature=0.2)

    assert float(found) == pytest.approx(naive([one.numpy() for one in vectors], texts, 0.2), rel=1e-9)


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_without_copies_it_is_the_peers_loss(columns: int) -> None:
    vectors = [unit(5, seed) for seed in range(columns)]
    texts = torch.arange(5 * columns).reshape(5, columns)
    peer = MultipleNegativesRankingLoss(nn.Module(), scale=20.0)

    expected = peer.compute_loss_from_embeddings(vectors, texts)

    assert float(ranking(vectors, texts, temperature=0.05)) == pytest.approx(float(expected), rel=1e-9)


def test_a_row_without_negatives_adds_nothing() -> None:
    vectors = [unit(3, seed).requires_grad_() for seed in range(2)]

    loss = ranking(vectors, torch.tensor([[0, 1], [0, 1], [0, 1]]), temperature=0.05)
    torch.autograd.backward(loss)

    assert float(loss.detach()) == 0
    assert not any(one.grad.any() for one in vectors if one.grad is not None)


def test_pairs_are_numbered_by_their_texts() -> None:
    positives = ["text 7", "shared", "shared", *TEXTS[:5]]

    found = dataset_of(TuningExamples("pairs", {"anchor": TEXTS, "positive": positives}))

    assert found.column_names == ["anchor", "positive", "label"]
    assert found["anchor"][:] == TEXTS
    assert found["label"][:] == [[0, 7], [1, 8], [2, 8], [3, 0], [4, 1], [5, 2], [6, 3], [7, 4]]


def test_negatives_become_columns_and_short_rows_repeat_theirs() -> None:
    negatives = [["n0", "n1", "n2"], ["n3"], ["n4", "n5"], *[["n0"]] * 5]

    found = dataset_of(TuningExamples("triplets", {"anchor": TEXTS, "positive": TEXTS[::-1], "negatives": negatives}))

    assert found.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3", "label"]
    assert [found[f"negative_{place}"][:3] for place in (1, 2, 3)] == [
        ["n0", "n3", "n4"],
        ["n1", "n3", "n5"],
        ["n2", "n3", "n4"],
    ]
    assert [len(set(row[2:])) for row in found["label"][:4]] == [3, 1, 2, 1]


def test_of_many_negatives_the_first_four_are_used() -> None:
    found = dataset_of(
        TuningExamples("triplets", {"anchor": TEXTS, "positive": TEXTS, "negatives": [[f"n{place}" for place in range(9)]] * 8})
    )

    assert [name for name in found.column_names if name.startswith("negative")] == [f"negative_{place}" for place in range(1, 5)]
    assert found["negative_4"][0] == "n3"


def test_labels_of_any_kind_are_numbered_and_scores_are_floats() -> None:
    groups = dataset_of(TuningExamples("groups", {"text": TEXTS, "label": ["b", "a", "b", "a", "c", "c", 7, 7]}))
    scored = dataset_of(TuningExamples("scored", {"sentence1": TEXTS, "sentence2": TEXTS, "score": [0, 1, *[0.25] * 6]}))

    assert groups["label"][:] == [0, 1, 0, 1, 2, 2, 3, 3]
    assert scored["score"][:3] == [0.0, 1.0, 0.25]
    assert all(isinstance(score, float) for score in scored["score"][:])


def test_every_epoch_has_an_order_of_its_own_that_comes_back() -> None:
    dataset = dataset_of(TuningExamples("pairs", {"anchor": TEXTS * 3, "positive": TEXTS * 3}))
    one, other = (ShuffledBatches(dataset, batch_size=7, drop_last=False, seed=5) for _ in range(2))

    first = list(one)
    one.set_epoch(1)
    other.set_epoch(1)

    assert [len(batch) for batch in first] == [7, 7, 7, 3]
    assert len(one) == 4
    assert sorted(row for batch in first for row in batch) == list(range(24))
    assert list(one) == list(other) != first
    assert list(ShuffledBatches(dataset, batch_size=7, drop_last=False, seed=6)) != first
