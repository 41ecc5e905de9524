"""The rows of JSONL, CSV and Parquet files as they stand there, under our names of the columns, not yet checked.

Every reader gives `(line, raw row)`. A line counts from 1: the line of the file in JSONL, the line on which the record
starts in CSV, the row in Parquet. Memory holds one line, one record, or one batch of rows.
"""

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

import orjson

from zerogate.errors import InvalidFile, InvalidRow
from zerogate.examples import COLUMNS, Kind, column_names, missing_columns
from zerogate.values import shortened, shown

Raw = dict[str, object]

MAX_LINE_BYTES: Final = 8 * 2**20  # Of a line of JSONL and of a record of CSV.
ROWS_PER_BATCH: Final = 128  # Of a Parquet file: few, because a row may hold megabytes.


class _Lines:
    """The lines of a file as text. `start` is the line on which the current record starts."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._number = 0
        self._record_bytes = 0
        self.start = 1

    def start_record(self) -> None:
        self.start = self._number + 1
        self._record_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(MAX_LINE_BYTES - self._record_bytes + 1)
        if not raw:
            raise StopIteration
        self._number += 1
        self._record_bytes += len(raw)
        if self._record_bytes > MAX_LINE_BYTES:
            limit = f"{MAX_LINE_BYTES // 2**20} MiB"
            raise InvalidRow(self.start, None, f"is longer than {limit}; is a quote or a line left open?")
        if self._number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            found = f"byte {error.start + 1} is 0x{raw[error.start]:02x}"
            raise InvalidRow(self._number, None, f"{found}, which is not UTF-8; save the file as UTF-8") from None


def read_jsonl(file: BinaryIO, kind: Kind, columns: Mapping[str, str]) -> Iterator[tuple[int, Raw]]:
    """Give the objects of a file with one JSON object per line; blank lines are skipped but counted.

    Rows may lack optional columns, so the file lacks a mapped one when the first row cannot do without it, or no row has it.
    """
    unseen = dict(columns)
    first: list[str] | None = None
    lines = _Lines(file)
    for text in lines:
        if text.strip():
            raw = _parse_object(text, lines.start)
            unseen = {ours: theirs for ours, theirs in unseen.items() if theirs not in raw}
            if first is None:
                first = list(raw)
                _check_first_row(kind, first, columns)
            yield lines.start, _renamed(raw, columns, lines.start)
        lines.start_record()
    if first is not None and unseen:
        ours, theirs = next(iter(unseen.items()))
        raise _lacking(ours, f"{shown(theirs)}, which is mapped to '{ours}'", first)


def _parse_object(text: str, line: int) -> Raw:
    if text.lstrip().startswith("["):
        raise InvalidRow(line, None, "found a JSON list; write one JSON object per line, with no list around them")
    try:
        raw = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRow(line, None, f"broken JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(raw, dict):
        raise InvalidRow(line, None, f"found {shown(raw)}; every line is one JSON object")
    return raw


def _check_first_row(kind: Kind, found: Sequence[str], columns: Mapping[str, str]) -> None:
    present = {ours for ours, theirs in columns.items() if theirs in found}.union(found)
    for ours in missing_columns(kind, present):
        if ours in columns:
            raise _lacking(ours, f"{shown(columns[ours])}, which is mapped to '{ours}'", found)


def _renamed(raw: Raw, columns: Mapping[str, str], line: int) -> Raw:
    if not columns:
        return raw
    try:
        names = _our_names(list(raw), columns)
    except InvalidFile as error:
        raise InvalidRow(line, error.field, str(error)) from None
    return dict(zip(names, raw.values(), strict=True))


def read_csv(file: BinaryIO, kind: Kind, columns: Mapping[str, str]) -> Iterator[tuple[int, Raw]]:
    """Give the records of a CSV file with a header. An empty cell is absent.

    A cell of a list (negatives, documents) is a JSON array when it begins with "[", else its only item. The cell `metadata`
    of a document is a JSON object when it begins with "{".
    """
    # The module csv has one limit for the whole process, and its default is shorter than the longest text. It is only
    # ever raised: the limit that protects memory is that of the record, in _Lines.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    records = _csv_records(_Lines(file))
    _, header = next(records, (1, None))
    if header is None:
        return
    if len(header) == 1:  # No kind makes do with one column.
        raise InvalidFile(f"the header is one column, {shown(header[0])}; separate the columns by commas")
    names = _check_header(header, kind, columns)
    holds = {column.name: column.cell for column in COLUMNS[kind]}
    for line, cells in records:
        if len(cells) != len(names):
            raise InvalidRow(line, None, f"has {len(cells)} cells, but the header has {len(names)}")
        given = [(name, cell) for name, cell in zip(names, cells, strict=True) if cell]
        yield line, {name: _parse_cell(cell, holds.get(name), line, name) for name, cell in given}


def _csv_records(lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, strict=True)
    while True:
        lines.start_record()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            rule = "quote a cell that holds a comma, a quote or a line break, and double the quotes in it"
            raise InvalidRow(lines.start, None, f"broken CSV: {error}; {rule}") from None
        if cells is None:
            return
        if cells:  # A blank line is a record without cells.
            yield lines.start, cells


def _parse_cell(cell: str, holds: str | None, line: int, name: str) -> object:
    if holds == "number":
        return _parse_number(cell)
    is_list = holds == "list" and cell.lstrip().startswith("[")
    is_object = holds is None and name == "metadata" and cell.lstrip().startswith("{")
    if is_list or is_object:
        try:
            return orjson.loads(cell)
        except orjson.JSONDecodeError as error:
            raise InvalidRow(line, name, f"broken JSON at column {error.colno} of the cell: {error.msg}") from None
    return [cell] if holds == "list" else cell


def _parse_number(cell: str) -> object:
    """Give a number, or the cell itself for `parse_row` to refuse. Python alone would take 0_5 for a number."""
    try:
        return cell if "_" in cell else float(cell)
    except ValueError:
        return cell


def read_parquet(file: BinaryIO, kind: Kind, columns: Mapping[str, str]) -> Iterator[tuple[int, Raw]]:
    """Give the rows of a Parquet file; lists, structs and maps become lists and dicts."""
    line = 0
    for batch in _parquet_batches(file, kind, columns):
        for raw in _batch_rows(batch, line):
            line += 1
            yield line, raw


def _parquet_batches(file: BinaryIO, kind: Kind, columns: Mapping[str, str]) -> Iterator[Any]:
    import pyarrow as pa  # Here, because it is heavy and only Parquet needs it.
    import pyarrow.parquet as pq

    try:
        # Without these two, Arrow reads a whole row group ahead, which may be the whole file.
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**16)
        names = _check_header(parquet.schema_arrow.names, kind, columns)
        # No threads: a worker may have forked, and Arrow's threads do not survive that.
        for batch in parquet.iter_batches(batch_size=ROWS_PER_BATCH, use_threads=False):
            yield pa.RecordBatch.from_arrays([_microseconds(column) for column in batch.columns], names=names)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The disk is at fault: Arrow's own errors about damaged files have no errno.
        raise InvalidFile(f"the Parquet file is damaged or no Parquet: {str(error)[:200]}") from error


def _microseconds(column: Any) -> Any:
    """Round times that Python's datetime cannot hold: pandas writes nanoseconds."""
    import pyarrow as pa

    is_finer = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
    return column.cast(pa.timestamp("us", tz=column.type.tz), safe=False) if is_finer else column


