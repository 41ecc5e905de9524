"""What is told about a dataset when it has been read: counts, and what looks wrong without being an error."""

import hashlib
from array import array
from typing import Final, NotRequired, TypedDict

import numpy as np
import orjson

from zerogate.examples import SPLITS, Kind, Row, texts

_WAITING_AT_LEAST: Final = 65_536  # Digests that came since the last sorting: half a megabyte.


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
    """Counts rows while they pass by. Keeps digests of rows, texts and labels, so that equal ones are counted once."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._rows = 0
        self._splits = dict.fromkeys((*SPLITS, "unassigned"), 0)
        self._distinct_rows = _Distinct()
        self._distinct_texts = _Distinct()
        self._labels = _Distinct()
        self._longest_text_characters = 0

    def add(self, row: Row) -> None:
        """Count one canonical row."""
        self._rows += 1
        self._splits[row.get("split", "unassigned")] += 1
        content = {name: value for name, value in row.items() if name != "split"}
        self._distinct_rows.add(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
        for text in texts(self._kind, row):
            self._distinct_texts.add(text.encode())
            self._longest_text_characters = max(self._longest_text_characters, len(text))
        if self._kind == "groups":
            self._labels.add(row["label"].encode())

    def summary(self) -> Report:
        """Give the counts of the rows so far."""
        report = Report(
            rows=self._rows,
            distinct_texts=self._distinct_texts.count(),
            duplicate_rows=self._rows - self._distinct_rows.count(),
            longest_text_characters=self._longest_text_characters,
        )
        if self._kind != "documents":
            report["splits"] = dict(self._splits)
        if self._kind == "groups":
            report["labels"] = self._labels.count()
        return report


class _Distinct:
    """How many different byte strings were added. Keeps 8 bytes of each, and of some that came twice; twice that while it sorts.

    Two of ten million distinct ones share a digest with a chance of 3 in a million: good for counts, not for identity.
    """

    def __init__(self) -> None:
        self._digests = array("Q")
        self._sort_at = _WAITING_AT_LEAST

    def add(self, content: bytes) -> None:
        self._digests.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()))
        if len(self._digests) >= self._sort_at:
            # Half as many again may come before the next time, so each is sorted a few times however many there are.
            self._sort_at = self.count() * 3 // 2 + _WAITING_AT_LEAST

    def count(self) -> int:
        """How many there were so far; forgets those that came twice."""
        digests = np.frombuffer(self._digests, dtype=np.uint64)  # the same memory
        digests.sort()
        is_new = np.ones(len(digests), dtype=np.bool_)
        np.not_equal(digests[1:], digests[:-1], out=is_new[1:])
        if not is_new.all():
            self._digests = array("Q", digests[is_new].tobytes())
        return len(self._digests)
