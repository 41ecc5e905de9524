"""What is counted about a dataset while its rows pass by."""

import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogate.examples import Kind, Row
from zerogate.readers import read_rows
from zerogate.report import DatasetReport, Report


def report(kind: Kind, rows: Iterable[Row]) -> Report:
    counted = DatasetReport(kind)
    for row in rows:
        counted.add(row)
    return counted.summary()


def test_a_report_without_rows_is_all_zero() -> None:
    assert report("pairs", []) == {
        "rows": 0,
        "distinct_texts": 0,
        "duplicate_rows": 0,
        "longest_text_characters": 0,
        "splits": {"train": 0, "validation": 0, "test": 0, "unassigned": 0},
    }


def test_rows_are_counted_by_split_and_those_without_one_are_unassigned() -> None:
    splits = ["train", "train", "train", "validation", "validation", "test"]
    rows = [{"anchor": "a", "positive": "p", "split": split} for split in splits]

    found = report("pairs", [*rows, {"anchor": "a", "positive": "p"}])

    assert found["splits"] == {"train": 3, "validation": 2, "test": 1, "unassigned": 1}


def test_a_text_is_counted_once_in_whichever_column_and_row_it_stands() -> None:
    rows = [
        {"anchor": "a", "positive": "p", "negatives": ["n", "a", "n"]},
        {"anchor": "n", "positive": "a", "negatives": ["other"]},
    ]

    assert report("triplets", rows)["distinct_texts"] == 4


def test_a_row_repeated_in_another_split_is_a_duplicate() -> None:
    first = {"sentence1": "s", "sentence2": "t", "score": 0.5, "split": "train"}
    rows = [first, first, {**first, "split": "test"}, {**first, "score": 0.6}, {**first, "sentence1": "t", "sentence2": "s"}]

    assert report("scored", rows)["duplicate_rows"] == 2


def test_the_longest_text_is_told_in_characters_not_in_bytes() -> None:
    rows = [{"query": "äöü€", "documents": ["an id is no text"]}, {"query": "abc", "documents": ["1"]}]

    assert report("queries", rows)["longest_text_characters"] == 4


def test_labels_are_counted_for_groups_and_only_there() -> None:
    groups = report("groups", [{"text": text, "label": label} for text, label in [("x", "a"), ("y", "a"), ("z", "b")]])
    pairs = report("pairs", [{"anchor": "a", "positive": "p"}])

    assert groups["labels"] == 2
    assert "labels" not in pairs


def test_documents_have_no_splits_even_where_their_metadata_does() -> None:
    rows = [{"id": "1", "text": "t", "metadata": {"split": "train"}}, {"id": "2", "text": "t", "metadata": {}}]

    assert report("documents", rows) == {"rows": 2, "distinct_texts": 1, "duplicate_rows": 0, "longest_text_characters": 1}


LETTERS = st.text("ab", min_size=1, max_size=2)
GROUP = st.fixed_dictionaries({"text": LETTERS, "label": LETTERS}, optional={"split": st.sampled_from(["train", "test"])})


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(GROUP, max_size=30))
def test_a_report_agrees_with_counting_everything_at_once(rows: list[Row]) -> None:
    contents = {(row["text"], row["label"]) for row in rows}
    splits = [row.get("split", "unassigned") for row in rows]

    assert report("groups", rows) == {
        "rows": len(rows),
        "splits": {name: splits.count(name) for name in ("train", "validation", "test", "unassigned")},
        "distinct_texts": len({row["text"] for row in rows}),
        "duplicate_rows": len(rows) - len(contents),
        "longest_text_characters": max((len(row["text"]) for row in rows), default=0),
        "labels": len({row["label"] for row in rows}),
    }


def test_many_rows_are_counted_right() -> None:
    rows = ({"text": f"text {number % 100_000}", "label": f"label {number % 70_000}"} for number in range(150_000))

    found = report("groups", rows)

    # Rows i and i + 100,000 have the same text, and never the same label: 100,000 is no multiple of 70,000.
    assert (found["rows"], found["distinct_texts"], found["labels"], found["duplicate_rows"]) == (150_000, 100_000, 70_000, 0)


def test_a_row_costs_a_few_bytes_of_memory() -> None:
    tracemalloc.start()
    try:
        report("documents", ({"id": str(number), "text": f"text {number}", "metadata": {}} for number in range(20_000)))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # A row and a text each: 8 bytes, and as many while they are sorted; whatever else happens meanwhile takes some 100 kB.
    assert peak_bytes < 20_000 * 2 * 16 + 2**18


@pytest.mark.parametrize("kind", ["pairs", "documents"])
def test_rows_are_read_counted_and_written_in_one_pass(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "in.csv").write_text("id,text,lang\n1,t,en\n2,u,\n" if kind == "documents" else "anchor,positive\nq,t\nr,u\n")
    counted = DatasetReport(kind)

    with (tmp_path / "out.jsonl").open("wb") as out:
        for row in read_rows(tmp_path / "in.csv", format="csv", kind=kind):
            counted.add(row)
            out.write(orjson.dumps(row) + b"\n")

    again = list(read_rows(tmp_path / "out.jsonl", format="jsonl", kind=kind))
    assert counted.summary() == report(kind, again)
    assert counted.summary()["rows"] == 2
