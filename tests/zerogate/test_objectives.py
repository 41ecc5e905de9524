"""The loss of a batch is the named loss of what numpy makes of the same rows: vectors, masks, negatives and labels."""

from collections.abc import Callable
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from zerogate.errors import ZerogateError
from zerogate.folded import unit_rows
from zerogate.group_objectives import grouped_order
from zerogate.head_shapes import HeadShape
from zerogate.heads import Head, SkipHead, make_head
from zerogate.losses.contrastive import contrastive, multi_positive_contrastive, online_contrastive
from zerogate.losses.groups import circle, supervised_contrastive
from zerogate.losses.margin_softmax import MarginSoftmax
from zerogate.losses.scored import cosent, cosine_regression
from zerogate.losses.triplet import batch_hard, semi_hard_triplets, triplet
from zerogate.objectives import Objective, batches, objective_for
from zerogate.recipe import Recipe
from zerogate.training import Examples, GroupExamples, PairExamples, ScoredExamples

DIM = 16
Rows = NDArray[np.float32]
Indices = NDArray[np.int64]


def unit(count: int, *, seed: int) -> Rows:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32))


QUERIES, DOCUMENTS = unit(30, seed=1), unit(40, seed=2)
# Queries 0 and 1 have several documents; documents 1, 2 and 3 several queries. (0, 3) and (1, 1) are told by other rows only
# than those that a batch with (0, 1) and (2, 3), or with (1, 2) and (0, 1), holds.
PAIRS = np.asarray([(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 3), (3, 1), *((n, n) for n in range(4, 30))])
NEGATIVES = np.full((len(PAIRS), 3), -1)
NEGATIVES[0, :2] = (30, 31)
NEGATIVES[1, :1] = (30,)
NEGATIVES[5, :3] = (32, 33, 34)
NEGATIVES[10:, 0] = 35
BATCH = np.asarray([1, 5, 0, 4, 3, 6, 12, 20, 9])  # of the neighbours (2, 3) and (0, 1), the first's document is the second's too


def examples(*, given_negatives: bool = False) -> PairExamples:
    return PairExamples(PAIRS, NEGATIVES if given_negatives else NEGATIVES[:, :0])


def trained_head(kind: str = "skip", **more: object) -> Head:
    """A head that is no longer the identity, with weights drawn from a seed."""
    head = make_head(DIM, HeadShape.from_dict({"kind": kind, **more}), seed=5).eval()
    start = torch.Generator().manual_seed(9)
    for name, parameter in head.named_parameters():
        if "gate" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=start)
    return head


def objective(found: Examples, recipe: Recipe, head: Head) -> Objective:
    kind = {PairExamples: "pairs", ScoredExamples: "scored", GroupExamples: "groups"}[type(found)]
    return objective_for(found, torch.from_numpy(QUERIES), torch.from_numpy(DOCUMENTS), head, recipe.for_kind(kind))  # type: ignore[arg-type]


def value(found: Examples, recipe: Recipe, head: Head, rows: Indices = BATCH) -> float:
    return float(objective(found, recipe, head)(torch.from_numpy(rows)).detach())


def sides(head: Head, pairs: Indices, *, query_only: bool = False) -> tuple[Tensor, Tensor]:
    """The version's vectors of a batch of pairs, by the head's numpy twin."""
    twin = head.served()
    documents = DOCUMENTS if query_only else twin.vectors(DOCUMENTS)
    return torch.from_numpy(twin.vectors(QUERIES)[pairs[:, 0]]), torch.from_numpy(documents[pairs[:, 1]])


def belongs(query: int, document: int) -> bool:
    return [query, document] in PAIRS.tolist()


def elsewhere(pairs: Indices) -> Tensor:
    """Where row i's query belongs to row j's document, whatever row says so."""
    rows = pairs.tolist()
    return torch.tensor([[i != j and belongs(one[0], other[1]) for j, other in enumerate(rows)] for i, one in enumerate(rows)])


