"""Rows as indices of distinct texts: examples to train on, and tests that know their texts among all texts of a task."""

import numpy as np
import pytest

from zerogate import task_parts
from zerogate.errors import TooFewExamples, UnknownDocument
from zerogate.evaluation import RetrievalTest
from zerogate.examples import Row
from zerogate.label_test import LabelTest
from zerogate.scored_test import ScoredTest
from zerogate.task_parts import Placed, Rows, Texts, examples_of
from zerogate.training import GroupExamples, PairExamples, ScoredExamples
from zerogate.vectors import Vectors


def pairs(*found: tuple[str, str]) -> list[Row]:
    return [{"anchor": anchor, "positive": positive} for anchor, positive in found]


def triplet(anchor: str, positive: str, *negatives: str) -> Row:
    return {"anchor": anchor, "positive": positive, "negatives": list(negatives)}


def scored(*found: tuple[str, str, float]) -> list[Row]:
    return [{"sentence1": one, "sentence2": other, "score": score} for one, other, score in found]


def labelled(*found: tuple[str, str]) -> list[Row]:
    return [{"text": text, "label": label} for text, label in found]


def numbered(count: int) -> list[tuple[str, str]]:
    return [(f"q{n}", f"p{n}") for n in range(count)]


def retrieval_test(data: Rows, texts: Texts, *known: Rows) -> tuple[Placed, dict[str, list[str]], list[str]]:
    """The test, what is relevant, and what competes, as texts."""
    placed = task_parts.test_of(data, known=known or [data], train=data.with_rows([]), texts=texts)
    assert isinstance(placed.test, RetrievalTest)
    documents = [texts.documents[place] for place in placed.documents]
    wanted = {
        texts.queries[query]: [documents[place] for place in found]
        for query, found in zip(placed.queries[placed.test.queries].tolist(), placed.test.relevant, strict=True)
    }
    return placed, wanted, documents


def test_texts_are_numbered_as_they_come_once_for_each_side() -> None:
    texts = Texts()

    assert [texts.query(text) for text in ("a", "b", "a", "c")] == [0, 1, 0, 2]
    assert [texts.document(text) for text in ("b", "a", "b")] == [0, 1, 0]
    assert (texts.queries, texts.documents) == (["a", "b", "c"], ["b", "a"])


def test_pairs_become_indices_and_equal_ones_count_once() -> None:
    texts = Texts()
    found = [*numbered(8), ("q1", "p1"), ("q1", "p3"), ("q0", "p3")]

    examples = examples_of(Rows("pairs", pairs(*found)), texts)

    assert isinstance(examples, PairExamples)
    assert examples.pairs.tolist() == [*([n, n] for n in range(8)), [1, 3], [0, 3]]
    assert examples.negatives.shape == (10, 0)
    assert examples.pairs.dtype == examples.negatives.dtype == np.int64


def test_negatives_of_triplets_stay_with_their_pair_and_are_none_of_its_query_s_own_documents() -> None:
    texts = Texts()
    rows = [triplet(f"q{n}", f"p{n}", f"n{n}") for n in range(8)]
    # One row's negative that is another row's positive is no negative; n1 is, of another query.
    rows += [triplet("q0", "p0", "n0", "n0b"), triplet("q0", "p0b", "p0", "p0b", "n1"), triplet("q7", "n7", "p6")]

    examples = examples_of(Rows("triplets", rows), texts)

    assert isinstance(examples, PairExamples)
    found = {
        (texts.queries[query], texts.documents[positive]): [texts.documents[place] for place in negatives if place >= 0]
        for (query, positive), negatives in zip(examples.pairs.tolist(), examples.negatives.tolist(), strict=True)
    }
    assert found == {
        ("q0", "p0"): ["n0", "n0b"],
        ("q0", "p0b"): ["n1"],
        **{(f"q{n}", f"p{n}"): [f"n{n}"] for n in range(1, 7)},
        ("q7", "p7"): [],
        ("q7", "n7"): ["p6"],
    }
    assert [row.index(-1) if -1 in row else 2 for row in examples.negatives.tolist()] == [2, *[1] * 6, 0, 1, 1]


def test_negatives_of_triplets_compete_and_are_not_relevant() -> None:
    rows = Rows("triplets", [triplet("q", "p", "n1", "n2"), triplet("r", "n1", "n3")])

    placed, wanted, documents = retrieval_test(rows, Texts())

    assert wanted == {"q": ["p"], "r": ["n1"]}
    assert sorted(documents) == ["n1", "n2", "n3", "p"]
    assert placed.test.evaluate(Vectors(np.eye(4, dtype=np.float32)[:2], np.eye(4, dtype=np.float32))).primary == "mrr@10"


def test_documents_of_queries_are_found_by_their_texts() -> None:
    texts = Texts()
    rows: list[Row] = [{"query": f"q{n}", "documents": [f"id{n}", "id9"]} for n in range(8)]
    data = Rows("queries", rows, {**{f"id{n}": f"text {n}" for n in range(9)}, "id9": "text 3", "id10": "nobody's"})

    examples = examples_of(data, texts)
    _, wanted, documents = retrieval_test(data, texts)

    assert isinstance(examples, PairExamples)
    found = {(texts.queries[query], texts.documents[document]) for query, document in examples.pairs.tolist()}
    assert found == {(f"q{n}", text) for n in range(8) for text in (f"text {n}", "text 3")}
    assert len(examples) == 15  # q3 names two documents with one text
    assert wanted["q3"] == ["text 3"]
    assert wanted["q4"] == ["text 4", "text 3"]
    assert sorted(documents) == ["nobody's", *(f"text {n}" for n in range(9))]


