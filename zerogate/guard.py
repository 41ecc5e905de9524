"""The forgetting guard: texts of general meaning whose similarities training must leave alone, and how much was lost on them.

A guard is a dataset of any kind but documents. One half of it chooses the strength of a version, the other half reports, so that
what is reported was not chosen for being small. The built-in guard is 975 graded pairs of sentences that ship with the package.
"""

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zerogate.errors import TooFewExamples, UnknownDocument, ZerogateError
from zerogate.evaluation import Evaluation, RetrievalTest, Test
from zerogate.examples import Kind, Row, parse_row
from zerogate.label_test import LabelTest
from zerogate.scored_test import ScoredTest

BUILTIN_FILE = "guard_pairs.jsonl"
_FEWEST_ITEMS = 4  # Two in each half; whether so few say anything is what the interval tells.
_STRATUM = 16  # Pairs of like scores that are balanced by their overlap.

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Guard:
    """The distinct texts of a guard and a test over each half. Kinds scored and groups have all their texts in `queries`.

    Both tests take the vectors of all texts. No item is in both; what items are compared with (documents, reference texts) is
    common to both.
    """

    kind: Kind
    queries: list[str]
    documents: list[str]
    choosing: Test
    reporting: Test


@dataclass(frozen=True)
class Forgetting:
    """What a version lost on a guard: encoder minus version, by the guard's primary score; above 0 is a loss.

    low, high: the paired 95 % interval of the loss. standard_error: on half of the built-in guard 0.002 to 0.008, the more the
    head moves; no way of halving a guard makes it smaller.
    """

    score: str
    value: float
    low: float
    high: float
    standard_error: float
    items: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def forgetting(base: Evaluation, tuned: Evaluation, *, seed: int = 0) -> Forgetting:
    """Say what `tuned` lost against `base` on the same test, usually a guard's `reporting`. ValueError for different tests."""
    found = base.compare(tuned, seed=seed)
    # 0 - x and not -x: no loss is 0, not -0.
    return Forgetting(base.primary, 0 - found.difference, 0 - found.high, 0 - found.low, found.standard_error, found.items)


def builtin_guard() -> list[Row]:
    """Give the rows, of kind scored, of the guard that ships with the package."""
    lines = importlib.resources.files("zerogate").joinpath(BUILTIN_FILE).read_text(encoding="utf-8").splitlines()
    # The topic is for who edits the file; it is no part of a row, and halving by it too makes the halves no more alike.
    raw = [{name: value for name, value in json.loads(line).items() if name != "topic"} for line in lines]
    return [parse_row("scored", row, number) for number, row in enumerate(raw, 1)]


def make_guard(kind: Kind, rows: Iterable[Row], document_texts: Mapping[str, str] | None = None) -> Guard:
    """Make a guard from canonical rows. If some are of split test, only those are asked; else all, whatever their split.

    document_texts: id -> text, for kind queries only: the corpus, all of which competes.
    Raises ZerogateError for kind documents and for queries without texts, UnknownDocument for an id without text, and
    TooFewExamples where a guard could not fall: fewer than 4 items, or all of one score, label or document.
    """
    every = list(rows)
    asked = [row for row in every if row.get("split") == "test"] or every
    match kind:
        case "scored":
            return _scored_guard(asked)
        case "groups":
            return _groups_guard(asked)
        case "pairs" | "triplets":
            documents = [text for row in asked for text in (row["positive"], *row.get("negatives", ()))]
            known = [(row["anchor"], [row["positive"]]) for row in every]
            return _retrieval_guard(kind, [row["anchor"] for row in asked], known, documents)
        case "queries":
            if document_texts is None:
                raise ZerogateError("a guard of kind queries needs the texts of its documents")
            known = [(row["query"], _texts(row, document_texts)) for row in every]
            return _retrieval_guard(kind, [row["query"] for row in asked], known, document_texts.values())
        case "documents":
            raise ZerogateError("a guard cannot be of kind documents; allowed are pairs, triplets, scored, groups and queries")


def _scored_guard(rows: Sequence[Row]) -> Guard:
    """Pairs in two halves with the same scores, and at every score with pairs that share as many letters."""
    found: dict[frozenset[str], list[float]] = {}
    for row in rows:  # a pair that stands there twice, either way round, is one, with the mean of its scores
        found.setdefault(frozenset((row["sentence1"], row["sentence2"])), []).append(row["score"])
    pairs = [(min(pair), max(pair), sum(scores) / len(scores)) for pair, scores in found.items()]
    _check_enough("scored pairs in a guard", len(pairs), _FEWEST_ITEMS)
    _check_enough("distinct scores in a guard", len({score for *_, score in pairs}), 2)
    place = _places(text for one, other, _ in pairs for text in (one, other))

    def test(half: Sequence[tuple[str, str, float]]) -> ScoredTest:
        indices = [(place[one], place[other]) for one, other, _ in half]
        return ScoredTest(np.asarray(indices, dtype=np.int64), np.asarray([score for *_, score in half], dtype=np.float32))

    choosing, reporting = _halves(_in_strata(pairs))
    return Guard("scored", list(place), [], test(choosing), test(reporting))


