"""Datasets as tasks: what is trained on, what is held out, what competes, and what chooses a recipe."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from zerogate.errors import TooFewExamples, UnknownDocument, ZerogateError
from zerogate.evaluation import RetrievalTest
from zerogate.examples import Kind, Row
from zerogate.label_test import LabelTest
from zerogate.scored_test import ScoredTest
from zerogate.task_parts import KEY, Placed, Rows
from zerogate.tasks import Task, judges, make_task
from zerogate.training import Examples, GroupExamples, PairExamples

KINDS: tuple[Kind, ...] = ("pairs", "triplets", "queries", "scored", "groups")
RETRIEVAL: tuple[Kind, ...] = ("pairs", "triplets", "queries")


def pairs(*found: tuple[str, str], split: str | None = None) -> list[Row]:
    return [{"anchor": anchor, "positive": positive, **in_split(split)} for anchor, positive in found]


def in_split(split: str | None) -> dict[str, str]:
    return {"split": split} if split else {}


def numbered(name: str, count: int, *, split: str | None = None) -> list[Row]:
    return pairs(*((f"{name} question {number}", f"{name} answer {number}") for number in range(count)), split=split)


def texts_with_labels(name: str, count: int, labels: str = "ab", *, split: str | None = None) -> list[Row]:
    return [{"text": f"{name} {n}", "label": labels[n % len(labels)], **in_split(split)} for n in range(count)]


def scored(*found: tuple[str, str, float], split: str | None = None) -> list[Row]:
    return [{"sentence1": one, "sentence2": other, "score": score, **in_split(split)} for one, other, score in found]


def drawn(kind: Kind, seed: int, keys: int, *, splits: Iterable[str | None]) -> Rows:
    """A dataset with some of everything: keys and documents that repeat, in every split, and equal rows."""
    draw, possible, rows = random.Random(seed), list(splits), list[Row]()
    documents = {f"id {n}": f"document {n % max(1, keys // 2)}" for n in range(keys + 2)}
    for _ in range(round(1.5 * keys)):
        key = f"text {draw.randrange(keys)}"
        row: dict[str, Any] = {KEY[kind]: key} | in_split(draw.choice(possible))
        if kind == "queries":
            row["documents"] = draw.sample(sorted(documents), draw.randint(1, 3))
        elif kind == "scored":
            row |= {"sentence2": f"text {draw.randrange(keys)}", "score": draw.random()}
        elif kind == "groups":
            row["label"] = draw.choice("abc")
        else:
            row["positive"] = f"document {draw.randrange(keys)}"
            if kind == "triplets":
                row["negatives"] = [f"document {draw.randrange(2 * keys)}" for _ in range(draw.randint(1, 3))]
        rows.append(row)
    return Rows(kind, rows, documents if kind == "queries" else {})


def known(data: Rows) -> list[tuple[str, str]]:
    """What belongs together, by the rows of a dataset for retrieval."""
    if data.kind != "queries":
        return [(row["anchor"], row["positive"]) for row in data.rows]
    return [(row["query"], data.documents[name]) for row in data.rows for name in row["documents"]]


def all_documents(data: Rows) -> set[str]:
    given_negatives = {text for row in data.rows for text in row.get("negatives", ())}
    return {document for _, document in known(data)} | set(data.documents.values()) | given_negatives


def trained_pairs(task: Task, examples: Examples) -> list[tuple[str, str]]:
    """The pairs that examples hold, as texts; for groups each text with the number of its label."""
    if isinstance(examples, GroupExamples):
        return [
            (task.queries[text], str(label))
            for text, label in zip(examples.texts.tolist(), examples.labels.tolist(), strict=True)
        ]
    others = task.documents if isinstance(examples, PairExamples) else task.queries
    return [(task.queries[one], others[other]) for one, other in examples.pairs.tolist()]


def trained_keys(task: Task, examples: Examples) -> set[str]:
    return {one for one, _ in trained_pairs(task, examples)}


def keys_of(task: Task, placed: Placed) -> set[str]:
    match placed.test:
        case RetrievalTest(queries=rows) | LabelTest(texts=rows):
            return {task.queries[place] for place in placed.queries[rows]}
        case ScoredTest(pairs=found):
            return {task.queries[place] for place in placed.queries[found[:, 0]]}
    raise AssertionError(placed.test)


def relevant(task: Task, placed: Placed) -> dict[str, list[str]]:
    assert isinstance(placed.test, RetrievalTest)
    return {
        task.queries[query]: sorted(task.documents[place] for place in placed.documents[wanted])
        for query, wanted in zip(placed.queries[placed.test.queries].tolist(), placed.test.relevant, strict=True)
    }


def corpus(task: Task, placed: Placed) -> list[str]:
    return [task.documents[place] for place in placed.documents]


def scored_in(task: Task, placed: Placed) -> dict[tuple[str, str], float]:
    test = placed.test
    assert isinstance(test, ScoredTest)
    named = [(task.queries[one], task.queries[other]) for one, other in placed.queries[test.pairs].tolist()]
    return dict(zip(named, test.scores.tolist(), strict=True))


def task_of(data: Rows, evaluation: Rows | None = None) -> Task:
    """The task; a dataset that happens to leave too little to train on is not what is asked about."""
    try:
        return make_task(data, evaluation)
    except TooFewExamples:
        reject()


# What holds for every dataset


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    keys=st.integers(60, 130),
    splits=st.sampled_from(
        [(None,), ("train", None), ("train", "test"), ("train", "train", "validation"), ("train", "validation", "test")]
    ),
)
def test_nothing_that_is_tested_is_trained_on(kind: Kind, seed: int, keys: int, splits: tuple[str | None, ...]) -> None:
    task = task_of(drawn(kind, seed, keys, splits=splits))

    tested = keys_of(task, task.test)
    everything = trained_keys(task, task.train)
    assert tested
    assert not tested & everything
    for fold in task.folds:
        held_out, part = keys_of(task, fold.validation), trained_keys(task, fold.part)
        assert held_out
        assert not held_out & part
        assert not held_out & tested
        assert part <= everything
    for one, other in trained_pairs(task, task.train):
        assert kind == "groups" or (other, one) not in known_in_test(task)


def known_in_test(task: Task) -> set[tuple[str, str]]:
    if isinstance(task.test.test, ScoredTest):
        return set(scored_in(task, task.test))
    return {(query, document) for query, wanted in relevant(task, task.test).items() for document in wanted}


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(RETRIEVAL),
    other=st.sampled_from((None, *RETRIEVAL)),
    seed=st.integers(0, 10**6),
    keys=st.integers(60, 120),
)
def test_all_that_is_known_is_relevant_and_all_documents_compete(kind: Kind, other: Kind | None, seed: int, keys: int) -> None:
    data = drawn(kind, seed, keys, splits=("train", None, *(("validation", "test") if seed % 2 else ())))
    evaluation = None if other is None else drawn(other, seed + 1, keys // 3, splits=(None, "test"))

    task = task_of(data, evaluation)

    competing = all_documents(data) | (all_documents(evaluation) if evaluation else set())
    if evaluation and evaluation.kind == "queries":
        competing = set(evaluation.documents.values())
    found = corpus(task, task.test)
    assert set(found) == competing
    assert len(found) == len(set(found))
    said = set(known(data)) | set(known(evaluation) if evaluation else ())
    assert relevant(task, task.test) == {
        query: sorted(document for one, document in said if one == query and document in competing)
        for query in keys_of(task, task.test)
    }
    for fold in task.folds:
        assert set(corpus(task, fold.validation)) == all_documents(data)
        for query, wanted in relevant(task, fold.validation).items():
            assert wanted == sorted({document for one, document in known(data) if one == query})


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), keys=st.integers(60, 120))
def test_folds_share_no_key_and_train_on_all_others(kind: Kind, seed: int, keys: int) -> None:
    task = task_of(drawn(kind, seed, keys, splits=("train", None)))

    held_out = [keys_of(task, fold.validation) for fold in task.folds]
    everything = trained_texts(task, task.train)
    assert max(Counter(key for keys in held_out for key in keys).values(), default=1) == 1
    for fold, keys_of_fold in zip(task.folds, held_out, strict=True):
        assert keys_of_fold < {text for texts in everything for text in texts}
        assert trained_texts(task, fold.part) >= {texts for texts in everything if not texts & keys_of_fold}


def trained_texts(task: Task, examples: Examples) -> set[frozenset[str]]:
    """Each example's texts; for groups the one that it has."""
    found = trained_pairs(task, examples)
    return {frozenset(pair[:1] if isinstance(examples, GroupExamples) else pair) for pair in found}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_make_the_same_task_and_their_order_does_not_say_what_is_held_out(kind: Kind) -> None:
    data = drawn(kind, 3, 150, splits=(None,))
    mixed = data.with_rows(random.Random(1).sample(list(data.rows), len(data.rows)))

    first, again, other = make_task(data), make_task(data), make_task(mixed)

    assert (first.queries, first.documents) == (again.queries, again.documents)
    assert trained_pairs(first, first.train) == trained_pairs(again, again.train)
    np.testing.assert_array_equal(first.test.queries, again.test.queries)
    assert keys_of(first, first.test) == keys_of(other, other.test)
    assert len(first.folds) == len(other.folds) > 0
    for one, two in zip(first.folds, other.folds, strict=True):
        assert keys_of(first, one.validation) == keys_of(other, two.validation)


