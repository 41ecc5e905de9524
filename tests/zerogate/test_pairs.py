"""Rows of pairs as a task: what is trained on, what is held out, and what competes."""

import random
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from zerogate.errors import TooFewExamples
from zerogate.pairs import PairTask, pair_task

Rows = list[dict[str, Any]]


def rows(*pairs: tuple[str, str], split: str | None = None) -> Rows:
    return [{"anchor": anchor, "positive": positive, **({"split": split} if split else {})} for anchor, positive in pairs]


def numbered(name: str, count: int, *, split: str | None = None) -> Rows:
    return rows(*((f"{name} question {number}", f"{name} answer {number}") for number in range(count)), split=split)


def pairs_of(some: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    return {(row["anchor"], row["positive"]) for row in some}


def trained(task: PairTask) -> list[tuple[str, str]]:
    return [(task.anchors[anchor], task.documents[document]) for anchor, document in task.train.tolist()]


def in_test(task: PairTask) -> dict[str, set[str]]:
    return {
        task.anchors[query]: {task.documents[document] for document in wanted}
        for query, wanted in zip(task.queries.tolist(), task.relevant, strict=True)
    }


def test_the_splits_of_the_rows_are_honoured() -> None:
    own = numbered("train", 10, split="train") + numbered("open", 5) + numbered("test", 4, split="test")

    task = pair_task(own)

    assert trained(task) == [(row["anchor"], row["positive"]) for row in own[:15]]
    assert in_test(task) == {row["anchor"]: {row["positive"]} for row in own[15:]}


def test_validation_rows_are_not_trained_on_but_compete() -> None:
    validation = numbered("validation", 3, split="validation")

    task = pair_task(numbered("train", 10, split="train") + validation + numbered("test", 4, split="test"))

    assert not pairs_of(validation) & set(trained(task))
    assert in_test(task).keys() == {f"test question {number}" for number in range(4)}
    assert {row["positive"] for row in validation} <= set(task.documents)


def test_validation_rows_are_the_test_where_there_is_none() -> None:
    task = pair_task(numbered("train", 10, split="train") + numbered("validation", 3, split="validation"))

    assert in_test(task).keys() == {f"validation question {number}" for number in range(3)}
    assert len(task.train) == 10


@pytest.mark.parametrize("split", [None, "train"])
def test_without_a_test_split_a_fifth_of_the_anchors_is_held_out(split: str | None) -> None:
    own = numbered("own", 2000, split=split)

    task = pair_task(own)

    assert 0.17 < len(task.queries) / 2000 < 0.23
    assert len(task.train) + len(task.queries) == 2000
    assert set(trained(task)) | {(anchor, next(iter(wanted))) for anchor, wanted in in_test(task).items()} == pairs_of(own)


def test_an_anchor_with_many_positives_is_held_out_whole_or_not_at_all() -> None:
    own = rows(*((f"question {number % 100}", f"answer {number}") for number in range(400)))

    task = pair_task(own)

    trained_anchors = {anchor for anchor, _ in trained(task)}
    assert not trained_anchors & in_test(task).keys()
    assert trained_anchors | in_test(task).keys() == {row["anchor"] for row in own}
    assert all(len(wanted) == 4 for wanted in in_test(task).values())


def test_the_held_out_anchors_depend_on_their_texts_alone() -> None:
    own = numbered("own", 200)
    mixed = random.Random(3).sample(own, len(own))

    first, second, third = (in_test(pair_task(some)) for some in (own, mixed, own + numbered("more", 100)))

    assert first == second
    assert first.items() <= third.items()


def test_a_test_anchor_is_never_trained_on_even_where_another_row_says_so() -> None:
    own = numbered("own", 12, split="train") + rows(("own question 3", "held out"), ("other", "answer"), split="test")

    task = pair_task(own)

    assert "own question 3" not in {anchor for anchor, _ in trained(task)}
    assert len(task.train) == 11
    # Both are known to answer it; counting the one of the other split as wrong would punish a version that finds it.
    assert in_test(task)["own question 3"] == {"held out", "own answer 3"}


def test_a_pair_that_stands_there_twice_counts_once() -> None:
    own = numbered("own", 10, split="train") * 3 + numbered("test", 3, split="test") * 2

    task = pair_task(own)

    assert len(trained(task)) == len(set(trained(task))) == 10
    assert task.relevant == [[10], [11], [12]]
    assert len(task.documents) == len(set(task.documents)) == 13
    assert len(task.anchors) == len(set(task.anchors)) == 13


def test_a_positive_of_several_anchors_is_one_document() -> None:
    own = rows(*((f"question {number}", "the answer") for number in range(9)), split="train") + numbered("test", 2, split="test")

    task = pair_task(own)

    assert task.documents.count("the answer") == 1
    assert set(task.train[:, 1].tolist()) == {task.documents.index("the answer")}


def test_the_corpus_is_every_distinct_positive_whatever_its_split() -> None:
    own = numbered("train", 10, split="train") + numbered("validation", 4, split="validation") + numbered("test", 3, split="test")

    task = pair_task([*own, *own[:5]])

    assert sorted(task.documents) == sorted({row["positive"] for row in own})


def test_all_positives_of_a_test_anchor_are_relevant() -> None:
    own = numbered("own", 10, split="train") + rows(("q", "one"), ("q", "two"), ("r", "two"), ("q", "three"), split="test")

    task = pair_task(own)

    assert in_test(task) == {"q": {"one", "two", "three"}, "r": {"two"}}
    assert len(task.queries) == 2


def test_an_evaluation_dataset_is_the_test() -> None:
    task = pair_task(numbered("own", 20), numbered("theirs", 5))

    assert len(task.train) == 20  # nothing of our own is held out
    assert in_test(task) == {f"theirs question {number}": {f"theirs answer {number}"} for number in range(5)}
    assert len(task.documents) == 25


def test_of_an_evaluation_dataset_with_a_test_split_only_that_is_the_test() -> None:
    theirs = numbered("theirs", 6, split="train") + numbered("held out", 3, split="test")

    task = pair_task(numbered("own", 20), theirs)

    assert in_test(task).keys() == {f"held out question {number}" for number in range(3)}


def test_an_anchor_of_the_evaluation_dataset_is_not_trained_on() -> None:
    theirs = rows(("own question 4", "another answer"), ("own question 5", "own answer 5"))

    task = pair_task(numbered("own", 20, split="train"), theirs)

    assert len(task.train) == 18
    assert in_test(task) == {"own question 4": {"another answer", "own answer 4"}, "own question 5": {"own answer 5"}}


def test_with_an_evaluation_dataset_own_test_and_validation_rows_are_still_not_trained_on() -> None:
    own = numbered("own", 10, split="train") + numbered("val", 3, split="validation") + numbered("test", 3, split="test")

    task = pair_task(own, numbered("theirs", 5))

    assert set(trained(task)) == pairs_of(own[:10])


def test_rows_may_come_from_an_iterator() -> None:
    assert trained(pair_task(iter(numbered("own", 50)))) == trained(pair_task(numbered("own", 50)))


def test_too_few_pairs_to_train_on_are_told_with_their_number() -> None:
    own = numbered("own", 7, split="train") + numbered("test", 5, split="test")

    with pytest.raises(TooFewExamples, match=r"pairs to train on .*: found 7, at least 8 are needed") as caught:
        pair_task(own)

    assert (caught.value.found, caught.value.needed) == (7, 8)


def test_pairs_lost_to_the_test_and_duplicates_are_not_counted() -> None:
    own = numbered("own", 8, split="train") * 4 + rows(("own question 0", "x"), ("other", "y"), split="test")

    with pytest.raises(TooFewExamples, match=r"without those whose anchor is in the test.*: found 7"):
        pair_task(own)


def test_too_few_test_anchors_are_told_with_their_number() -> None:
    own = numbered("own", 20, split="train") + rows(("q", "one"), ("q", "two"), split="test")

    with pytest.raises(TooFewExamples, match="distinct anchors to test on: found 1, at least 2 are needed"):
        pair_task(own)


@pytest.mark.parametrize("evaluation", [None, []])
def test_no_rows_are_too_few(evaluation: Rows | None) -> None:
    with pytest.raises(TooFewExamples, match="found 0"):
        pair_task([], evaluation)