def own_negatives(head: Head, rows: Indices, *, query_only: bool) -> tuple[Tensor, Tensor]:
    vectors = DOCUMENTS if query_only else head.served().vectors(DOCUMENTS)
    present = NEGATIVES[rows] >= 0
    found = np.full((*present.shape, DIM), 0.25, dtype=np.float32)  # what stands for a missing one must not count
    found[present] = vectors[NEGATIVES[rows][present]]
    return torch.from_numpy(found), torch.from_numpy(present)


def test_the_batch_holds_what_makes_the_masks_matter() -> None:
    pairs = PAIRS[BATCH]
    in_batch = [[one[0] == other[0] or one[1] == other[1] for other in pairs] for one in pairs]

    assert (elsewhere(pairs).numpy() & ~np.asarray(in_batch)).sum() >= 2  # known from rows outside the batch
    assert 0 < (NEGATIVES[BATCH] >= 0).sum() < NEGATIVES[BATCH].size


@pytest.mark.parametrize("query_only", [False, True])
@pytest.mark.parametrize("with_negatives", [False, True])
def test_contrastive_has_known_documents_as_nobody_s_negatives_and_given_ones_as_their_own_query_s(
    query_only: bool, with_negatives: bool
) -> None:
    head = trained_head()
    anchors, positives = sides(head, PAIRS[BATCH], query_only=query_only)
    more, present = own_negatives(head, BATCH, query_only=query_only) if with_negatives else (None, None)

    found = value(examples(given_negatives=with_negatives), Recipe(temperature=0.1, query_only=query_only), head)

    same = elsewhere(PAIRS[BATCH])
    wanted = contrastive(anchors, positives, temperature=0.1, same=same, negatives=more, present=present)
    assert found == pytest.approx(float(wanted), rel=1e-5)
    unmasked = contrastive(anchors, positives, temperature=0.1, negatives=more, present=present)
    assert found < float(unmasked) - 0.01


@pytest.mark.parametrize("query_only", [False, True])
def test_multi_positive_groups_the_documents_of_a_query_and_ignores_those_that_are_its_own_elsewhere(query_only: bool) -> None:
    head, pairs = trained_head(), PAIRS[BATCH]
    anchors, positives = sides(head, pairs, query_only=query_only)

    found = value(examples(), Recipe(loss="multi_positive", temperature=0.1, query_only=query_only), head)

    positive = torch.from_numpy(pairs[:, 0][:, None] == pairs[:, 0][None, :])
    ignored = elsewhere(pairs) & ~positive
    assert bool(ignored.any())
    assert int(positive.sum()) > len(pairs)
    wanted = multi_positive_contrastive(anchors, positives, positive, temperature=0.1, ignored=ignored)
    assert found == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("query_only", [False, True])
def test_triplet_takes_the_given_negatives(query_only: bool) -> None:
    head = trained_head()
    more, present = own_negatives(head, BATCH, query_only=query_only)

    found = value(examples(given_negatives=True), Recipe(loss="triplet", margin=0.4, query_only=query_only), head)

    wanted = triplet(*sides(head, PAIRS[BATCH], query_only=query_only), more, margin=0.4, present=present)
    assert found == pytest.approx(float(wanted), rel=1e-5)
    assert found > 0


def test_triplet_without_negatives_says_how_to_get_some() -> None:
    with pytest.raises(ZerogateError, match=r"'triplet' needs negatives: upload .* kind triplets, or set recipe\.hard_negatives"):
        value(examples(), Recipe(loss="triplet"), trained_head())


@pytest.mark.parametrize("query_only", [False, True])
def test_online_contrastive_compares_with_the_given_negatives(query_only: bool) -> None:
    head = trained_head()
    anchors, positives = sides(head, PAIRS[BATCH], query_only=query_only)
    more, present = own_negatives(head, BATCH, query_only=query_only)

    recipe = Recipe(loss="online_contrastive", margin=0.7, query_only=query_only)
    found = value(examples(given_negatives=True), recipe, head)

    apart = [(anchors[row], more[row, place]) for row, place in present.nonzero().tolist()]
    first = torch.stack([*anchors, *(anchor for anchor, _ in apart)])
    second = torch.stack([*positives, *(negative for _, negative in apart)])
    wanted = online_contrastive(first, second, torch.tensor([True] * len(anchors) + [False] * len(apart)), margin=0.7)
    assert found == pytest.approx(float(wanted), rel=1e-5)