@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_leave_held_out_what_was_held_out(kind: Kind) -> None:
    data, more = drawn(kind, 3, 100, splits=(None,)), drawn(kind, 4, 140, splits=(None,))

    small, large = make_task(data), make_task(Rows(kind, [*data.rows, *more.rows], {**more.documents, **data.documents}))

    assert keys_of(small, small.test) <= keys_of(large, large.test)


# Splits


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_of_the_rows_are_honoured(kind: Kind) -> None:
    rows = {split: drawn_rows(kind, split, 40) for split in ("train", "validation", "test")}
    documents = {name: f"text of {name}" for part in rows.values() for row in part for name in row.get("documents", ())}

    task = make_task(Rows(kind, [*rows["train"], *rows["validation"], *rows["test"]], documents))

    (fold,) = task.folds
    assert trained_keys(task, task.train) == trained_keys(task, fold.part) == {row[KEY[kind]] for row in rows["train"]}
    assert keys_of(task, fold.validation) == {row[KEY[kind]] for row in rows["validation"]}
    assert keys_of(task, task.test) == {row[KEY[kind]] for row in rows["test"]}


def drawn_rows(kind: Kind, split: str, count: int) -> list[Row]:
    rows: list[Row] = []
    for n in range(count):
        row: Row = {KEY[kind]: f"{split} {n}", "split": split}
        match kind:
            case "queries":
                row["documents"] = [f"{split} document {n}"]
            case "scored":
                row |= {"sentence2": f"{split} other {n}", "score": n / count}
            case "groups":
                row["label"] = "ab"[n % 2]
            case _:
                row |= {"positive": f"{split} answer {n}", "negatives": [f"{split} wrong {n}"]}
        rows.append(row)
    return rows


