"""The losses against sentence-transformers' on the same vectors. Where the two differ on purpose, the test says how."""

import pytest
import torch
from sentence_transformers.sentence_transformer import losses as peers
from torch import Tensor

from zerogate.losses.contrastive import contrastive, multi_positive_contrastive, online_contrastive
from zerogate.losses.scored import cosent, cosine_regression
from zerogate.losses.triplet import batch_hard, semi_hard_triplets, triplet

SEEDS = pytest.mark.parametrize("seed", range(4))
COSINE_DISTANCE = peers.BatchHardTripletLossDistanceFunction.cosine_distance


def unit_batch(size: int, dim: int, *, seed: int) -> Tensor:
    drawn = torch.randn(size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def two_sides(size: int, *, seed: int) -> list[Tensor]:
    return [unit_batch(size, 6, seed=seed).requires_grad_(), unit_batch(size, 6, seed=seed + 100).requires_grad_()]


def agree(ours: Tensor, theirs: Tensor, rows: list[Tensor], *, rel: float = 1e-9) -> None:
    """The same number, and the same gradients along the sphere: theirs normalise the rows once more."""
    assert ours.item() > 0
    assert ours.item() == pytest.approx(theirs.item(), rel=rel)
    for row, a, b in zip(rows, torch.autograd.grad(ours, rows), torch.autograd.grad(theirs, rows), strict=True):
        along = [g - (g * row).sum(dim=1, keepdim=True) * row for g in (a, b)]
        assert torch.allclose(along[0], along[1], rtol=rel, atol=1e-7)


@SEEDS
def test_contrastive(seed: int) -> None:
    sides = two_sides(14, seed=seed)
    theirs = peers.MultipleNegativesRankingLoss(
        None, scale=20, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    one_way = peers.MultipleNegativesRankingLoss(None, scale=20)
    own = torch.eye(14, dtype=torch.bool)

    agree(contrastive(*sides, temperature=0.05), theirs.compute_loss_from_embeddings(sides, None), sides)
    agree(multi_positive_contrastive(*sides, own, temperature=0.05), one_way.compute_loss_from_embeddings(sides, None), sides)


@SEEDS
def test_online_contrastive_is_theirs_divided_by_the_number_of_pairs(seed: int) -> None:
    sides = two_sides(14, seed=seed)
    similar = torch.arange(14) % 3 == 0
    theirs = peers.OnlineContrastiveLoss(None, margin=0.9)

    agree(online_contrastive(*sides, similar, margin=0.9) * 14, theirs.compute_loss_from_embeddings(sides, similar.long()), sides)


@SEEDS
def test_triplet(seed: int) -> None:
    rows = [*two_sides(14, seed=seed), unit_batch(14, 6, seed=seed + 7).requires_grad_()]
    theirs = peers.TripletLoss(None, distance_metric=peers.TripletDistanceMetric.COSINE, triplet_margin=0.3)

    agree(
        triplet(rows[0], rows[1], rows[2][:, None], margin=0.3), theirs.compute_loss_from_embeddings(rows, torch.zeros(0)), rows
    )


@SEEDS
@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_semi_hard_triplets(seed: int, margin: float) -> None:
    rows, labels = unit_batch(24, 6, seed=seed).requires_grad_(), torch.arange(24) % 5
    theirs = peers.BatchSemiHardTripletLoss(None, distance_metric=COSINE_DISTANCE, margin=margin)

    agree(semi_hard_triplets(rows, labels, margin=margin), theirs.compute_loss_from_embeddings([rows], labels), [rows], rel=1e-6)


@SEEDS
@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_batch_hard_where_every_row_has_a_positive(seed: int, margin: float) -> None:
    """Theirs counts a row that is alone in its group as an anchor at distance 0 from its positive; ours leaves it out."""
    rows, labels = unit_batch(24, 6, seed=seed).requires_grad_(), torch.arange(24) % 5
    theirs = peers.BatchHardTripletLoss(None, distance_metric=COSINE_DISTANCE, margin=margin)

    agree(batch_hard(rows, labels, margin=margin), theirs.compute_loss_from_embeddings([rows], labels), [rows], rel=1e-6)


@SEEDS
def test_cosent(seed: int) -> None:
    sides, scores = two_sides(14, seed=seed), torch.arange(14) % 4 / 3

    agree(cosent(*sides, scores, scale=20), peers.CoSENTLoss(None, scale=20).compute_loss_from_embeddings(sides, scores), sides)


@SEEDS
def test_cosine_regression(seed: int) -> None:
    sides, scores = two_sides(14, seed=seed), torch.arange(14) % 5 / 4

    agree(cosine_regression(*sides, scores), peers.CosineSimilarityLoss(None).compute_loss_from_embeddings(sides, scores), sides)
