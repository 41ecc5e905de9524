"""Files of a dataset: JSONL, CSV and Parquet, read row by row in memory that does not grow with the file, but for documents' ids.

How each format is taken apart is in `zerogate.raw_rows`, what a valid row is in `zerogate.examples`.
"""

import codecs
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Final, Literal

import numpy as np
import orjson

from zerogate.errors import InvalidFile, InvalidRow
from zerogate.examples import Kind, Row, column_names, parse_row
from zerogate.raw_rows import MAX_LINE_BYTES, read_csv, read_jsonl, read_parquet
from zerogate.values import shown

Format = Literal["jsonl", "csv", "parquet"]

_ALLOWED = "JSONL, CSV and Parquet are allowed, not compressed as a whole"
_COMPRESSED: Final[Mapping[bytes, str]] = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip (as .xlsx is)",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_HINTS: Final[Mapping[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    "application/jsonl": "jsonl",
    "application/x-jsonlines": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/ndjson": "jsonl",
    "application/json": "jsonl",
    ".csv": "csv",
    "text/csv": "csv",
    "application/csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
}


def detect_format(first_bytes: bytes, filename: str | None, content_type: str | None) -> Format:
    """Say which format a file has: by its extension, else its content type, else its first bytes; else it is CSV.

    Raises InvalidFile for a compressed file, whatever it is called.
    """
    for magic, name in _COMPRESSED.items():
        if first_bytes.startswith(magic):
            raise InvalidFile(f"the file is compressed with {name}; {_ALLOWED}")
    extension = PurePath(filename or "").suffix.lower()
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if hinted := _HINTS.get(extension) or _HINTS.get(media_type):
        return hinted
    if first_bytes.startswith(b"PAR1"):
        return "parquet"
    # A JSON array is no JSONL, but the JSONL reader is the one that can say so.
    return "jsonl" if first_bytes.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")) else "csv"


def read_rows(
    path: Path,
    *,
    format: Format,  # noqa: A002 (the word that the API uses)
    kind: Kind,
    columns: Mapping[str, str] = {},
) -> Iterator[Row]:
    """Give the canonical rows of a file, in order.

    `columns` maps our names of columns to the file's, e.g. {"anchor": "question"}; it is checked at the call, all else
    while reading. Of a document's id 8 bytes are kept: whether two are equal is found out after the last row, by a second look
    at the file, so that it is always true. Whoever stops earlier does not learn it.
    Raises InvalidFile when the file as a whole cannot be read, and InvalidRow, which names the line and our column.
    """
    _check_mapping(kind, columns)
    return _read_rows(path, format, kind, columns)


def _read_rows(path: Path, file_format: Format, kind: Kind, columns: Mapping[str, str]) -> Iterator[Row]:
    id_hashes = array("q")
    is_empty = True
    for _, row in _numbered_rows(path, file_format, kind, columns):
        if kind == "documents":
            id_hashes.append(hash(row["id"]))
        is_empty = False
        yield row
    if is_empty:
        raise InvalidFile("the file holds no rows")
    for suspect in _repeated(id_hashes):
        ids = ((line, row["id"]) for line, row in _numbered_rows(path, file_format, kind, columns))
        _refuse_second((line, document_id) for line, document_id in ids if hash(document_id) == suspect)


def _numbered_rows(path: Path, file_format: Format, kind: Kind, columns: Mapping[str, str]) -> Iterator[tuple[int, Row]]:
    read = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}[file_format]
    with path.open("rb") as file:
        for line, raw in read(file, kind, columns):
            row = _parse_row(kind, raw, line, columns)
            _check_size(row, line)
            yield line, row


def _check_mapping(kind: Kind, columns: Mapping[str, str]) -> None:
    allowed = column_names(kind)
    taken: dict[str, str] = {}
    for ours, theirs in columns.items():
        if ours not in allowed:
            raise InvalidFile(f"{shown(ours)} is not a column of {kind}; allowed are {', '.join(allowed)}", field=ours)
        if theirs in taken:
            raise InvalidFile(f"{shown(theirs)} is mapped to both '{taken[theirs]}' and '{ours}'; map it once", field=ours)
        taken[theirs] = ours


def _parse_row(kind: Kind, raw: Mapping[str, object], line: int, columns: Mapping[str, str]) -> Row:
    try:
        return parse_row(kind, raw, line)
    except InvalidRow as error:
        theirs = columns.get(error.field or "")
        if theirs is None:
            raise
        raise InvalidRow(line, error.field, f"{error.problem} (the file's column {shown(theirs)})") from None


def _check_size(row: Row, line: int) -> None:
    # What was read here is written as JSONL and read again: CSV and Parquet must not bring in what JSONL could not hold.
    size_bytes = len(orjson.dumps(row)) + 1
    if size_bytes > MAX_LINE_BYTES:
        raise InvalidRow(line, None, f"takes {size_bytes:,} bytes as JSON; at most {MAX_LINE_BYTES:,} are allowed")


def _repeated(hashes: "array[int]") -> list[int]:
    """The hashes that came more than once, in the order in which they came again."""
    values = np.frombuffer(hashes, dtype=np.int64)
    in_order = np.sort(values)
    if not np.any(in_order[1:] == in_order[:-1]):  # as in nearly every file; the rest costs thrice the memory
        return []
    places = np.argsort(values, kind="stable")
    came_again = np.sort(places[1:][in_order[1:] == in_order[:-1]])
    return list(dict.fromkeys(values[came_again].tolist()))


def _refuse_second(ids: Iterable[tuple[int, str]]) -> None:
    """Raise InvalidRow for the second of two equal ids; each comes with its line."""
    lines: dict[str, int] = {}
    for line, document_id in ids:
        if document_id in lines:
            problem = f"{shown(document_id)} is the id in line {lines[document_id]} already; ids are unique within a file"
            raise InvalidRow(line, "id", problem)
        lines[document_id] = line
