"""Accuracy by class centroid and by nearest text, against loops in Python and scikit-learn."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from zerogate import evaluation
from zerogate.errors import TooFewExamples
from zerogate.label_test import LabelTest
from zerogate.vectors import Vectors

Matrix = NDArray[np.float32]


def unit(rows: NDArray[np.floating]) -> Matrix:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors_of(rows: Matrix) -> Vectors:
    return Vectors(rows, rows[:0])


def at_angles(*degrees: float) -> Vectors:
    radians = np.radians(degrees)
    return vectors_of(np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32))


def label_test(texts: list[int], labels: list[int], reference_texts: list[int], reference_labels: list[int]) -> LabelTest:
    return LabelTest(*(np.asarray(row, dtype=np.int64) for row in (texts, labels, reference_texts, reference_labels)))


def classes(*, labels: int, texts: int, spread: float, seed: int) -> tuple[Matrix, NDArray[np.int64]]:
    """Texts scattered around one direction for each label. The labels are not 0, 1, 2, ..."""
    draw = np.random.default_rng(seed)
    which = draw.integers(labels, size=texts)
    return unit(draw.normal(size=(labels, 6))[which] + spread * draw.normal(size=(texts, 6))), 10 * which + 3


def naive_accuracy(rows: Matrix, test: LabelTest) -> dict[str, list[float]]:
    by_centroid, by_text = [], []
    references = list(zip(test.reference_texts.tolist(), test.reference_labels.tolist(), strict=True))
    for text, label in zip(test.texts.tolist(), test.labels.tolist(), strict=True):
        others = [(rows[other].astype(float), own) for other, own in references if other != text]
        by_text.append(float(max(others, key=lambda other: other[0] @ rows[text])[1] == label))
        centroids = {}
        for own in sorted({own for _, own in others}):
            mean = np.mean([row for row, its in others if its == own], axis=0)
            centroids[own] = mean / np.linalg.norm(mean)
        by_centroid.append(float(max(centroids, key=lambda own: centroids[own] @ rows[text]) == label))
    return {"accuracy@centroid": by_centroid, "accuracy@1nn": by_text}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overlapping", [False, True])
def test_accuracy_agrees_with_loops_in_python(seed: int, overlapping: bool) -> None:
    rows, labels = classes(labels=7, texts=240, spread=0.8, seed=seed)
    asked = np.arange(0, 100)
    reference = np.arange(0 if overlapping else 100, 240)
    test = LabelTest(asked, labels[asked], reference, labels[reference])

    found = test.evaluate(vectors_of(rows))

    assert {name: values.tolist() for name, values in found.per_item.items()} == naive_accuracy(rows, test)
    assert found.value == found.scores["accuracy@centroid"]
    assert 0.2 < found.scores["accuracy@1nn"] < 1


def test_the_nearest_text_is_that_of_scikit_learn() -> None:
    rows, labels = classes(labels=5, texts=400, spread=1.0, seed=9)
    asked, reference = np.arange(150), np.arange(150, 400)

    found = LabelTest(asked, labels[asked], reference, labels[reference]).evaluate(vectors_of(rows))

    classifier = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(rows[reference], labels[reference])
    assert found.scores["accuracy@1nn"] == pytest.approx(classifier.score(rows[asked], labels[asked]))


def test_a_text_is_not_its_own_reference_not_even_under_two_labels() -> None:
    vectors = at_angles(0, 50, 60, 120)
    # Text 0 stands there with labels 1 and 2. Without it, text 1 (label 2) is nearest; label 1 is left at 120 degrees.
    references = ([0, 0, 1, 3], [1, 2, 2, 1])

    assert label_test([0], [2], *references).evaluate(vectors).scores == {"accuracy@centroid": 1, "accuracy@1nn": 1}
    assert label_test([0], [1], *references).evaluate(vectors).scores == {"accuracy@centroid": 0, "accuracy@1nn": 0}


def test_the_centroid_of_a_text_is_that_of_the_others() -> None:
    # With itself, label 1 is the nearer centroid of text 0 (at 45 degrees); without, it is at 90 and label 2 at 80.
    vectors = at_angles(0, 90, 80)

    assert label_test([0], [1], [0, 1, 2], [1, 1, 2]).evaluate(vectors).scores["accuracy@centroid"] == 0
    assert label_test([0], [2], [0, 1, 2], [1, 1, 2]).evaluate(vectors).scores["accuracy@centroid"] == 1


def test_a_label_with_no_other_text_can_not_be_right() -> None:
    vectors = at_angles(0, 90)

    assert set(label_test([0], [1], [0, 1], [1, 2]).evaluate(vectors).scores.values()) == {0.0}
    assert set(label_test([0], [1], [0], [1]).evaluate(vectors).scores.values()) == {0.0}
    assert set(label_test([0], [7], [1], [2]).evaluate(vectors).scores.values()) == {0.0}


def test_the_centroid_is_normalised() -> None:
    # Label 1 lies at -80 and 80 degrees: its mean is short, but points to 0. Label 2 lies at 30.
    vectors = at_angles(0, -80, 80, 30)

    assert label_test([0], [1], [1, 2, 3], [1, 1, 2]).evaluate(vectors).scores == {"accuracy@centroid": 1, "accuracy@1nn": 0}


def test_ties_go_to_the_smallest_label_and_to_the_first_reference() -> None:
    vectors = at_angles(0, 20, 20, 20, 20)
    references = ([1, 2, 3, 4], [9, 4, 4, 9])

    assert label_test([0], [4], *references).evaluate(vectors).scores == {"accuracy@centroid": 1, "accuracy@1nn": 0}
    assert label_test([0], [9], *references).evaluate(vectors).scores == {"accuracy@centroid": 0, "accuracy@1nn": 1}


def test_vectors_that_are_no_numbers_are_like_nothing() -> None:
    rows = at_angles(0, 170, 10).queries
    rows[2] = math.nan

    found = label_test([0, 2], [1, 1], [1, 2], [1, 2]).evaluate(vectors_of(rows))

    # Of text 0 only reference 1 is a number; text 2 itself is none, although label 1 comes first.
    assert {name: values.tolist() for name, values in found.per_item.items()} == {
        "accuracy@centroid": [1, 0],
        "accuracy@1nn": [1, 0],
    }


def test_blocks_change_nothing_and_the_callback_may_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = classes(labels=6, texts=90, spread=0.9, seed=4)
    everything = np.arange(90)
    test = LabelTest(everything, labels, everything, labels)
    whole = test.evaluate(vectors_of(rows)).per_item
    told = []

    monkeypatch.setattr(evaluation, "NUMBERS_PER_BLOCK", 40 * 90)
    blocks = test.evaluate(vectors_of(rows), lambda done, of: told.append((done, of))).per_item

    assert told == [(0, 90), (40, 90), (80, 90)]
    assert {name: values.tolist() for name, values in blocks.items()} == {name: own.tolist() for name, own in whole.items()}
    stop = KeyboardInterrupt()

    def refuse(done: int, of: int) -> None:
        raise stop

    with pytest.raises(KeyboardInterrupt) as caught:
        test.evaluate(vectors_of(rows), refuse)
    assert caught.value is stop


def test_a_test_needs_texts_and_references() -> None:
    with pytest.raises(TooFewExamples, match="texts to test on"):
        label_test([], [], [1], [1]).evaluate(at_angles(0, 1))
    with pytest.raises(TooFewExamples, match="reference texts to classify by"):
        label_test([0], [1], [], []).evaluate(at_angles(0, 1))