def _in_strata(pairs: Sequence[tuple[str, str, float]]) -> list[tuple[str, str, float]]:
    """Order pairs so that neighbours are alike: in strata of 16 by their scores, and in a stratum by their overlap.

    An encoder's cosine follows the words that two texts share. Spearman on two halves of the built-in guard (all-MiniLM-L6-v2)
    differs with a standard deviation of 0.032 where they are cut at random, 0.018 balanced by score, 0.024 by topic and score,
    and 0.015 by score and overlap.
    """
    overlap = {pair: _overlap(pair[0], pair[1]) for pair in pairs}
    ascending = sorted(pairs, key=lambda pair: (pair[2], overlap[pair], _digest(pair[0] + pair[1])))
    ordered = []
    for number, start in enumerate(range(0, len(ascending), _STRATUM)):
        # Up and down in turn, so that neighbours are alike across the strata as well.
        stratum = sorted(ascending[start : start + _STRATUM], key=overlap.__getitem__, reverse=number % 2 == 1)
        ordered.extend(stratum)
    return ordered


def _overlap(one: str, other: str) -> float:
    """The share of common letter triples (Jaccard), in [0, 1]; it tells similar texts without any encoder."""
    first, second = ({text[i : i + 3] for i in range(len(text) - 2)} for text in (f" {one.lower()} ", f" {other.lower()} "))
    return len(first & second) / max(1, len(first | second))


def _groups_guard(rows: Sequence[Row]) -> Guard:
    """Every text is classified by all other texts of the guard, of both halves (leave-one-out).

    The other half alone as reference would halve every class: the nearest neighbour would be farther and the centroids noisier,
    for no gain, as nothing is trained on the labels of a guard. A text whose label no other text has can never be right: it is
    a reference only.
    """
    place = _places(row["text"] for row in rows)
    labelled = list(dict.fromkeys((row["text"], row["label"]) for row in rows))
    number = {label: index for index, label in enumerate(dict.fromkeys(label for _, label in labelled))}
    sizes = np.bincount([number[label] for _, label in labelled], minlength=1)
    # By label, then digest: every label is in both halves, as often as it can be.
    items = [item for item in labelled if sizes[number[item[1]]] > 1]
    items.sort(key=lambda item: (number[item[1]], _digest(item[0])))
    _check_enough("texts of a guard that share their label with another", len(items), _FEWEST_ITEMS)
    _check_enough("labels in a guard", len(number), 2)

    def indices(half: Sequence[tuple[str, str]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return (
            np.asarray([place[text] for text, _ in half], dtype=np.int64),
            np.asarray([number[label] for _, label in half], dtype=np.int64),
        )

    choosing, reporting = (LabelTest(*indices(half), *indices(labelled)) for half in _halves(items))
    return Guard("groups", list(place), [], choosing, reporting)


def _retrieval_guard(
    kind: Kind, asked: Iterable[str], known: Iterable[tuple[str, Sequence[str]]], documents: Iterable[str]
) -> Guard:
    """Half of the queries in each test, over all documents of the guard. What is known to be relevant in any row is."""
    place = _places(documents)
    relevant: dict[str, dict[int, None]] = {query: {} for query in asked}
    for query, texts in known:
        if query in relevant:
            relevant[query].update((place[text], None) for text in texts if text in place)
    _check_enough("distinct queries in a guard", len(relevant), _FEWEST_ITEMS)
    _check_enough("distinct documents in a guard", len(place), 2)
    queries = _places(relevant)

    def test(half: Sequence[str]) -> RetrievalTest:
        return RetrievalTest(np.asarray([queries[query] for query in half], dtype=np.int64), [list(relevant[q]) for q in half])

    choosing, reporting = _halves(sorted(queries, key=_digest))
    return Guard(kind, list(queries), list(place), test(choosing), test(reporting))


def _texts(row: Row, document_texts: Mapping[str, str]) -> list[str]:
    for name in row["documents"]:
        if name not in document_texts:
            raise UnknownDocument(name, row["query"])
    return [document_texts[name] for name in row["documents"]]


def _halves(ordered: Sequence[_Item]) -> tuple[Sequence[_Item], Sequence[_Item]]:
    """Deal items out in turn: neighbours go to different halves."""
    return ordered[::2], ordered[1::2]


def _places(texts: Iterable[str]) -> dict[str, int]:
    """Number the distinct texts in their order."""
    return {text: index for index, text in enumerate(dict.fromkeys(texts))}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _check_enough(what: str, found: int, needed: int) -> None:
    if found < needed:
        raise TooFewExamples(what, found=found, needed=needed)