def test_validation_rows_are_the_test_where_there_is_none_and_folds_choose() -> None:
    task = make_task(Rows("pairs", numbered("train", 100, split="train") + numbered("validation", 3, split="validation")))

    assert keys_of(task, task.test) == {f"validation question {number}" for number in range(3)}
    assert len(task.train) == 100
    assert task.folds
    assert all(key.startswith("train") for fold in task.folds for key in keys_of(task, fold.validation))


@pytest.mark.parametrize("split", [None, "train"])
def test_without_other_splits_a_fifth_of_the_keys_is_held_out(split: str | None) -> None:
    own = numbered("own", 2000, split=split)

    task = make_task(Rows("pairs", own))

    tested = relevant(task, task.test)
    assert 0.17 < len(tested) / 2000 < 0.23
    held_out = [(anchor, wanted[0]) for anchor, wanted in tested.items()]
    assert sorted(trained_pairs(task, task.train) + held_out) == sorted(known(Rows("pairs", own)))


def test_a_key_with_many_rows_is_held_out_whole_or_not_at_all() -> None:
    own = pairs(*((f"question {number % 100}", f"answer {number}") for number in range(400)))

    task = make_task(Rows("pairs", own))

    tested = relevant(task, task.test)
    assert trained_keys(task, task.train) | tested.keys() == {row["anchor"] for row in own}
    assert all(len(wanted) == 4 for wanted in tested.values())


