"""Reading a dataset file as a whole: its format, the names of its columns and its ids."""

import csv
import tempfile
import tracemalloc
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogate.errors import InvalidFile, InvalidRow
from zerogate.examples import Kind, Row
from zerogate.readers import Format, detect_format, read_rows

FORMATS: list[Format] = ["jsonl", "csv", "parquet"]


def write(path: Path, rows: list[Row], file_format: Format) -> Path:
    if file_format == "jsonl":
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    elif file_format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def header(path: Path, names: list[str], file_format: Format) -> Path:
    """Write a file with these columns, each of which holds an 'x'."""
    if file_format == "parquet":
        pq.write_table(pa.table([pa.array(["x"])] * len(names), names=names), path)
    else:
        path.write_text(f"{','.join(names)}\n{','.join('x' for _ in names)}\n")
    return path


def file_error(path: Path, file_format: Format, kind: Kind = "pairs", **columns: str) -> tuple[str | None, str]:
    with pytest.raises(InvalidFile) as caught:
        list(read_rows(path, format=file_format, kind=kind, columns=columns))
    return caught.value.field, str(caught.value)


def row_error(path: Path, file_format: Format, kind: Kind, **columns: str) -> tuple[int, str | None, str]:
    with pytest.raises(InvalidRow) as caught:
        list(read_rows(path, format=file_format, kind=kind, columns=columns))
    return caught.value.line, caught.value.field, caught.value.problem


@pytest.mark.parametrize(
    ("filename", "content_type", "first_bytes", "expected"),
    [
        ("rows.JSONL", "text/csv", b"PAR1", "jsonl"),
        ("rows.ndjson", None, b"", "jsonl"),
        ("my.data.csv", "application/x-ndjson", b'{"a"', "csv"),
        ("rows.parquet", None, b"anchor,", "parquet"),
        ("rows.txt", "Text/CSV; charset=utf-8", b'{"a"', "csv"),
        (None, "application/vnd.apache.parquet", b"", "parquet"),
        (None, "application/x-www-form-urlencoded", b'{"anchor": 1}', "jsonl"),
        ("rows", "application/octet-stream", b"PAR1\x15\x04", "parquet"),
        (None, None, b'\xef\xbb\xbf\n {"anchor"', "jsonl"),
        (None, None, b'[{"anchor"', "jsonl"),
        (None, None, b"anchor,positive\n", "csv"),
        (None, None, b"", "csv"),
    ],
)
def test_a_format_is_known_by_extension_then_content_type_then_first_bytes(
    filename: str | None, content_type: str | None, first_bytes: bytes, expected: Format
) -> None:
    assert detect_format(first_bytes, filename, content_type) == expected


@pytest.mark.parametrize(("magic", "name"), [(b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "zip"), (b"\x28\xb5\x2f\xfd", "zstd")])
@pytest.mark.parametrize("filename", ["rows.csv", "rows.csv.gz", "rows.xlsx", None])
def test_a_compressed_file_is_refused_whatever_it_is_called(magic: bytes, name: str, filename: str | None) -> None:
    with pytest.raises(InvalidFile, match=f"compressed with {name}.*; JSONL, CSV and Parquet are allowed, not compressed"):
        detect_format(magic + b"rest", filename, "text/csv")


@pytest.mark.parametrize("file_format", FORMATS)
def test_columns_are_mapped_from_the_names_in_the_file(tmp_path: Path, file_format: Format) -> None:
    path = write(tmp_path / "rows", [{"positive": "question", "answer": "p", "fold": "dev"}], file_format)
    columns = {"anchor": "positive", "positive": "answer", "split": "fold"}

    rows = list(read_rows(path, format=file_format, kind="pairs", columns=columns))

    assert rows == [{"anchor": "question", "positive": "p", "split": "validation"}]


def test_metadata_of_documents_can_be_mapped_too(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", [{"id": "1", "text": "t", "info": {"year": 2020}}], "jsonl")

    rows = list(read_rows(path, format="jsonl", kind="documents", columns={"metadata": "info"}))

    assert rows == [{"id": "1", "text": "t", "metadata": {"year": 2020}}]


def test_a_mapping_is_checked_before_the_file_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="'label' is not a column of pairs; allowed are anchor, positive, split") as caught:
        read_rows(tmp_path / "absent", format="csv", kind="pairs", columns={"label": "x"})
    assert caught.value.field == "label"

    with pytest.raises(InvalidFile, match="'q' is mapped to both 'anchor' and 'positive'; map it once") as caught:
        read_rows(tmp_path / "absent", format="csv", kind="pairs", columns={"anchor": "q", "positive": "q"})
    assert caught.value.field == "positive"


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("names", "kind", "columns", "field", "message"),
    [
        (["anchor", "pos"], "pairs", {}, "positive", "there is no column 'positive'; the columns found are 'anchor', 'pos'"),
        (["anchor", "positive"], "triplets", {}, "negative", "there is no column 'negative' or 'negatives'; the columns found"),
        (["anchor", "positive"], "pairs", {"anchor": "q"}, "anchor", "there is no column 'q', which is mapped to 'anchor'; the"),
        (
            ["anchor", "positive"],
            "pairs",
            {"split": "fold"},
            "split",
            "there is no column 'fold', which is mapped to 'split'; the",
        ),
        (["anchor", "positive", "x"], "pairs", {}, "x", "'x' is not a column of pairs; allowed are anchor, positive, split"),
        (["anchor", "positive", "anchor"], "pairs", {}, "anchor", "'anchor' and 'anchor' would both be the column 'anchor'"),
        (["text", "id", "body"], "documents", {"text": "body"}, "text", "'text' and 'body' would both be the column 'text'"),
        (["id", "text", ""], "documents", {}, None, "column 3 has no name"),
    ],
)
def test_a_header_names_the_column_at_fault(
    tmp_path: Path,
    file_format: Format,
    names: list[str],
    kind: Kind,
    columns: dict[str, str],
    field: str | None,
    message: str,
) -> None:
    found_field, found_message = file_error(header(tmp_path / "rows", names, file_format), file_format, kind, **columns)

    assert found_field == field
    assert found_message.startswith(message)