def _batch_rows(batch: Any, line: int) -> list[Raw]:
    """Give the rows of a batch that starts after `line`."""
    try:
        rows: list[Raw] = batch.to_pylist(maps_as_pydicts="lossy")
    except ValueError as error:  # Such as a text that is not UTF-8.
        if batch.num_rows == 1:
            raise InvalidRow(line + 1, None, f"cannot be read: {error}") from None
        return [row for index in range(batch.num_rows) for row in _batch_rows(batch.slice(index, 1), line + index)]
    return rows


def _check_header(found: Sequence[str], kind: Kind, columns: Mapping[str, str]) -> list[str]:
    """Give our names of the columns that were found, in their order."""
    if "" in found:
        raise InvalidFile(f"column {list(found).index('') + 1} has no name")
    for ours, theirs in columns.items():
        if theirs not in found:
            raise _lacking(ours, f"{shown(theirs)}, which is mapped to '{ours}'", found)
    names = _our_names(found, columns)
    if missing := missing_columns(kind, names):
        raise _lacking(missing[0], " or ".join(map(shown, missing)), found)
    allowed = column_names(kind)
    for theirs, name in zip(found, names, strict=True):
        if name not in allowed and kind != "documents":
            raise InvalidFile(
                f"{shown(theirs)} is not a column of {kind}; allowed are {', '.join(allowed)}", field=shortened(theirs)
            )
    return names


def _our_names(found: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    ours_of = {theirs: ours for ours, theirs in columns.items()}
    names = [ours_of.get(theirs, theirs) for theirs in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        both = " and ".join(shown(theirs) for theirs, name in zip(found, names, strict=True) if name == twice)
        raise InvalidFile(f"{both} would both be the column {shown(twice)}; rename one", field=twice)
    return names


def _lacking(ours: str, wanted: str, found: Sequence[str]) -> InvalidFile:
    listed = ", ".join(shown(name) for name in found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
    return InvalidFile(f"there is no column {wanted}; the columns found are {listed}", field=ours)