def test_online_contrastive_without_given_negatives_borrows_a_neighbour_s_positive_that_is_none_of_its_own() -> None:
    head, pairs = trained_head(), PAIRS[BATCH]
    anchors, positives = sides(head, pairs)

    found = value(examples(), Recipe(loss="online_contrastive", margin=0.9), head)

    borrowed = [(row, row - 1) for row in range(len(pairs)) if not belongs(pairs[row, 0], pairs[row - 1, 1])]
    apart = [(pairs[row] != pairs[row - 1]).all() for row in range(len(pairs))]
    assert 0 < len(borrowed) < sum(apart)  # one neighbour's positive is known from a row outside the batch
    first = torch.stack([*anchors, *(anchors[row] for row, _ in borrowed)])
    second = torch.stack([*positives, *(positives[other] for _, other in borrowed)])
    wanted = online_contrastive(first, second, torch.tensor([True] * len(anchors) + [False] * len(borrowed)), margin=0.9)
    assert found == pytest.approx(float(wanted), rel=1e-5)


SCORED = ScoredExamples(np.asarray([(n, (7 * n + 3) % 30) for n in range(20)]), np.linspace(0, 1, 20, dtype=np.float32))


@pytest.mark.parametrize(
    ("loss", "naive"),
    [("cosent", lambda a, b, scores: cosent(a, b, scores, scale=1 / 0.2)), ("cosine", cosine_regression)],
)
def test_the_losses_of_scored_pairs_compare_both_texts_as_queries(
    loss: str, naive: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    head, rows = trained_head(), np.asarray([3, 7, 1, 19, 0])

    found = value(SCORED, Recipe(loss=loss, temperature=0.2), head, rows)

    first, second = (torch.from_numpy(head.served().vectors(QUERIES)[SCORED.pairs[rows, column]]) for column in (0, 1))
    assert found == pytest.approx(float(naive(first, second, torch.from_numpy(SCORED.scores[rows]))), rel=1e-5)


GROUPS = GroupExamples(np.asarray([*range(24), 0, 1]), np.asarray([n % 4 for n in range(24)] + [1, 2]))
CLASSES = 4


def margin_softmax(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    return MarginSoftmax(DIM, classes=CLASSES, kind=kind, margin=0.3, scale=1 / 0.1, seed=4)  # type: ignore[arg-type]


GROUP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "supervised_contrastive": lambda rows, labels: supervised_contrastive(rows, labels, temperature=0.1),
    "arcface": margin_softmax("arcface"),
    "cosface": margin_softmax("cosface"),
    "circle": lambda rows, labels: circle(rows, labels, margin=0.3, scale=1 / 0.1),
    "semi_hard_triplet": lambda rows, labels: semi_hard_triplets(rows, labels, margin=0.3),
    "batch_hard_triplet": lambda rows, labels: batch_hard(rows, labels, margin=0.3),
}


@pytest.mark.parametrize("loss", GROUP_LOSSES)
def test_the_losses_of_groups_take_the_labels_of_the_batch(loss: str) -> None:
    head, rows = trained_head(), np.asarray([0, 4, 5, 1, 24, 25, 11, 14, 23])

    found = value(GROUPS, Recipe(loss=loss, temperature=0.1, margin=0.3, seed=4), head, rows)

    vectors = torch.from_numpy(head.served().vectors(QUERIES)[GROUPS.texts[rows]])
    wanted = float(GROUP_LOSSES[loss](vectors, torch.from_numpy(GROUPS.labels[rows])).detach())
    assert found == pytest.approx(wanted, rel=1e-4)
    assert found > 0


def test_prototypical_compares_with_the_means_of_all_texts_of_each_label_without_the_row_itself() -> None:
    """The rows of a batch, but prototypes of all examples; one label has a single text, whose prototype is the text."""
    found = GroupExamples(np.asarray([*range(24), 0, 29]), np.asarray([n % 4 for n in range(24)] + [1, 4]))
    head, rows = trained_head(), np.asarray([0, 4, 5, 24, 25, 11, 14, 23])
    base, twin = QUERIES.astype(np.float64), head.served()

    def prototype(texts: Indices) -> Rows:
        found: Rows = twin.vectors(base[texts].mean(axis=0, keepdims=True).astype(np.float32))[0]
        return found

    logits = []
    for row in rows:
        members = {label: np.flatnonzero(found.labels == label) for label in range(5)}
        if len(members[int(found.labels[row])]) > 1:
            members[int(found.labels[row])] = np.setdiff1d(members[int(found.labels[row])], row)
        vector = twin.vectors(QUERIES[found.texts[[row]]])[0]
        logits.append([vector @ prototype(found.texts[own]) / 0.1 for own in members.values()])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -np.log(shares[np.arange(len(rows)), found.labels[rows]]).mean()

    for training in (False, True):  # a head that drops nothing, but prototypes never do
        assert value(found, Recipe(loss="prototypical", temperature=0.1), head.train(training), rows) == pytest.approx(
            wanted, rel=1e-5
        )
        assert head.training is training


def test_dropout_never_reaches_a_prototype() -> None:
    head = trained_head()
    head.drop.share = 0.999999  # the branch of every row that drops is nothing: the row stays the base vector
    rows = np.arange(12)

    found = value(GROUPS, Recipe(loss="prototypical", temperature=0.1), head.train(), rows)

    head.drop.share = 0.0
    twin, logits = head.served(), np.empty((12, CLASSES))
    for row, label in np.ndindex(12, CLASSES):
        texts = GROUPS.texts[(GROUPS.labels == label) & (np.arange(len(GROUPS)) != row)]
        mean = QUERIES[texts].mean(axis=0, keepdims=True)
        logits[row, label] = QUERIES[GROUPS.texts[row]] @ twin.vectors(mean)[0] / 0.1
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found == pytest.approx(-np.log(shares[rows, GROUPS.labels[rows]]).mean(), rel=1e-5)


RETRIEVAL_LOSSES = ("contrastive", "multi_positive", "triplet", "online_contrastive")
ALL: list[tuple[Examples, str]] = [(examples(given_negatives=True), loss) for loss in RETRIEVAL_LOSSES]
ALL += [(SCORED, "cosent"), (SCORED, "cosine"), *((GROUPS, loss) for loss in (*GROUP_LOSSES, "prototypical"))]


@pytest.mark.parametrize(("found", "loss"), ALL, ids=lambda one: one if isinstance(one, str) else "")
@pytest.mark.parametrize("shape", [{}, {"blocks": 2, "merge": "concat"}, {"kind": "linear", "norm": "post", "bias": True}])
def test_gradients_reach_every_weight_of_the_head_and_of_the_loss_and_no_vector(
    found: Examples, loss: str, shape: dict[str, object]
) -> None:
    head = trained_head(**{"kind": "skip", **shape})  # type: ignore[arg-type]
    queries, documents = torch.from_numpy(QUERIES.copy()), torch.from_numpy(DOCUMENTS.copy())
    kind = {PairExamples: "pairs", ScoredExamples: "scored", GroupExamples: "groups"}[type(found)]
    target = objective_for(found, queries, documents, head, Recipe(loss=loss, margin=0.9).for_kind(kind))  # type: ignore[arg-type]

    target(torch.arange(20)).backward()  # type: ignore[no-untyped-call]

    weights = [*head.parameters(), *target.parameters]
    assert len(target.parameters) == (1 if loss in ("arcface", "cosface") else 0)
    assert all(one.grad is not None and bool(one.grad.any()) and bool(torch.isfinite(one.grad).all()) for one in weights)
    assert queries.grad is None
    assert queries.numpy().tobytes() == QUERIES.tobytes()
    assert documents.numpy().tobytes() == DOCUMENTS.tobytes()


@pytest.mark.parametrize("loss", RETRIEVAL_LOSSES)
def test_with_query_only_no_gradient_comes_from_a_document(loss: str) -> None:
    """A head that sees no document: its forward is asked for queries alone."""
    head = trained_head()
    asked: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: asked.extend(inputs))
    queries, documents = torch.from_numpy(QUERIES), torch.from_numpy(DOCUMENTS)
    recipe = Recipe(loss=loss, query_only=True).for_kind("pairs")

    objective_for(examples(given_negatives=True), queries, documents, head, recipe)(torch.from_numpy(BATCH))

    (rows,) = asked
    assert torch.equal(rows, queries[PAIRS[BATCH, 0]])