def test_a_document_that_is_not_there_is_told_with_its_query() -> None:
    data = Rows("queries", [{"query": "asks", "documents": ["here", "nowhere"]}], {"here": "x"})

    with pytest.raises(UnknownDocument, match="'asks' names the document 'nowhere'"):
        examples_of(data, Texts())


def test_what_belongs_to_a_query_in_any_dataset_is_relevant_but_a_corpus_that_is_named_stays_as_it_is() -> None:
    ours = Rows("pairs", pairs(("q", "ours"), ("q", "theirs"), ("other", "x")))
    theirs = Rows("queries", [{"query": "q", "documents": ["1"]}], {"1": "named", "2": "theirs", "3": "nobody's"})
    more = Rows("pairs", pairs(("q", "more")))

    _, wanted, documents = retrieval_test(theirs, Texts(), ours, theirs)
    _, wanted_more, documents_more = retrieval_test(more, Texts(), ours, more)

    assert (wanted, sorted(documents)) == ({"q": ["theirs", "named"]}, ["named", "nobody's", "theirs"])
    assert (wanted_more, documents_more) == ({"q": ["ours", "theirs", "more"]}, ["ours", "theirs", "x", "more"])


def test_scored_pairs_that_stand_there_twice_are_one_with_the_mean_of_their_scores() -> None:
    texts = Texts()
    rows = scored(("a", "b", 0.25), *((one, other, 1.0) for one, other in numbered(7)), ("b", "a", 0.75), ("a", "b", 0.5))

    examples = examples_of(Rows("scored", rows), texts)

    assert isinstance(examples, ScoredExamples)
    assert [[texts.queries[place] for place in pair] for pair in examples.pairs] == [["a", "b"], *map(list, numbered(7))]
    assert examples.scores.tolist() == [0.5, *[1.0] * 7]
    assert examples.scores.dtype == np.float32


def test_a_test_of_scored_pairs_numbers_its_own_texts() -> None:
    texts = Texts()
    for text in ("others", "y", "more"):
        texts.query(text)
    data = Rows("scored", scored(("x", "y", 0.0), ("y", "z", 0.5), ("x", "z", 1.0)))

    placed = task_parts.test_of(data, known=[], train=data, texts=texts)

    rows = np.random.default_rng(1).normal(size=(len(texts.queries), 4)).astype(np.float32)
    place = {text: number for number, text in enumerate(texts.queries)}
    assert isinstance(placed.test, ScoredTest)
    own = placed.of(Vectors(rows, rows[:0])).queries
    for (one, other), pair in zip([("x", "y"), ("y", "z"), ("x", "z")], placed.test.pairs, strict=True):
        np.testing.assert_array_equal(own[pair], rows[[place[one], place[other]]])
    assert placed.test.scores.tolist() == [0.0, 0.5, 1.0]
    assert len(own) == 3


def test_labels_are_numbered_in_their_order_and_a_text_may_have_two() -> None:
    texts = Texts()
    rows = labelled(*((f"t{n}", "cab"[n % 3]) for n in range(8)), ("t0", "c"), ("t0", "a"))

    examples = examples_of(Rows("groups", rows), texts)

    assert isinstance(examples, GroupExamples)
    assert [texts.queries[text] for text in examples.texts] == [*(f"t{n}" for n in range(8)), "t0"]
    assert examples.labels.tolist() == [2, 0, 1, 2, 0, 1, 2, 0, 0]


def test_texts_of_groups_are_compared_with_what_is_trained_on() -> None:
    texts = Texts()
    train = Rows("groups", labelled(("a1", "a"), ("c1", "c"), ("a2", "a"), ("a1", "a")))
    data = Rows("groups", labelled(("new", "b"), ("t", "c"), ("t", "c"), ("u", "a")))

    placed = task_parts.test_of(data, known=[], train=train, texts=texts)

    test = placed.test
    assert isinstance(test, LabelTest)
    number = {"a": 0, "b": 1, "c": 2}
    names = [texts.queries[place] for place in placed.queries]
    assert [names[place] for place in test.texts] == ["new", "t", "u"]
    assert test.labels.tolist() == [number["b"], number["c"], number["a"]]
    assert [names[place] for place in test.reference_texts] == ["a1", "c1", "a2"]
    assert test.reference_labels.tolist() == [number["a"], number["c"], number["a"]]


@pytest.mark.parametrize("used", [3, 8])
def test_a_test_takes_the_vectors_of_its_own_texts_from_those_of_all(used: int) -> None:
    """What it scores is what a naive ranking by text scores."""
    draw = np.random.default_rng(used)
    texts = Texts()
    everything = Rows("pairs", pairs(*numbered(8)))
    examples_of(everything, texts)
    asked = everything.with_rows(everything.rows[8 - used :][::-1])

    placed, _, _ = retrieval_test(asked, texts, everything)
    queries, documents = (draw.normal(size=(8, 5)).astype(np.float32) for _ in range(2))

    found = placed.test.evaluate(placed.of(Vectors(queries, documents))).scores["mrr@10"]
    ranks = [1 + sum(queries[n] @ other > queries[n] @ documents[n] for other in documents) for n in range(8 - used, 8)]
    assert found == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_one_label_and_seven_examples_are_too_few() -> None:
    with pytest.raises(TooFewExamples, match="labels in the rows to train on: found 1, at least 2 are needed"):
        examples_of(Rows("groups", labelled(*((f"t{n}", "a") for n in range(20)))), Texts())
    with pytest.raises(TooFewExamples, match=r"distinct examples to train on.*: found 7, at least 8 are needed"):
        examples_of(Rows("pairs", pairs(*numbered(7), *numbered(7))), Texts())
