"""Rows of a dataset turned into indices of distinct texts: examples to train on, and tests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zerogate.errors import TooFewExamples, UnknownDocument
from zerogate.evaluation import RetrievalTest, Test
from zerogate.examples import Kind, Row
from zerogate.label_test import LabelTest
from zerogate.recipe import MIN_EXAMPLES
from zerogate.scored_test import ScoredTest
from zerogate.training import Examples, GroupExamples, PairExamples, ScoredExamples
from zerogate.vectors import Vectors

# The unit of every split: rows that share it never stand on both sides.
KEY: Final[Mapping[Kind, str]] = {
    "pairs": "anchor",
    "triplets": "anchor",
    "queries": "query",
    "scored": "sentence1",
    "groups": "text",
}
# Pairs mostly have one right answer, and what counts is where it stands; queries may have several.
_PRIMARY: Final[Mapping[Kind, str]] = {"pairs": "mrr@10", "triplets": "mrr@10", "queries": "ndcg@10"}


@dataclass(frozen=True)
class Rows:
    """A dataset in memory: canonical rows of one kind; for kind queries also the text of every document by its id."""

    kind: Kind
    rows: Sequence[Row]
    documents: Mapping[str, str] = field(default_factory=dict)

    def key(self, row: Row) -> str:
        """What decides on which side of a split the row stands."""
        text: str = row[KEY[self.kind]]
        return text

    def with_rows(self, rows: Sequence[Row]) -> "Rows":
        """The same dataset with other rows."""
        return Rows(self.kind, rows, self.documents)


class Texts:
    """The distinct texts of a task, numbered as they come; those encoded as queries and those encoded as documents."""

    def __init__(self) -> None:
        self._queries: dict[str, int] = {}
        self._documents: dict[str, int] = {}

    def query(self, text: str) -> int:
        return self._queries.setdefault(text, len(self._queries))

    def document(self, text: str) -> int:
        return self._documents.setdefault(text, len(self._documents))

    @property
    def queries(self) -> list[str]:
        return list(self._queries)

    @property
    def documents(self) -> list[str]:
        return list(self._documents)


@dataclass(frozen=True)
class Placed:
    """A test, and where its texts stand among all texts of the task. queries, documents: int64 indices."""

    test: Test
    queries: NDArray[np.int64]
    documents: NDArray[np.int64]

    def of(self, vectors: Vectors) -> Vectors:
        """The vectors of the test's own texts, from those of all of the task's."""
        return Vectors(vectors.queries[self.queries], vectors.documents[self.documents])


def examples_of(data: Rows, texts: Texts) -> Examples:
    """The rows as examples; equal ones count once. Raises TooFewExamples, UnknownDocument."""
    examples: Examples
    match data.kind:
        case "scored":
            examples = _scored_examples(data, texts)
        case "groups":
            examples = _group_examples(data, texts)
        case _:
            examples = _pair_examples(data, texts)
    if len(examples) < MIN_EXAMPLES:
        raise TooFewExamples("distinct examples to train on, without those held out", found=len(examples), needed=MIN_EXAMPLES)
    return examples


def test_of(data: Rows, *, known: Sequence[Rows], train: Rows, texts: Texts) -> Placed:
    """The rows of `data` as a test.

    known: datasets with the rows of every split; for retrieval their documents are the corpus, but for kind queries those that
    `data` names. What belongs to a test query in any of them, and is in the corpus, is relevant. train: for groups, the rows
    that the test's texts are compared with.
    """
    match data.kind:
        case "scored":
            return _scored_test(data, texts)
        case "groups":
            return _label_test(data, train, texts)
        case _:
            return _retrieval_test(data, known, texts)


def matches(data: Rows) -> Iterator[tuple[str, str]]:
    """Every (query text, text of a document that belongs to it). Raises UnknownDocument."""
    for row in data.rows:
        yield from _matches_of(data, row)


def pairs_of(data: Rows, row: Row) -> Iterator[tuple[str, str]]:
    """The pairs of texts that a row brings together; none for groups. Raises UnknownDocument."""
    if data.kind == "scored":
        yield row["sentence1"], row["sentence2"]
    elif data.kind != "groups":
        yield from _matches_of(data, row)


def _matches_of(data: Rows, row: Row) -> Iterator[tuple[str, str]]:
    if data.kind != "queries":
        yield row["anchor"], row["positive"]
        return
    for document in row["documents"]:
        if document not in data.documents:
            raise UnknownDocument(document, row["query"])
        yield row["query"], data.documents[document]


def _pair_examples(data: Rows, texts: Texts) -> PairExamples:
    # A pair that stands there twice counts once: a duplicate would only be masked, and weigh double.
    found: dict[tuple[int, int], dict[int, None]] = {
        (texts.query(query), texts.document(document)): {} for query, document in matches(data)
    }
    if data.kind == "triplets":
        for row in data.rows:
            query, positive = texts.query(row["anchor"]), texts.document(row["positive"])
            negatives = (texts.document(text) for text in row["negatives"])
            # What belongs to the query, by this row or another, is no negative of it.
            found[query, positive].update((negative, None) for negative in negatives if (query, negative) not in found)
    width = max((len(negatives) for negatives in found.values()), default=0)
    padded = [[*negatives, *[-1] * (width - len(negatives))] for negatives in found.values()]
    return PairExamples(
        np.asarray(list(found), dtype=np.int64).reshape(-1, 2), np.asarray(padded, dtype=np.int64).reshape(len(found), width)
    )


def _scored_examples(data: Rows, texts: Texts) -> ScoredExamples:
    # A pair that stands there twice, either way round, is one, with the mean of its scores (as in a guard).
    found: dict[tuple[int, int], list[float]] = {}
    for row in data.rows:
        one, other = texts.query(row["sentence1"]), texts.query(row["sentence2"])
        found.setdefault((other, one) if (other, one) in found else (one, other), []).append(row["score"])
    scores = [sum(given) / len(given) for given in found.values()]
    return ScoredExamples(np.asarray(list(found), dtype=np.int64).reshape(-1, 2), np.asarray(scores, dtype=np.float32))


def _group_examples(data: Rows, texts: Texts) -> GroupExamples:
    labels = {label: number for number, label in enumerate(sorted({row["label"] for row in data.rows}))}
    found = dict.fromkeys((texts.query(row["text"]), labels[row["label"]]) for row in data.rows)
    if len(labels) == 1:
        raise TooFewExamples("labels in the rows to train on", found=1, needed=2)
    pairs = np.asarray(list(found), dtype=np.int64).reshape(-1, 2)
    return GroupExamples(pairs[:, 0].copy(), pairs[:, 1].copy())


class _Own:
    """Numbers the texts of a test anew, from 0, and remembers which of the task's they are."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def __call__(self, number: int) -> int:
        return self._numbers.setdefault(number, len(self._numbers))

    def indices(self) -> NDArray[np.int64]:
        return np.asarray(list(self._numbers), dtype=np.int64)