def test_a_key_of_the_test_is_never_trained_on_even_where_another_row_says_so() -> None:
    own = numbered("own", 12, split="train") + pairs(("own question 3", "held out"), ("other", "answer"), split="test")

    task = make_task(Rows("pairs", own))

    assert "own question 3" not in trained_keys(task, task.train)
    assert len(task.train) == 11
    # Both are known to answer it; counting the one of the other split as wrong would punish a version that finds it.
    assert relevant(task, task.test)["own question 3"] == ["held out", "own answer 3"]


def test_a_key_that_is_trained_on_chooses_nothing() -> None:
    validation = numbered("own", 2, split="validation") + numbered("validation", 12, split="validation")

    task = make_task(Rows("pairs", numbered("own", 20, split="train") + validation + numbered("test", 4, split="test")))

    assert keys_of(task, task.folds[0].validation) == {f"validation question {number}" for number in range(12)}


@pytest.mark.parametrize("kind", ["pairs", "scored"])
def test_what_repeats_a_pair_of_the_test_the_other_way_round_is_not_trained_on(kind: Kind) -> None:
    names = {"pairs": ("anchor", "positive"), "scored": ("sentence1", "sentence2")}[kind]
    found = [("b", "a", "train"), ("c", "a", "train"), ("a", "b", "test"), ("x", "y", "test")]
    found += [(f"one {n}", f"other {n}", "train") for n in range(10)]
    rows = [{names[0]: one, names[1]: other, "score": 0.5, "split": split} for one, other, split in found]

    task = make_task(Rows(kind, rows))

    assert trained_keys(task, task.train) == {"c", *(f"one {n}" for n in range(10))}


def test_of_much_data_at_least_one_fold_chooses_and_the_more_data_the_fewer() -> None:
    counts = [len(make_task(Rows("pairs", numbered("own", size))).folds) for size in (500, 2000, 6000)]

    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] >= 1


def test_large_folds_are_capped_as_well() -> None:
    task = make_task(Rows("pairs", numbered("own", 14_000)))

    (fold,) = task.folds
    assert fold.validation.test.size == 2_000 < (len(task.train) - len(fold.part)) * 0.95


def test_many_validation_keys_are_capped_to_the_same_ones_each_time() -> None:
    own = numbered("train", 100, split="train") + numbered("validation", 2100, split="validation")
    own += numbered("test", 5, split="test")

    first, second = (make_task(Rows("pairs", rows)) for rows in (own, own[::-1]))

    chosen = keys_of(first, first.folds[0].validation)
    assert 100 <= len(chosen) < 2100
    assert chosen == keys_of(second, second.folds[0].validation)


def test_of_few_keys_at_least_two_are_held_out() -> None:
    for name in ("own", "their", "a", "b", "c", "d", "e", "f"):  # by chance alone, 14 keys would leave fewer in every fifth case
        task = make_task(Rows("pairs", numbered(name, 14)))

        assert 2 <= task.test.test.size <= 6
        assert task.test.test.size + len(task.train) == 14


def test_tiny_data_have_no_folds() -> None:
    task = make_task(Rows("pairs", numbered("own", 30)))

    assert task.folds == ()
    assert len(task.train) + task.test.test.size == 30


def test_labels_that_one_fold_holds_alone_are_no_reason_to_refuse_the_data() -> None:
    many = [{"text": f"text {n}", "label": "a"} for n in range(200)]
    for n in range(10):  # wherever the one text of label b is: in the test there would be a single label to train on
        rows = [*many, {"text": f"rare {n}", "label": "b", "split": "train"}, *texts_with_labels("test", 4, split="test")]

        task = make_task(Rows("groups", rows))

        assert isinstance(task.train, GroupExamples)
        assert Counter(task.train.labels.tolist()) == {0: 200, 1: 1}
        for fold in task.folds:
            assert set(labels_in(fold.part)) == {0, 1}


