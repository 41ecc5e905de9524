"""What is told about a dataset when it has been read: counts, and what looks wrong without being an error."""

import hashlib
from typing import NotRequired, TypedDict

import orjson

from zerogate.examples import SPLITS, Kind, Row, texts


class Report(TypedDict):
    """Counts over the rows of a dataset.

    `splits` counts rows, `unassigned` those that came without a split; documents have none, so the key is absent there.
    `duplicate_rows` counts rows that repeat an earlier one, be it in another split: such a row leaks into the evaluation.
    `labels` is the number of distinct labels, for groups only.
    """

    rows: int
    splits: NotRequired[dict[str, int]]
    distinct_texts: int
    duplicate_rows: int
    longest_text_characters: int
    labels: NotRequired[int]


class DatasetReport:
    """Counts rows while they pass by. Keeps 8 bytes per distinct row and text, so that equal ones are counted once.

    Two of ten million distinct texts share a digest with a chance of 3 in a million: good for counts, not for identity.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._rows = 0
        self._splits = dict.fromkeys((*SPLITS, "unassigned"), 0)
        self._distinct_rows: set[int] = set()
        self._distinct_texts: set[int] = set()
        self._labels: set[str] = set()
        self._longest_text_characters = 0

    def add(self, row: Row) -> None:
        """Count one canonical row."""
        self._rows += 1
        self._splits[row.get("split", "unassigned")] += 1
        content = {name: value for name, value in row.items() if name != "split"}
        self._distinct_rows.add(_digest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)))
        for text in texts(self._kind, row):
            self._distinct_texts.add(_digest(text.encode()))
            self._longest_text_characters = max(self._longest_text_characters, len(text))
        if self._kind == "groups":
            self._labels.add(row["label"])

    def summary(self) -> Report:
        """Give the counts of the rows so far."""
        report = Report(
            rows=self._rows,
            distinct_texts=len(self._distinct_texts),
            duplicate_rows=self._rows - len(self._distinct_rows),
            longest_text_characters=self._longest_text_characters,
        )
        if self._kind != "documents":
            report["splits"] = dict(self._splits)
        if self._kind == "groups":
            report["labels"] = len(self._labels)
        return report


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
