"""The kinds of datasets: which columns the rows of each kind have, and what a valid row is.

A row is checked once, by `parse_row`, and is canonical from then on: parsing a canonical row gives the same row.
Reading files is in `zerogate.readers`, counting in `zerogate.report`.

    pairs      anchor, positive
    triplets   anchor, positive, negatives: [text, ...]      comes as `negative: text` or as `negatives`
    scored     sentence1, sentence2, score: 0..1
    groups     text, label
    queries    query, documents: [id, ...]
    documents  id, text, metadata: {...}                     comes with any further columns, or with `metadata`

Every kind but documents may carry `split`; a row that came without one has no such key. Documents belong to no split:
a column of that name is metadata there, like any other.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args

from zerogate.errors import InvalidRow
from zerogate.values import Unfit, parse_json, parse_key, parse_list, parse_name, parse_score, parse_text, shortened, shown

Kind = Literal["pairs", "triplets", "scored", "groups", "queries", "documents"]
Split = Literal["train", "validation", "test"]
Row = dict[str, Any]
"""A canonical row: see the table above for its keys."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

_SPLIT_NAMES: Final[Mapping[str, Split]] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Column:
    """One column as it may come in a file.

    `target` is the key in the canonical row; columns with the same target are alternatives of each other.
    `cell` says what a cell of a CSV file holds.
    """

    name: str
    parse: Callable[[object], Any]
    target: str
    required: bool = True
    cell: Literal["text", "number", "list"] = "text"
    is_text: bool = True  # Whether it holds what an encoder reads: not an id, a label, a score or a split.


def _text(name: str) -> Column:
    return Column(name, parse_text, target=name)


def _name(name: str) -> Column:
    return Column(name, parse_name, target=name, is_text=False)


def _parse_split(value: object) -> Split:
    split = _SPLIT_NAMES.get(value) if isinstance(value, str) else None
    if split is None:
        raise Unfit(f"found {shown(value)}; allowed are {', '.join(_SPLIT_NAMES)}")
    return split


_SPLIT = Column("split", _parse_split, target="split", required=False, is_text=False)

COLUMNS: Final[Mapping[Kind, tuple[Column, ...]]] = {
    "pairs": (_text("anchor"), _text("positive"), _SPLIT),
    "triplets": (
        _text("anchor"),
        _text("positive"),
        Column("negative", lambda value: [parse_text(value)], target="negatives"),
        Column("negatives", lambda value: parse_list(value, parse_text), target="negatives", cell="list"),
        _SPLIT,
    ),
    "scored": (
        _text("sentence1"),
        _text("sentence2"),
        Column("score", parse_score, target="score", cell="number", is_text=False),
        _SPLIT,
    ),
    "groups": (_text("text"), _name("label"), _SPLIT),
    "queries": (
        _text("query"),
        # A document is relevant or not, so naming it twice means the same as naming it once.
        Column(
            "documents",
            lambda value: list(dict.fromkeys(parse_list(value, parse_name))),
            target="documents",
            cell="list",
            is_text=False,
        ),
        _SPLIT,
    ),
    "documents": (_name("id"), _text("text")),
}


def column_names(kind: Kind) -> tuple[str, ...]:
    """The names of the columns that rows of this kind may have; documents take any others as metadata."""
    names = tuple(column.name for column in COLUMNS[kind])
    return (*names, "metadata") if kind == "documents" else names


def missing_columns(kind: Kind, present: Collection[str]) -> tuple[str, ...]:
    """Name the first required column that is not present, with its alternatives; nothing when all are there."""
    for column in COLUMNS[kind]:
        if column.required and column.name not in present:
            alternatives = _alternatives(kind, column)
            if not any(name in present for name in alternatives):
                return alternatives
    return ()


def parse_row(kind: Kind, raw: Mapping[str, object], line: int) -> Row:
    """Check one row and give it in its canonical form.

    A null stands for a column that is absent. `line` is only for the error, and counts from 1.
    Raises InvalidRow, which names the line and the column.
    """
    if kind != "documents":
        _refuse_unknown(kind, raw, line)
    row: Row = {}
    for column in COLUMNS[kind]:
        value = raw.get(column.name)
        if value is None:
            continue
        if column.target in row:
            raise InvalidRow(line, column.name, f"give {' or '.join(_alternatives(kind, column))}, not both")
        row[column.target] = _parse_at(line, column.name, column.parse, value)
    if missing := missing_columns(kind, row):
        raise InvalidRow(line, missing[0], f"is missing, null or empty; {' or '.join(missing)} is needed")
    if kind == "documents":
        row["metadata"] = _parse_metadata(raw, line)
    return row


def texts(kind: Kind, row: Row) -> Iterator[str]:
    """Give every text of a canonical row that an encoder would read, in the order of the columns."""
    for target in dict.fromkeys(column.target for column in COLUMNS[kind] if column.is_text):
        value = row[target]
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _alternatives(kind: Kind, column: Column) -> tuple[str, ...]:
    return tuple(other.name for other in COLUMNS[kind] if other.target == column.target)


def _refuse_unknown(kind: Kind, raw: Mapping[str, object], line: int) -> None:
    allowed = column_names(kind)
    for name in raw:
        if name not in allowed:
            raise InvalidRow(line, shortened(name), f"is not a column of {kind}; allowed are {', '.join(allowed)}")


def _parse_metadata(raw: Mapping[str, object], line: int) -> dict[str, Any]:
    others = {name: value for name, value in raw.items() if name not in ("id", "text")}
    whole = others.get("metadata")
    if others.keys() <= {"metadata"} and (whole is None or isinstance(whole, dict)):
        metadata: dict[str, Any] = _parse_at(line, "metadata", parse_json, whole or {})
        return metadata
    for name in others:
        _parse_at(line, shortened(name), parse_key, name)
    return {name: _parse_at(line, shortened(name), parse_json, value) for name, value in others.items()}


def _parse_at(line: int, field: str, parse: Callable[[object], _Parsed], value: object) -> _Parsed:
    try:
        return parse(value)
    except Unfit as error:
        raise InvalidRow(line, field, str(error)) from None