def test_a_mapped_column_that_jsonl_lacks_is_missed_at_once_or_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", [{"q": "a", "positive": "p"}, {"q": "a", "positive": "p"}], "jsonl")
    found = "the columns found are 'q', 'positive'"

    required = file_error(path, "jsonl", anchor="question")
    optional = file_error(path, "jsonl", anchor="q", split="fold")

    assert required == ("anchor", f"there is no column 'question', which is mapped to 'anchor'; {found}")
    assert optional == ("split", f"there is no column 'fold', which is mapped to 'split'; {found}")


def test_a_row_of_jsonl_may_lack_an_optional_mapped_column(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", [{"anchor": "a", "positive": "p"}, {"anchor": "a", "positive": "p", "fold": "test"}], "jsonl")

    rows = list(read_rows(path, format="jsonl", kind="pairs", columns={"split": "fold"}))

    assert [row.get("split") for row in rows] == [None, "test"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_error_in_a_mapped_column_names_ours_and_the_one_in_the_file(tmp_path: Path, file_format: Format) -> None:
    path = write(tmp_path / "rows", [{"question": " ", "positive": "p"}], file_format)
    problem = "found ' '; a text that is not blank is needed (the file's column 'question')"

    found = row_error(path, file_format, "pairs", anchor="question")

    assert found == (2 if file_format == "csv" else 1, "anchor", problem)


def test_a_row_of_jsonl_with_a_mapped_column_under_both_names_is_refused(tmp_path: Path) -> None:
    rows = [{"q": "a", "positive": "p"}, {"q": "a", "anchor": "b", "positive": "p"}]

    found = row_error(write(tmp_path / "rows", rows, "jsonl"), "jsonl", "pairs", anchor="q")

    assert found == (2, "anchor", "'q' and 'anchor' would both be the column 'anchor'; rename one")


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_second_document_with_the_same_id_is_refused_at_its_line(tmp_path: Path, file_format: Format) -> None:
    rows = [{"id": i, "text": "t"} for i in ("7", "8", "9", "8")]

    line, field, problem = row_error(write(tmp_path / "rows", rows, file_format), file_format, "documents")

    assert (line, field) == (5 if file_format == "csv" else 4, "id")
    earlier = 3 if file_format == "csv" else 2
    assert problem == f"'8' is the id in line {earlier} already; ids are unique within a file"


def test_ids_that_become_equal_are_equal(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", [{"id": 8, "text": "t"}, {"id": "8", "text": "t"}], "jsonl")

    assert row_error(path, "jsonl", "documents")[:2] == (2, "id")


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=12), hashes=st.sampled_from([1, 2, 2**61]))
def test_the_first_id_that_comes_again_is_refused_and_no_other_even_where_hashes_are_equal(ids: list[str], hashes: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = write(Path(folder) / "rows", [{"id": i, "text": "t"} for i in ids], "jsonl")
        patch.setattr("zerogate.readers.hash", lambda name: hash(name) % hashes, raising=False)
        again = next((line for line, name in enumerate(ids, start=1) if name in ids[: line - 1]), None)

        if again is None:
            assert [row["id"] for row in read_rows(path, format="jsonl", kind="documents")] == ids
        else:
            line, _, problem = row_error(path, "jsonl", "documents")
            # Where different ids have equal hashes, another pair may be found first; a pair it is in any case.
            assert ids[line - 1] in ids[: line - 1]
            assert problem.startswith(f"'{ids[line - 1]}' is the id in line {ids.index(ids[line - 1]) + 1} already")
            assert line == again or hashes == 2


def test_an_id_costs_a_few_bytes_of_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (5_000, 30_000):
        write(tmp_path / "rows", [{"id": f"document number {i}", "text": "t"} for i in range(count)], "jsonl")
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_rows(tmp_path / "rows", format="jsonl", kind="documents")) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    # 8 of each while reading, as many once more while they are sorted; whatever else happens meanwhile takes some 100 kB.
    assert peaks[1] - peaks[0] < 25_000 * 20 + 2**18


@pytest.mark.parametrize(
    ("file_format", "content"),
    [
        ("jsonl", b""),
        ("jsonl", b"\xef\xbb\xbf"),
        ("jsonl", b"\n \n"),
        ("csv", b""),
        ("csv", b"\n"),
        ("csv", b"anchor,positive\n\n"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, file_format: Format, content: bytes) -> None:
    (tmp_path / "rows").write_bytes(content)

    assert file_error(tmp_path / "rows", file_format, anchor="anchor") == (None, "the file holds no rows")


def test_a_row_that_jsonl_could_not_hold_is_refused_in_every_format(tmp_path: Path) -> None:
    rows = [{"anchor": "a", "positive": "p", "negatives": ["n" * 10**6] * count} for count in (8, 9)]

    found = row_error(write(tmp_path / "rows", rows, "parquet"), "parquet", "triplets")

    assert found[:2] == (2, None)
    assert found[2].endswith("bytes as JSON; at most 8,388,608 are allowed")
