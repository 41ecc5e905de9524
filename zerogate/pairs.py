"""Rows of kind pairs as a task: distinct texts, pairs to train on, and held-out queries with their relevant documents."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerogate.errors import TooFewExamples
from zerogate.recipe import MIN_PAIRS

MIN_TEST_QUERIES = 2
# Where a dataset names no split: every fifth anchor is held out.
_HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class PairTask:
    """anchors and documents are distinct texts; the corpus of the evaluation is all of `documents`.

    train: (k, 2) int64, indices of an anchor and of its positive. queries: the anchors of the test, as indices;
    relevant: for each of them the indices of its documents.
    """

    anchors: list[str]
    documents: list[str]
    train: NDArray[np.int64]
    queries: NDArray[np.int64]
    relevant: list[list[int]]


def pair_task(rows: Iterable[Mapping[str, Any]], evaluation: Iterable[Mapping[str, Any]] | None = None) -> PairTask:
    """Split rows of kind pairs into training and test.

    With `evaluation` its rows are the test (those of split test, if it has any) and the rows that are of split train or of none
    train; else the rows of split test are held out; else those of split validation; else every fifth anchor, chosen by the digest
    of its text. A test anchor is never trained on, and all its positives are relevant, even where a row stands in another split.
    Raises TooFewExamples.
    """
    own = list(rows)
    if evaluation is None:
        test, train = _split(own)
    else:
        theirs = list(evaluation)
        test = [row for row in theirs if row.get("split") == "test"] or theirs
        train = [row for row in own if row.get("split") in (None, "train")]
    held_out = {row["anchor"] for row in test}
    train = [row for row in train if row["anchor"] not in held_out]
    return _index(own, train, test)


def _split(rows: list[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    for name in ("test", "validation"):
        test = [row for row in rows if row.get("split") == name]
        if test:
            return test, [row for row in rows if row.get("split") in (None, "train")]
    return [row for row in rows if _held_out(row["anchor"])], rows


def _held_out(anchor: str) -> bool:
    digest = hashlib.sha256(anchor.encode()).digest()
    return int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32


def _index(own: list[Mapping[str, Any]], train: list[Mapping[str, Any]], test: list[Mapping[str, Any]]) -> PairTask:
    anchors: dict[str, int] = {}
    documents: dict[str, int] = {}
    for row in own:  # the whole corpus competes, whatever the split
        documents.setdefault(row["positive"], len(documents))
    # A pair that stands there twice counts once: a duplicate would only be masked, and weigh double.
    trained = dict.fromkeys(
        (anchors.setdefault(row["anchor"], len(anchors)), documents.setdefault(row["positive"], len(documents))) for row in train
    )
    relevant: dict[str, dict[int, None]] = {row["anchor"]: {} for row in test}
    for row in (*test, *own):  # whatever is known to belong to a test anchor is relevant, from whichever split
        if row["anchor"] in relevant:
            relevant[row["anchor"]][documents.setdefault(row["positive"], len(documents))] = None
    if len(trained) < MIN_PAIRS:
        raise TooFewExamples(
            "pairs to train on (without those whose anchor is in the test)", found=len(trained), needed=MIN_PAIRS
        )
    if len(relevant) < MIN_TEST_QUERIES:
        raise TooFewExamples("distinct anchors to test on", found=len(relevant), needed=MIN_TEST_QUERIES)
    queries = [anchors.setdefault(anchor, len(anchors)) for anchor in relevant]
    return PairTask(
        anchors=list(anchors),
        documents=list(documents),
        train=np.asarray(list(trained), dtype=np.int64),
        queries=np.asarray(queries, dtype=np.int64),
        relevant=[list(found) for found in relevant.values()],
    )
