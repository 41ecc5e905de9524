"""The built-in guard set: what its grades, topics and sentences must keep when somebody edits the file."""

import importlib.resources
import json
import string
from collections import Counter, defaultdict
from typing import Any

import pytest

FIELDS = {"sentence1", "sentence2", "score", "topic"}
BINS = 5
STEPS = 20  # scores go in steps of 0.05


@pytest.fixture(scope="module")
def lines() -> list[str]:
    text = importlib.resources.files("zerogate").joinpath("guard_pairs.jsonl").read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return text.removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def guard(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def bin_of(score: float) -> int:
    # In whole steps: 0.6 * 5 is not a number to take the floor of.
    return min(round(score * STEPS) * BINS // STEPS, BINS - 1)


def plain(sentence: str) -> str:
    """Lower case, no punctuation, single blanks: two sentences alike in this are the same sentence."""
    return " ".join(sentence.lower().translate(str.maketrans("", "", string.punctuation)).split())


def sentences_of(guard: list[dict[str, Any]]) -> list[str]:
    return [row[field] for row in guard for field in ("sentence1", "sentence2")]


def test_every_line_is_a_scored_pair(guard: list[dict[str, Any]]) -> None:
    assert len(guard) >= 840
    for row in guard:
        assert row.keys() == FIELDS
        assert all(isinstance(row[field], str) and row[field] == row[field].strip() for field in FIELDS - {"score"}), row
        assert isinstance(row["score"], float), row


def test_scores_lie_on_the_scale(guard: list[dict[str, Any]]) -> None:
    for row in guard:
        assert 0 <= row["score"] <= 1, row
        assert row["score"] == round(row["score"] * STEPS) / STEPS, row


def test_scores_are_spread_evenly(guard: list[dict[str, Any]]) -> None:
    counts = Counter(bin_of(row["score"]) for row in guard)

    for number in range(BINS):
        assert 0.17 <= counts[number] / len(guard) <= 0.23, counts


@pytest.mark.parametrize(("score", "expected"), [(0.0, 0), (0.15, 0), (0.2, 1), (0.55, 2), (0.6, 3), (0.8, 4), (1.0, 4)])
def test_a_bin_begins_with_its_lower_bound(score: float, expected: int) -> None:
    assert bin_of(score) == expected


def test_topics_are_many_of_a_like_size_and_graded_widely(guard: list[dict[str, Any]]) -> None:
    bins = defaultdict(list)
    for row in guard:
        bins[row["topic"]].append(bin_of(row["score"]))

    assert len(bins) >= 60
    for topic, numbers in bins.items():
        assert 12 <= len(numbers) <= 18, topic
        assert len(set(numbers)) >= 4, topic


def test_sentences_are_short_and_whole(guard: list[dict[str, Any]]) -> None:
    for sentence in sentences_of(guard):
        assert 4 <= len(sentence.split()) <= 25, sentence
        assert sentence[0].isupper(), sentence
        assert sentence[-1] in '.?!"', sentence
        assert "  " not in sentence, sentence


def test_sentences_are_not_repeated(guard: list[dict[str, Any]]) -> None:
    uses = Counter(plain(sentence) for sentence in sentences_of(guard))
    pairs = Counter(frozenset((plain(row["sentence1"]), plain(row["sentence2"]))) for row in guard)

    assert not [sentence for sentence, count in uses.items() if count > 2]
    assert not [pair for pair, count in pairs.items() if count > 1 or len(pair) == 1]


def test_sentences_are_written_and_not_filled_in(guard: list[dict[str, Any]]) -> None:
    sentences = sentences_of(guard)
    openings = Counter(" ".join(plain(sentence).split()[:3]) for sentence in sentences)
    questions = sum(sentence.endswith("?") for sentence in sentences)

    assert openings.most_common(1)[0][1] <= 0.01 * len(sentences), openings.most_common(5)
    assert questions >= 0.05 * len(sentences)