def _retrieval_test(data: Rows, known: Sequence[Rows], texts: Texts) -> Placed:
    queries, documents = _Own(), _Own()
    relevant: dict[str, dict[int, None]] = {data.key(row): {} for row in data.rows}
    named = frozenset(data.documents.values()) if data.kind == "queries" else None  # the corpus, where the test names it
    for source in known:
        for query, document in matches(source):
            if named is not None and document not in named:
                continue
            position = documents(texts.document(document))
            if query in relevant:
                relevant[query][position] = None
        for text in _others(source):
            if named is None or text in named:
                documents(texts.document(text))
    numbers = [queries(texts.query(query)) for query in relevant]
    test = RetrievalTest(
        np.asarray(numbers, dtype=np.int64), [list(wanted) for wanted in relevant.values()], primary=_PRIMARY[data.kind]
    )
    return Placed(test, queries.indices(), documents.indices())


def _others(data: Rows) -> Iterator[str]:
    """Documents that belong to no query, and compete all the same."""
    yield from data.documents.values()
    if data.kind == "triplets":
        for row in data.rows:
            yield from row["negatives"]


def _scored_test(data: Rows, texts: Texts) -> Placed:
    own = _Own()
    examples = _scored_examples(data, texts)
    pairs = np.asarray([[own(a), own(b)] for a, b in examples.pairs.tolist()], dtype=np.int64).reshape(-1, 2)
    return Placed(ScoredTest(pairs, examples.scores), own.indices(), np.empty(0, dtype=np.int64))


def _label_test(data: Rows, train: Rows, texts: Texts) -> Placed:
    own = _Own()
    labels = {label: number for number, label in enumerate(sorted({row["label"] for row in (*train.rows, *data.rows)}))}

    def columns(rows: Sequence[Row]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = dict.fromkeys((own(texts.query(row["text"])), labels[row["label"]]) for row in rows)
        table = np.asarray(list(found), dtype=np.int64).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].copy()

    test = LabelTest(*columns(data.rows), *columns(train.rows))
    return Placed(test, own.indices(), np.empty(0, dtype=np.int64))
