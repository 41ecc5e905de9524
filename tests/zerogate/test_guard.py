"""The forgetting guard: what its halves share and what not, and what is reported as forgotten."""

import json
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from zerogate.errors import TooFewExamples, UnknownDocument, ZerogateError
from zerogate.evaluation import MeanEvaluation, RetrievalTest
from zerogate.examples import Row, parse_row
from zerogate.guard import Guard, builtin_guard, forgetting, make_guard
from zerogate.label_test import LabelTest
from zerogate.scored_test import ScoredTest, spearman
from zerogate.vectors import Vectors


def bags_of_words(texts: list[str]) -> Vectors:
    """A crude encoder: each text is the counts of its words, scaled to length 1."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    place = {word: index for index, word in enumerate(sorted({word for own in words for word in own}))}
    rows = np.zeros((len(texts), len(place)), np.float32)
    for row, own in zip(rows, words, strict=True):
        np.add.at(row, [place[word] for word in own], 1)
    return Vectors(rows / np.linalg.norm(rows, axis=1, keepdims=True), rows[:0])


def scored_halves(guard: Guard) -> list[ScoredTest]:
    assert isinstance(guard.choosing, ScoredTest)
    assert isinstance(guard.reporting, ScoredTest)
    return [guard.choosing, guard.reporting]


def pairs_of(guard: Guard, half: ScoredTest) -> list[tuple[frozenset[str], float]]:
    texts = [frozenset((guard.queries[one], guard.queries[other])) for one, other in half.pairs]
    return list(zip(texts, half.scores.tolist(), strict=True))


def scored(sentence1: str, sentence2: str, score: float, **more: str) -> Row:
    return {"sentence1": sentence1, "sentence2": sentence2, "score": score, **more}


@pytest.fixture(scope="module")
def builtin() -> Guard:
    return make_guard("scored", builtin_guard())


def test_the_builtin_guard_has_canonical_rows() -> None:
    rows = builtin_guard()

    assert len(rows) == 975
    assert [parse_row("scored", row, 1) for row in rows] == rows
    assert rows[0].keys() == {"sentence1", "sentence2", "score"}


def test_every_pair_of_the_builtin_guard_is_in_one_half(builtin: Guard) -> None:
    first, second = (pairs_of(builtin, half) for half in scored_halves(builtin))

    everything = [(frozenset((row["sentence1"], row["sentence2"])), row["score"]) for row in builtin_guard()]
    assert (len(first), len(second)) == (488, 487)
    assert {texts for texts, _ in first}.isdisjoint(texts for texts, _ in second)
    assert {texts: pytest.approx(score) for texts, score in (*first, *second)} == dict(everything)
    assert (len(builtin.queries), builtin.documents) == (1950, [])


def test_the_halves_of_the_builtin_guard_have_the_same_scores(builtin: Guard) -> None:
    one, other = (np.sort(half.scores) for half in scored_halves(builtin))
    rows = builtin_guard()
    by_parity = [np.sort([row["score"] for row in rows[start::2]])[:487] for start in (0, 1)]

    apart = np.abs(one[:487] - other).mean()  # between the two distributions (Wasserstein)
    assert apart < 0.01
    assert apart < 0.5 * np.abs(by_parity[0] - by_parity[1]).mean()


def test_the_halves_of_the_builtin_guard_are_as_hard(builtin: Guard) -> None:
    vectors = bags_of_words(builtin.queries)

    halves = [half.evaluate(vectors) for half in scored_halves(builtin)]

    # Cut at random, the halves differ by more in one case of two. Bags of words are not what the halves were balanced by.
    pairs, wanted = (np.concatenate([getattr(half, name) for half in halves]) for name in ("cosines", "wanted"))
    apart = []
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(pairs))
        apart.append(abs(spearman(pairs[order[:488]], wanted[order[:488]]) - spearman(pairs[order[488:]], wanted[order[488:]])))
    assert abs(halves[0].value - halves[1].value) < np.median(apart)


def test_the_halves_do_not_depend_on_the_order_of_the_rows_or_of_a_pair(builtin: Guard) -> None:
    rows = builtin_guard()
    turned = [scored(row["sentence2"], row["sentence1"], row["score"]) for row in reversed(rows)]

    other = make_guard("scored", turned)

    for half, its in zip(scored_halves(builtin), scored_halves(other), strict=True):
        assert dict(pairs_of(builtin, half)) == dict(pairs_of(other, its))


def test_a_pair_that_stands_there_twice_counts_once_with_its_mean_score() -> None:
    rows = [scored("a", "b", 0.2), scored("b", "a", 0.6), scored("c", "d", 0.1), scored("e", "f", 0.9), scored("g", "h", 1.0)]

    guard = make_guard("scored", rows)

    found = dict(pairs_of(guard, scored_halves(guard)[0])) | dict(pairs_of(guard, scored_halves(guard)[1]))
    assert found == {
        frozenset("ab"): pytest.approx(0.4),
        frozenset("cd"): pytest.approx(0.1),
        frozenset("ef"): pytest.approx(0.9),
        frozenset("gh"): 1.0,
    }


def test_scores_that_are_all_different_are_balanced_as_well() -> None:
    draw = np.random.default_rng(1)
    rows = [scored(f"text {i}", f"other {draw.integers(10**6)}", float(draw.beta(5, 1))) for i in range(501)]

    one, other = scored_halves(make_guard("scored", rows))

    assert (len(one.scores), len(other.scores)) == (251, 250)
    assert np.sort(one.scores)[1:] == pytest.approx(np.sort(other.scores), abs=0.1)
    assert one.scores.mean() == pytest.approx(other.scores.mean(), abs=0.005)


def test_only_the_rows_of_split_test_count_where_there_are_any() -> None:
    rows = [
        scored(f"{split} {i}", f"text {i}", i / 10, split=split) for split in ("train", "test", "validation") for i in range(10)
    ]

    with_test = make_guard("scored", rows)
    without = make_guard("scored", [row for row in rows if row["split"] != "test"])

    assert sum(len(half.scores) for half in scored_halves(with_test)) == 10
    assert not any("train" in text or "validation" in text for text in with_test.queries)
    assert sum(len(half.scores) for half in scored_halves(without)) == 20


def retrieval_halves(guard: Guard) -> list[dict[str, set[str]]]:
    """For each half its queries and their relevant documents, as texts."""
    halves = []
    for test in (guard.choosing, guard.reporting):
        assert isinstance(test, RetrievalTest)
        texts = [guard.queries[query] for query in test.queries]
        halves.append({text: {guard.documents[place] for place in own} for text, own in zip(texts, test.relevant, strict=True)})
    return halves


def test_pairs_ask_each_anchor_once_over_the_documents_of_both_halves() -> None:
    rows = [{"anchor": f"query {i % 20}", "positive": f"document {i}"} for i in range(60)]

    guard = make_guard("pairs", rows)
    first, second = retrieval_halves(guard)

    assert (len(first), len(second)) == (10, 10)
    assert first | second == {f"query {i}": {f"document {i + more}" for more in (0, 20, 40)} for i in range(20)}
    assert sorted(guard.documents) == sorted(f"document {i}" for i in range(60))
    assert [set(half) for half in retrieval_halves(make_guard("pairs", rows[::-1]))] == [set(first), set(second)]


def test_negatives_of_triplets_compete_and_are_not_relevant() -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}", "negatives": [f"n{i}", "p0"]} for i in range(6)]

    guard = make_guard("triplets", rows)
    first, second = retrieval_halves(guard)

    assert first | second == {f"q{i}": {f"p{i}"} for i in range(6)}
    assert sorted(guard.documents) == sorted([*(f"p{i}" for i in range(6)), *(f"n{i}" for i in range(6))])


def test_what_another_split_knows_to_be_relevant_is() -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}", "split": "test"} for i in range(4)]
    rows += [{"anchor": "q0", "positive": "p1", "split": "train"}, {"anchor": "q1", "positive": "elsewhere", "split": "train"}]

    guard = make_guard("pairs", rows)
    first, second = retrieval_halves(guard)

    assert (first | second)["q0"] == {"p0", "p1"}
    assert (first | second)["q1"] == {"p1"}
    assert "elsewhere" not in guard.documents


def test_queries_are_asked_of_all_documents_and_equal_texts_are_one() -> None:
    texts = {"a": "apple", "b": "pear", "c": "plum", "d": "apple", "e": "fig"}
    rows = [{"query": f"q{i}", "documents": own} for i, own in enumerate((["a", "d"], ["b"], ["c", "a"], ["d"]))]

    guard = make_guard("queries", rows, texts)
    first, second = retrieval_halves(guard)

    assert guard.documents == ["apple", "pear", "plum", "fig"]
    assert first | second == {"q0": {"apple"}, "q1": {"pear"}, "q2": {"plum", "apple"}, "q3": {"apple"}}
    assert all(len(own) == len(set(own)) for test in (guard.choosing, guard.reporting) for own in test.relevant)


def test_a_document_that_is_not_there_is_named() -> None:
    rows = [{"query": f"q{i}", "documents": ["a"]} for i in range(4)] + [{"query": "last", "documents": ["a", "missing"]}]

    with pytest.raises(UnknownDocument, match=r"'last'.*'missing'"):
        make_guard("queries", rows, {"a": "apple", "b": "pear"})


def test_groups_judge_every_text_by_all_others_of_both_halves() -> None:
    rows = [{"text": f"{label} {i}", "label": label} for label, count in (("x", 7), ("y", 4), ("z", 2)) for i in range(count)]
    rows += [{"text": "alone", "label": "w"}, {"text": "x 0", "label": "x"}]

    guard = make_guard("groups", rows)

    halves = []
    for test in (guard.choosing, guard.reporting):
        assert isinstance(test, LabelTest)
        assert sorted(guard.queries[text] for text in test.reference_texts) == sorted({row["text"] for row in rows})
        halves.append([guard.queries[text] for text in test.texts])
        names = dict(zip(test.reference_texts.tolist(), test.reference_labels.tolist(), strict=True))
        assert [names[text] for text in test.texts.tolist()] == test.labels.tolist()
    assert sorted(halves[0] + halves[1]) == sorted({row["text"] for row in rows} - {"alone"})
    for label, count in (("x", 7), ("y", 4), ("z", 2)):
        share = [sum(text.startswith(label) for text in half) for half in halves]
        assert sorted(share) == [count // 2, count - count // 2]


def test_a_text_of_a_guard_of_groups_is_not_recognised_by_itself() -> None:
    """Texts at random, labels at random: whoever may look a text up in the references is always right, else by chance."""
    draw = np.random.default_rng(5)
    rows = [{"text": f"text {i}", "label": str(draw.integers(10))} for i in range(400)]
    guard = make_guard("groups", rows)
    vectors = draw.normal(size=(400, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    for test in (guard.choosing, guard.reporting):
        scores = test.evaluate(Vectors(vectors, vectors[:0])).scores
        assert max(scores.values()) < 0.2  # chance is 0.1


@pytest.mark.parametrize(
    ("kind", "rows", "what"),
    [
        ("scored", [scored("a", "b", 0.1), scored("c", "d", 0.9), scored("b", "a", 0.1)], "scored pairs in a guard: found 2"),
        ("scored", [scored(f"a{i}", "b", 0.5) for i in range(9)], "distinct scores in a guard: found 1"),
        ("pairs", [{"anchor": f"q{i % 3}", "positive": f"p{i}"} for i in range(9)], "distinct queries in a guard: found 3"),
        ("pairs", [{"anchor": f"q{i}", "positive": "p"} for i in range(9)], "distinct documents in a guard: found 1"),
        ("groups", [{"text": f"t{i}", "label": "x"} for i in range(9)], "labels in a guard: found 1"),
        ("groups", [{"text": f"t{i}", "label": str(i)} for i in range(9)], "share their label with another: found 0"),
        ("groups", [], "share their label with another: found 0"),
    ],
)
def test_a_guard_that_could_not_fall_is_refused(kind: str, rows: list[Row], what: str) -> None:
    with pytest.raises(TooFewExamples, match=what):
        make_guard(kind, rows)


def test_documents_alone_are_no_guard_and_queries_need_them() -> None:
    with pytest.raises(ZerogateError, match="cannot be of kind documents; allowed are pairs, triplets, scored, groups and q"):
        make_guard("documents", [{"id": "a", "text": "b", "metadata": {}}])
    with pytest.raises(ZerogateError, match="needs the texts of its documents"):
        make_guard("queries", [{"query": "a", "documents": ["b"]}])


def evaluation(values: NDArray[np.float64]) -> MeanEvaluation:
    return MeanEvaluation("accuracy@centroid", {"accuracy@centroid": values})


def test_forgetting_is_what_the_encoder_had_and_the_version_has_not() -> None:
    draw = np.random.default_rng(6)
    base = draw.uniform(size=500)
    tuned = base - draw.normal(0.05, 0.1, size=500)

    lost, won = forgetting(evaluation(base), evaluation(tuned)), forgetting(evaluation(tuned), evaluation(base))

    assert lost.value == pytest.approx(base.mean() - tuned.mean())
    assert 0 < lost.low < lost.value < lost.high
    assert won.value == pytest.approx(-lost.value)
    assert won.low < won.value < won.high < 0
    assert lost.standard_error == pytest.approx((base - tuned).std(ddof=1) / np.sqrt(500))
    assert (lost.score, lost.items) == ("accuracy@centroid", 500)


def test_nothing_forgotten_is_zero_and_plain_json() -> None:
    values = np.random.default_rng(7).uniform(size=20)

    found = forgetting(evaluation(values), evaluation(values.copy())).to_dict()

    assert json.dumps(found, allow_nan=False) == (
        '{"score": "accuracy@centroid", "value": 0.0, "low": 0.0, "high": 0.0, "standard_error": 0.0, "items": 20}'
    )


def test_a_collapse_is_forgetting_on_both_halves(builtin: Guard) -> None:
    vectors = bags_of_words(builtin.queries)
    noise = np.random.default_rng(8).normal(size=(1950, 20)).astype(np.float32)

    for half in scored_halves(builtin):
        base, tuned = half.evaluate(vectors), half.evaluate(Vectors(noise, noise[:0]))
        found = forgetting(base, tuned)
        assert found.value == pytest.approx(base.value, abs=0.15)
        assert found.low > 0.005