# The order of an epoch


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=120), st.integers(0, 1000))
def test_a_grouped_order_has_every_row_once_and_labels_in_runs_of_eight(labels: list[int], seed: int) -> None:
    order = grouped_order(torch.tensor(labels), torch.Generator().manual_seed(seed))

    assert sorted(order.tolist()) == list(range(len(labels)))
    in_order = [labels[row] for row in order.tolist()]
    lengths = [(label, len(list(run))) for label, run in groupby(in_order)]
    for label in set(labels):
        count, runs = labels.count(label), [length for own, length in lengths if own == label]
        assert len(runs) <= -(-count // 8)  # runs that happen to meet are one longer run
        assert sum(length % 8 != 0 for length in runs) <= 1  # all are full but the rest


def test_a_grouped_order_is_random_across_and_within_labels_and_follows_its_generator() -> None:
    labels = torch.arange(400) % 10

    first, second = (grouped_order(labels, draw) for draw in [torch.Generator().manual_seed(1)] * 2)
    again = grouped_order(labels, torch.Generator().manual_seed(1))

    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    starts = [int(labels[row]) for row in first[::8]]
    assert sorted(starts) == sorted(list(range(10)) * 5)
    assert starts != sorted(starts)
    of_label_3 = [row for row in first.tolist() if row % 10 == 3]
    assert of_label_3 != sorted(of_label_3)


@pytest.mark.parametrize(("found", "loss"), ALL, ids=lambda one: one if isinstance(one, str) else "")
def test_an_epoch_has_every_example_once(found: Examples, loss: str) -> None:
    target = objective(found, Recipe(loss=loss), trained_head())
    draw = torch.Generator().manual_seed(3)

    first, second = target.order(draw).tolist(), target.order(draw).tolist()

    assert sorted(first) == sorted(second) == list(range(len(found)))
    assert first != second
    assert first != sorted(first)


def test_the_documents_of_a_query_meet_in_a_batch_of_multi_positive() -> None:
    pairs = np.stack([np.repeat(np.arange(8), 5), np.arange(40)], axis=1)
    found = PairExamples(pairs, np.empty((40, 0), dtype=np.int64))

    order = objective(found, Recipe(loss="multi_positive"), trained_head()).order(torch.Generator().manual_seed(1))

    assert [len(set(run)) for run in pairs[order, 0].reshape(8, 5).tolist()] == [1] * 8


@given(st.integers(1, 300), st.integers(2, 64))
def test_batches_are_of_nearly_equal_size_and_at_most_the_size_asked_for(count: int, size: int) -> None:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))

    found = list(batches(order, size))

    assert torch.equal(torch.cat(found), order)
    sizes = [len(one) for one in found]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // size)


def test_a_head_that_starts_as_the_identity_has_at_first_the_loss_of_the_base_vectors() -> None:
    fresh = SkipHead(DIM, HeadShape(), seed=1).eval()

    found = value(examples(), Recipe(temperature=0.1), fresh)

    anchors, positives = (torch.from_numpy(side[PAIRS[BATCH, column]]) for column, side in enumerate((QUERIES, DOCUMENTS)))
    wanted = contrastive(anchors, positives, temperature=0.1, same=elsewhere(PAIRS[BATCH]))
    assert found == pytest.approx(float(wanted), rel=1e-6)