def labels_in(examples: Examples) -> list[int]:
    assert isinstance(examples, GroupExamples)
    labels: list[int] = examples.labels.tolist()
    return labels


# Evaluation datasets


def test_an_evaluation_dataset_is_the_test_and_nothing_else_is_held_out_of_the_training() -> None:
    own = numbered("own", 20) + numbered("kept", 5, split="train")
    task = make_task(Rows("pairs", own), Rows("pairs", numbered("theirs", 5)))

    assert trained_pairs(task, task.train) == known(Rows("pairs", own))
    assert relevant(task, task.test) == {f"theirs question {number}": [f"theirs answer {number}"] for number in range(5)}


def test_of_an_evaluation_dataset_with_a_test_split_only_that_is_the_test() -> None:
    theirs = numbered("theirs", 6, split="train") + numbered("held out", 3, split="test")

    task = make_task(Rows("pairs", numbered("own", 20)), Rows("pairs", theirs))

    assert keys_of(task, task.test) == {f"held out question {number}" for number in range(3)}


def test_with_an_evaluation_dataset_own_test_rows_do_nothing_and_own_validation_rows_choose() -> None:
    own = numbered("own", 10, split="train") + numbered("val", 12, split="validation") + numbered("test", 3, split="test")

    task = make_task(Rows("pairs", own), Rows("pairs", numbered("theirs", 5)))

    assert trained_pairs(task, task.train) == known(Rows("pairs", own[:10]))
    assert keys_of(task, task.folds[0].validation) == {f"val question {number}" for number in range(12)}
    assert not any(key.startswith("test") for key in keys_of(task, task.test))


def test_a_key_of_the_evaluation_dataset_is_neither_trained_on_nor_does_it_choose() -> None:
    own = numbered("own", 20, split="train") + numbered("val", 12, split="validation")
    theirs = pairs(("own question 4", "another answer"), ("own question 5", "own answer 5"), ("val question 6", "x"))

    task = make_task(Rows("pairs", own), Rows("pairs", theirs))

    assert len(task.train) == 18
    assert relevant(task, task.test) == {
        "own question 4": ["another answer", "own answer 4"],
        "own question 5": ["own answer 5"],
        "val question 6": ["val answer 6", "x"],
    }
    assert "val question 6" not in keys_of(task, task.folds[0].validation)


def test_an_evaluation_of_kind_queries_names_the_corpus() -> None:
    own = numbered("own", 20) + pairs(("asked", "known to us"), ("asked", "known to both"))
    documents = {"1": "theirs", "2": "known to both", "3": "nobody's", "4": "theirs"}
    theirs = [{"query": "asked", "documents": ["1"]}, {"query": "asked too", "documents": ["4", "1"]}]

    task = make_task(Rows("pairs", own), Rows("queries", theirs, documents))

    assert sorted(corpus(task, task.test)) == ["known to both", "nobody's", "theirs"]
    assert relevant(task, task.test) == {"asked": ["known to both", "theirs"], "asked too": ["theirs"]}
    assert isinstance(task.test.test, RetrievalTest)
    assert task.test.test.primary == "ndcg@10"


def test_an_evaluation_of_kind_pairs_competes_with_all_documents_of_a_dataset_of_queries() -> None:
    rows = [{"query": f"query {n}", "documents": [f"{n}"]} for n in range(20)]
    documents = {str(n): f"document {n}" for n in range(25)}

    task = make_task(Rows("queries", rows, documents), Rows("pairs", pairs(("query 3", "new"), ("new query", "document 7"))))

    assert set(corpus(task, task.test)) == {*documents.values(), "new"}
    assert relevant(task, task.test) == {"query 3": ["document 3", "new"], "new query": ["document 7"]}
    assert isinstance(task.test.test, RetrievalTest)
    assert task.test.test.primary == "mrr@10"


