"""Rows that are written and read again: any rows come back the same, and many rows take no more memory than few."""

import csv
import itertools
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogate.examples import KINDS, Kind, Row
from zerogate.readers import Format, read_rows

FORMATS: list[Format] = ["jsonl", "csv", "parquet"]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12).filter(
    lambda t: not t.isspace()
)
LISTS = st.lists(TEXTS, min_size=1, max_size=3)
SPLIT = {"split": st.sampled_from(["train", "validation", "test"])}
JSON = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
ROWS: dict[Kind, st.SearchStrategy[Row]] = {
    "pairs": st.fixed_dictionaries({"anchor": TEXTS, "positive": TEXTS}, optional=SPLIT),
    "triplets": st.fixed_dictionaries({"anchor": TEXTS, "positive": TEXTS, "negatives": LISTS}, optional=SPLIT),
    "scored": st.fixed_dictionaries({"sentence1": TEXTS, "sentence2": TEXTS, "score": st.floats(0, 1)}, optional=SPLIT),
    "groups": st.fixed_dictionaries({"text": TEXTS, "label": TEXTS}, optional=SPLIT),
    "queries": st.fixed_dictionaries({"query": TEXTS, "documents": st.lists(TEXTS, min_size=1, unique=True)}, optional=SPLIT),
    "documents": st.fixed_dictionaries({"id": TEXTS, "text": TEXTS, "metadata": st.dictionaries(TEXTS, JSON | st.lists(JSON))}),
}
# A column of Parquet has one type in all rows.
TYPES = {"score": pa.float64(), "negatives": pa.list_(pa.string()), "documents": pa.list_(pa.string()), "year": pa.uint64()}
TYPED = st.fixed_dictionaries({"year": st.none() | st.integers(0, 2**64 - 1), "title": st.none() | TEXTS})
TYPED_DOCUMENTS = st.fixed_dictionaries({"id": TEXTS, "text": TEXTS, "metadata": TYPED})


def write(path: Path, rows: Iterable[Row], file_format: Format) -> None:
    """Write rows as a person would: in CSV, lists and metadata are JSON, and an empty cell says that nothing is there."""
    if file_format == "jsonl":
        with path.open("wb") as lines:
            lines.writelines(orjson.dumps(row) + b"\n" for row in rows)
    elif file_format == "parquet":
        rows = list(rows)
        names = dict.fromkeys(name for row in rows for name in row)
        schema = pa.schema([(name, TYPES.get(name, pa.string())) for name in names])
        pq.write_table(pa.Table.from_pylist(rows, schema), path, use_dictionary=False, data_page_size=2**16)
    else:
        first, rows = itertools.tee(rows)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in first for name in row)))
            writer.writeheader()
            writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def cell(value: Any) -> str:
    return orjson.dumps(value).decode() if isinstance(value, list | dict) else str(value)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_canonical_rows_come_back_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, file_format: Format, data: st.DataObject
) -> None:
    is_typed = kind == "documents" and file_format == "parquet"
    unique_by = (lambda row: row["id"]) if kind == "documents" else None
    rows = data.draw(st.lists(TYPED_DOCUMENTS if is_typed else ROWS[kind], min_size=1, max_size=4, unique_by=unique_by))
    path = tmp_path_factory.getbasetemp() / "round_trip"

    write(path, [{"id": row["id"], "text": row["text"], **row["metadata"]} for row in rows] if is_typed else rows, file_format)

    assert list(read_rows(path, format=file_format, kind=kind)) == rows


def peak_bytes(path: Path, file_format: Format, expected_rows: int) -> int:
    """Read a file of pairs to its end; give what Python and Arrow together held at most."""
    arrow = pa.proxy_memory_pool(pa.default_memory_pool())
    usual = pa.default_memory_pool()
    pa.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_rows(path, format=file_format, kind="pairs"))
        return tracemalloc.get_traced_memory()[1] + (arrow.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
        assert count == expected_rows


@pytest.mark.parametrize("file_format", FORMATS)
def test_six_times_the_rows_take_no_more_memory(tmp_path: Path, file_format: Format) -> None:
    peaks = []
    for count in (10_000, 60_000):
        pairs = ({"anchor": f"question number {i}", "positive": f"answer {i * 7919} to it"} for i in range(count))
        write(tmp_path / "rows", pairs, file_format)
        peaks.append(peak_bytes(tmp_path / "rows", file_format, count))

    # Whatever else the interpreter does meanwhile takes some 100 kB; the rows are 6 MB in Python.
    assert peaks[1] < peaks[0] + 2**18
    assert peaks[1] < 2**19
