"""JSONL, CSV and Parquet files as people write them, good and broken: what is read, and which line an error names."""

import io
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zerogate.errors import InvalidFile, InvalidRow
from zerogate.examples import Kind, Row
from zerogate.raw_rows import MAX_LINE_BYTES
from zerogate.readers import Format, read_rows

PAIR = b'{"anchor": "a", "positive": "p"}'
TWO_PAIRS = [{"anchor": "a", "positive": "p"}] * 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows"


def read(path: Path, content: bytes, file_format: Format, kind: Kind = "pairs") -> list[Row]:
    path.write_bytes(content)
    return list(read_rows(path, format=file_format, kind=kind))


def row_error(path: Path, content: bytes, file_format: Format, kind: Kind = "pairs") -> InvalidRow:
    with pytest.raises(InvalidRow) as caught:
        read(path, content, file_format, kind)
    return caught.value


def file_error(path: Path, content: bytes, file_format: Format) -> InvalidFile:
    with pytest.raises(InvalidFile) as caught:
        read(path, content, file_format)
    return caught.value


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_jsonl_may_begin_with_a_bom_and_end_without_a_line_break(path: Path, end: bytes) -> None:
    assert read(path, b"\xef\xbb\xbf" + PAIR + end + PAIR, "jsonl") == TWO_PAIRS


def test_blank_lines_of_jsonl_are_skipped_but_counted(path: Path) -> None:
    assert read(path, b"\n" + PAIR + b"\n \t\n\r\n" + PAIR + b"\n\n", "jsonl") == TWO_PAIRS
    assert row_error(path, b"\n" + PAIR + b"\n \t\n{}\n", "jsonl").line == 4


def test_the_last_of_two_equal_json_keys_wins(path: Path) -> None:
    assert read(path, b'{"anchor": "first", "anchor": "a", "positive": "p"}', "jsonl") == TWO_PAIRS[:1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"anchor": "a",}', "broken JSON at column 15: trailing comma is not allowed"),
        ('{"änchor": nan}'.encode(), "broken JSON at column 12: "),
        (PAIR + b" x", "broken JSON at column 34: "),
        (b'{"anchor": "\\ud800"}', "broken JSON at column 13: "),
        (b"[" + PAIR + b"]", "found a JSON list; write one JSON object per line"),
        (b"[", "found a JSON list; write one JSON object per line"),
        (b'"text"', "found 'text'; every line is one JSON object"),
        (b"anchor,positive", "broken JSON at column 1: "),
        (b'{"a":' * 2000, "broken JSON at column "),
        (b'{"anchor": "\xff"}', "byte 13 is 0xff, which is not UTF-8; save the file as UTF-8"),
        (b'{"anchor": "\xed\xa0\x80"}', "byte 13 is 0xed, which is not UTF-8"),
    ],
)
def test_broken_jsonl_names_the_line_and_the_place_in_it(path: Path, line: bytes, problem: str) -> None:
    error = row_error(path, PAIR + b"\n\n" + line + b"\n" + PAIR, "jsonl")

    assert (error.line, error.field) == (3, None)
    assert error.problem.startswith(problem)


def test_a_line_of_jsonl_may_have_8_mib_and_no_byte_more(path: Path) -> None:
    padding = b" " * (MAX_LINE_BYTES - len(PAIR) - 1) + b"\n"

    assert read(path, PAIR + padding + PAIR, "jsonl") == TWO_PAIRS
    assert row_error(path, PAIR + b"\n" + PAIR + b" " + padding, "jsonl").problem.startswith("is longer than 8 MiB")