@pytest.mark.parametrize("kind", KINDS)
def test_scored_pairs_judge_every_kind(kind: Kind) -> None:
    data = drawn(kind, 5, 100, splits=("train",))
    judging = scored(("text 1", "new", 0.25), ("x", "y", 0.75), ("y", "x", 0.25))

    task = make_task(data, Rows("scored", judging))

    assert scored_in(task, task.test) == {("text 1", "new"): 0.25, ("x", "y"): 0.5}
    assert "text 1" not in trained_keys(task, task.train)
    for fold in task.folds:  # what chooses is of the dataset's own kind
        assert isinstance(fold.validation.test, {"scored": ScoredTest, "groups": LabelTest}.get(kind, RetrievalTest))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("evaluation", [*KINDS, "documents"])
def test_an_evaluation_that_cannot_judge_is_refused(kind: Kind, evaluation: Kind) -> None:
    retrieves = {"pairs", "triplets", "queries"}
    can = evaluation == "scored" or {kind, evaluation} <= retrieves or (kind == "groups" and evaluation == "groups")

    assert judges(kind, evaluation) is can
    if not can:
        with pytest.raises(ZerogateError, match=f"kind {evaluation} cannot judge what is trained on kind {kind}"):
            make_task(drawn(kind, 1, 60, splits=(None,)), Rows(evaluation, [{"id": "1"}]))


def test_an_id_without_a_document_is_refused_wherever_it_stands() -> None:
    rows = [{"query": f"query {n}", "documents": [str(n)], "split": "train"} for n in range(20)]
    documents = {str(n): f"document {n}" for n in range(20)}

    for split in ("train", "validation", "test"):
        wrong: list[Row] = [*rows, {"query": "wrong", "documents": ["3", "nowhere"], "split": split}]
        with pytest.raises(UnknownDocument, match=r"'wrong' names the document 'nowhere'"):
            make_task(Rows("queries", wrong, documents), None)
    with pytest.raises(UnknownDocument, match=r"'theirs' names the document 'nowhere'"):
        make_task(Rows("pairs", numbered("own", 20)), Rows("queries", [{"query": "theirs", "documents": ["nowhere"]}]))


# Too little


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_examples_are_told_with_their_number(kind: Kind) -> None:
    documents = {f"{split} document {n}": f"{split} {n}" for split in ("train", "test") for n in range(9)}
    rows = [*drawn_rows(kind, "train", 7), *drawn_rows(kind, "test", 5)]

    with pytest.raises(TooFewExamples, match=r"examples to train on.*: found 7, at least 8 are needed") as caught:
        make_task(Rows(kind, rows, documents))

    assert (caught.value.found, caught.value.needed) == (7, 8)
    assert len(make_task(Rows(kind, [*rows, *drawn_rows(kind, "train", 8)], documents)).train) == 8


def test_rows_lost_to_the_test_and_duplicates_are_not_counted() -> None:
    own = numbered("own", 8, split="train") * 4 + pairs(("own question 0", "x"), ("other", "y"), split="test")

    with pytest.raises(TooFewExamples, match=r"without those held out: found 7"):
        make_task(Rows("pairs", own))


def test_too_few_test_items_are_told_with_their_number() -> None:
    own = numbered("own", 20, split="train") + pairs(("q", "one"), ("q", "two"), split="test")

    with pytest.raises(TooFewExamples, match="distinct items to test on: found 1, at least 2 are needed"):
        make_task(Rows("pairs", own))


def test_one_label_is_nothing_to_train_on() -> None:
    with pytest.raises(TooFewExamples, match="labels in the rows to train on: found 1, at least 2 are needed"):
        make_task(Rows("groups", texts_with_labels("own", 60, "a")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("evaluation", [None, []])
def test_no_rows_are_too_few(kind: Kind, evaluation: list[Row] | None) -> None:
    with pytest.raises(TooFewExamples, match="found 0"):
        make_task(Rows(kind, []), None if evaluation is None else Rows(kind, evaluation))


def test_documents_alone_are_no_task() -> None:
    with pytest.raises(ZerogateError, match="kind documents has nothing to train on"):
        make_task(Rows("documents", [{"id": "1", "text": "one"}]))
