"""Applying a head to a task's or a guard's vectors, on both sides or on the queries' only."""

from dataclasses import replace

import numpy as np

from zerogate.evaluation import Evaluation, OnBlock, Test
from zerogate.folded import ServedHead
from zerogate.scored_test import ScoredTest
from zerogate.vectors import Vectors


def tuned_vectors(vectors: Vectors, head: ServedHead, *, query_only: bool) -> Vectors:
    """The version's vectors of base vectors; with query_only documents keep theirs."""
    untouched = query_only or not len(vectors.documents)
    return Vectors(head.vectors(vectors.queries), vectors.documents if untouched else head.vectors(vectors.documents))


def evaluate_tuned(
    test: Test, base: Vectors, head: ServedHead, *, query_only: bool, on_block: OnBlock | None = None
) -> Evaluation:
    """What the version earns on the test.

    A head of the queries only meets base vectors in a search. So scored pairs are then compared as head(first) with second:
    a rotation, say, changes nothing between two queries and everything between a query and a document.
    """
    tuned = tuned_vectors(base, head, query_only=query_only)
    if query_only and isinstance(test, ScoredTest):
        pairs = test.pairs + np.asarray([0, len(base.queries)])
        return replace(test, pairs=pairs).evaluate(
            Vectors(np.concatenate((tuned.queries, base.queries)), tuned.documents), on_block
        )
    return test.evaluate(tuned, on_block)