@pytest.mark.parametrize(
    ("file_format", "start", "rest"),
    [("jsonl", PAIR + b"\n", b"x" * 2**20), ("csv", b'anchor,positive\n"', b"x" * 2**16 + b"\n")],
    ids=["a line", "a quoted cell"],
)
def test_what_never_ends_is_refused_before_it_is_read_whole(path: Path, file_format: Format, start: bytes, rest: bytes) -> None:
    with path.open("wb") as file:
        file.write(start)
        for _ in range(128 * 2**20 // len(rest)):
            file.write(rest)

    tracemalloc.start()
    with pytest.raises(InvalidRow, match="is longer than 8 MiB") as caught:
        list(read_rows(path, format=file_format, kind="pairs"))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert caught.value.line == 2
    assert peak_bytes < 8 * MAX_LINE_BYTES


def test_csv_keeps_commas_quotes_and_line_breaks_within_quotes(path: Path) -> None:
    content = b'\xef\xbb\xbf"anchor",positive,split\r\n"a, ""b""\r\n\nc",p "q",\r\n\r\nx,y,dev'

    assert read(path, content, "csv") == [
        {"anchor": 'a, "b"\r\n\nc', "positive": 'p "q"'},
        {"anchor": "x", "positive": "y", "split": "validation"},
    ]


@pytest.mark.parametrize(
    ("record", "field", "problem"),
    [
        (b"a", None, "has 1 cells, but the header has 2"),
        (b'a,"p\n\n",c', None, "has 3 cells, but the header has 2"),
        (b'a,"p" x', None, "broken CSV: ',' expected after '\"'"),
        (b'a,"p\n\n', None, "broken CSV: unexpected end of data"),
        (b"a,", "positive", "is missing, null or empty"),
        (b'" ",p', "anchor", "found ' '; a text that is not blank is needed"),
    ],
)
def test_a_broken_record_of_csv_names_the_line_on_which_it_starts(
    path: Path, record: bytes, field: str | None, problem: str
) -> None:
    error = row_error(path, b'\nanchor,positive\n"a\n\na",p\n\n' + record, "csv")

    assert (error.line, error.field) == (7, field)
    assert error.problem.startswith(problem)


def test_bytes_that_are_not_utf8_name_their_own_line_within_a_record_of_csv(path: Path) -> None:
    error = row_error(path, b'anchor,positive\na,p\n"a\nb\nM\xfcnchen",p\n', "csv")

    assert (error.line, error.field) == (5, None)
    assert error.problem.startswith("byte 2 is 0xfc, which is not UTF-8")


def test_cells_of_csv_hold_lists_as_json_or_as_one_plain_item(path: Path) -> None:
    triplets = read(path, b'anchor,positive,negatives\na,p,"[""n1"", ""n2""]"\na,p,n3\n', "csv", "triplets")
    mixed = read(path, b"anchor,positive,negative,negatives\na,p,[n],\na,p,,n2\n", "csv", "triplets")
    queries = read(path, b'query,documents\nq,"[1, ""d""]"\nq,7\n', "csv", "queries")

    assert [row["negatives"] for row in triplets] == [["n1", "n2"], ["n3"]]
    assert [row["negatives"] for row in mixed] == [["[n]"], ["n2"]]
    assert [row["documents"] for row in queries] == [["1", "d"], ["7"]]


def test_a_list_of_csv_that_is_broken_json_names_its_column(path: Path) -> None:
    error = row_error(path, b"query,documents\nq,d\nq,[d1]\n", "csv", "queries")

    assert (error.line, error.field) == (3, "documents")
    assert error.problem.startswith("broken JSON at column 2 of the cell: ")


@pytest.mark.parametrize(("cell", "score"), [("0", 0.0), ("1.0", 1.0), (" .5 ", 0.5), ("5e-1", 0.5)])
def test_scores_of_csv_are_read_as_numbers(path: Path, cell: str, score: float) -> None:
    row = f"sentence1,sentence2,score\nx,y,{cell}\n".encode()

    assert read(path, row, "csv", "scored") == [{"sentence1": "x", "sentence2": "y", "score": score}]


@pytest.mark.parametrize(("cell", "found"), [("high", "'high'"), ("0_1", "'0_1'"), ("nan", "nan"), ("4.8", "4.8")])
def test_scores_of_csv_that_are_no_numbers_from_0_to_1_are_refused(path: Path, cell: str, found: str) -> None:
    error = row_error(path, f"sentence1,sentence2,score\nx,y,{cell}\n".encode(), "csv", "scored")

    assert (error.line, error.field) == (2, "score")
    assert error.problem == f"found {found}; a number from 0 to 1 is needed"


def test_metadata_of_csv_is_other_columns_or_one_json_object(path: Path) -> None:
    others = read(path, b"id,text,year,lang\n1,t,2020,\n", "csv", "documents")
    whole = read(path, b'id,text,metadata\n1,t,"{""year"": 2020}"\n2,t,\n3,t,note\n', "csv", "documents")

    assert others == [{"id": "1", "text": "t", "metadata": {"year": "2020"}}]
    assert [row["metadata"] for row in whole] == [{"year": 2020}, {}, {"metadata": "note"}]


def test_parquet_is_read_with_lists_structs_maps_and_times(path: Path) -> None:
    times = pa.array([1709209800000000001, None], pa.timestamp("ns", tz="UTC"))
    maps = pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64()))
    tags = pa.array([["x", "y"], None])
    names = pa.array(["t1", "t2"]).dictionary_encode()
    table = pa.table({"id": [1, 2], "text": names, "at": times, "map": maps, "tags": tags, "in": [{"a": 1.5}, None]})
    pq.write_table(table, path)

    assert list(read_rows(path, format="parquet", kind="documents")) == [
        {
            "id": "1",
            "text": "t1",
            "metadata": {"at": "2024-02-29T12:30:00+00:00", "map": {"k": 1}, "tags": ["x", "y"], "in": {"a": 1.5}},
        },
        {"id": "2", "text": "t2", "metadata": {"at": None, "map": None, "tags": None, "in": None}},
    ]


def test_an_error_in_parquet_names_the_row_across_batches_and_row_groups(path: Path) -> None:
    rows = [{"anchor": f"a{i}", "positive": "p"} for i in range(1000)]
    rows[777]["positive"] = " "

    error = row_error(path, parquet(rows, row_group_size=300), "parquet")

    assert (error.line, error.field) == (778, "positive")


def test_a_text_of_parquet_that_is_not_utf8_names_its_row(path: Path) -> None:
    texts = pa.array([b"a"] * 200 + [b"M\xfcnchen"] + [b"a"] * 100).view(pa.string())
    pq.write_table(pa.table({"anchor": texts, "positive": ["p"] * 301}), path)

    with pytest.raises(InvalidRow, match="cannot be read: 'utf-8' codec can't decode byte 0xfc") as caught:
        list(read_rows(path, format="parquet", kind="pairs"))

    assert caught.value.line == 201


def test_a_damaged_parquet_file_is_an_invalid_file(path: Path) -> None:
    whole = parquet([{"anchor": f"anchor {i}", "positive": "p"} for i in range(1000)], compression="zstd", use_dictionary=False)
    torn_page = whole[:200] + b"\x00" * 200 + whole[400:]

    for damaged in (b"", b"PAR1", b"PAR1" + b"\x00" * 100 + b"PAR1", whole[:-1], whole[: len(whole) // 2], torn_page):
        assert "damaged" in str(file_error(path, damaged, "parquet"))


def test_a_csv_file_separated_by_semicolons_is_told_about_commas(path: Path) -> None:
    assert str(file_error(path, b"anchor;positive\na;p\n", "csv")) == (
        "the header is one column, 'anchor;positive'; separate the columns by commas"
    )
