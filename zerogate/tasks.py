"""A dataset as a task: distinct texts, examples to train on, folds to choose a recipe by, and a held-out test.

The unit of every split is the *key* of a row: its anchor, query, first sentence or text. A key of the test is never trained on,
nor is one of its pairs the other way round.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from zerogate.errors import TooFewExamples, ZerogateError
from zerogate.examples import Kind, Row
from zerogate.task_parts import Placed, Rows, Texts, examples_of, pairs_of, test_of
from zerogate.training import Examples

MIN_TEST_ITEMS: Final = 2
# Where a dataset names no split, every fifth key is held out; so is every fifth of the rest for choosing a recipe.
_FOLDS: Final = 5
_MIN_VALIDATION_KEYS: Final = 10
# Small validation parts are noisy, and small fits cost next to nothing: below these numbers of keys more folds take part.
_FOLDS_USED: Final = ((1_000, 5), (2_000, 2))
# More queries than this tell nothing new about a recipe, and every trial would have to rank them all.
_MAX_VALIDATION_KEYS: Final = 2_000
_RETRIEVAL: Final = ("pairs", "triplets", "queries")


@dataclass(frozen=True)
class Fold:
    """A part of the training examples to fit on, and the test that the others make."""

    part: Examples
    validation: Placed


@dataclass(frozen=True)
class Task:
    """queries and documents: distinct texts, by the role in which they are encoded; scored and groups have no documents.

    folds: empty where the dataset is too small to choose anything by.
    """

    kind: Kind
    queries: list[str]
    documents: list[str]
    train: Examples
    folds: tuple[Fold, ...]
    test: Placed


def judges(kind: Kind, evaluation: Kind) -> bool:
    """Whether a dataset of kind `evaluation` can judge what was trained on one of `kind`."""
    return evaluation == "scored" or (kind in _RETRIEVAL and evaluation in _RETRIEVAL) or kind == evaluation == "groups"


def make_task(data: Rows, evaluation: Rows | None = None) -> Task:
    """Split a dataset into training, folds and test.

    With `evaluation` its rows are the test (those of split test, if it has any) and all rows of `data` that are of split train
    or of none train; else the rows of split test are held out; else those of split validation; else every fifth key, chosen by
    its digest. Rows of split validation that are not the test choose the recipe; without any, folds of the training rows do.
    Everything that is known to belong to a test query is relevant, from whichever split, and all documents of both datasets
    compete; with an evaluation of kind queries just those that it names as its corpus.
    Raises TooFewExamples, UnknownDocument, ZerogateError for kind documents and for an evaluation of a kind that cannot judge.
    """
    if data.kind == "documents":
        raise ZerogateError("a dataset of kind documents has nothing to train on")
    train, validation, test = _split(data, evaluation)
    texts = Texts()
    examples = examples_of(train, texts)
    known = [data] if evaluation is None else [data, evaluation]
    placed = test_of(test, known=known, train=train, texts=texts)
    if placed.test.size < MIN_TEST_ITEMS:
        raise TooFewExamples("distinct items to test on", found=placed.test.size, needed=MIN_TEST_ITEMS)
    folds = tuple(_folds(data, train, validation, texts))
    return Task(data.kind, texts.queries, texts.documents, examples, folds, placed)


def _split(data: Rows, evaluation: Rows | None) -> tuple[Rows, Rows, Rows]:
    """Training, validation (may be empty) and test."""
    by_split: dict[str | None, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in data.rows:
        by_split[row.get("split") or "train"].append(row)
    train, validation, test = (data.with_rows(by_split[name]) for name in ("train", "validation", "test"))
    if evaluation is not None:
        if not judges(data.kind, evaluation.kind):
            raise ZerogateError(f"a dataset of kind {evaluation.kind} cannot judge what is trained on kind {data.kind}")
        test = evaluation.with_rows([row for row in evaluation.rows if row.get("split") == "test"] or evaluation.rows)
    elif not test.rows:
        test, validation = (validation, data.with_rows([])) if validation.rows else (_every_fifth(train, 0), validation)
    train = _without(train, test)
    return train, _without(_without(validation, test), train), test


def _folds(data: Rows, train: Rows, validation: Rows, texts: Texts) -> Iterator[Fold]:
    if validation.rows:
        yield Fold(examples_of(train, texts), test_of(_capped(validation), known=[data], train=train, texts=texts))
        return
    keys = len(_keys(train))
    used = next((folds for below, folds in _FOLDS_USED if keys < below), 1)
    for number in range(1, 1 + used):
        held_out = _every_fifth(train, number)
        part = _without(train, held_out)
        if len(_keys(held_out)) < _MIN_VALIDATION_KEYS:
            return
        try:
            examples = examples_of(part, texts)
        except TooFewExamples:  # or too few labels: all texts of one may be in one fold
            return
        yield Fold(examples, test_of(_capped(held_out), known=[data], train=part, texts=texts))


def _keys(data: Rows) -> set[str]:
    return {data.key(row) for row in data.rows}


def _without(data: Rows, held_out: Rows) -> Rows:
    """The rows that share no key with those held out, and repeat none of their pairs the other way round.

    Where both sides are encoded alike, (b, a) trains just what (a, b) asks.
    """
    keys = _keys(held_out)
    turned = {(other, one) for row in held_out.rows for one, other in pairs_of(held_out, row)}
    return data.with_rows([row for row in data.rows if data.key(row) not in keys and turned.isdisjoint(pairs_of(data, row))])


def _every_fifth(data: Rows, number: int) -> Rows:
    """The rows whose key falls into fold `number`: 0 is the test; 1 to 5 divide what the test leaves."""
    if number == 0:
        smallest = sorted(_digest("", key) for key in _keys(data))[:MIN_TEST_ITEMS]  # of few keys chance may leave none
        limit = max([2**32 // _FOLDS - 1, *smallest])
        return data.with_rows([row for row in data.rows if _digest("", data.key(row)) <= limit])
    return data.with_rows([row for row in data.rows if _digest("fold:", data.key(row)) % _FOLDS == number - 1])


def _capped(data: Rows) -> Rows:
    keys = sorted(_keys(data), key=lambda key: _digest("cap:", key))
    kept = set(keys[:_MAX_VALIDATION_KEYS])
    return data if len(kept) == len(keys) else data.with_rows([row for row in data.rows if data.key(row) in kept])


def _digest(salt: str, key: str) -> int:
    return int.from_bytes(hashlib.sha256((salt + key).encode()).digest()[:4], "big")
