"""Rows that are written and read again: any rows come back the same, and many rows take no more memory than few.

And the whole way of the library: from a file with pairs to a head in a file, and back to its vectors.
"""

import csv
import itertools
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogate import (
    CachedEncoder,
    FoldedHead,
    HeadShape,
    Rows,
    Vectors,
    Way,
    assess,
    builtin_guard,
    dump_head,
    evaluate,
    learn,
    load_head,
    make_guard,
    make_task,
)
from zerogate.evaluation import RetrievalTest
from zerogate.examples import KINDS, Kind, Row
from zerogate.learning import make
from zerogate.readers import Format, read_rows
from zerogate.strength import choosing_texts

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


ASKED = {
    "password": "How do I get back in when I {} my password?",
    "invoice": "Where can I {} the invoice of last month?",
    "colleague": "Can a colleague {} our workspace?",
    "export": "Is there a way to {} everything that we wrote?",
    "phone": "Does it {} on my phone?",
    "price": "What would we {} for fifty people?",
    "notification": "Please make the notifications {}.",
    "deletion": "I want to {} my account for good.",
}
WORDS = ("forgot", "find", "join", "take along", "work", "pay", "stop", "leave", "change", "see")


def test_the_library_goes_from_a_file_of_pairs_to_a_head_in_a_file_and_back(
    cached_encoder: CachedEncoder, tmp_path: Path
) -> None:
    """Texts of the service's own little help desk: what a question is about decides where its answer stands."""
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    pairs = [
        {"anchor": asked.format(word), "positive": f"Help page on the topic: {topic}, part {number % 3}", "split": split}
        for topic, asked in ASKED.items()
        for number, (word, split) in enumerate(zip(WORDS, splits, strict=True))
    ]
    write(tmp_path / "pairs.jsonl", pairs, "jsonl")

    task = make_task(Rows("pairs", list(read_rows(tmp_path / "pairs.jsonl", format="jsonl", kind="pairs"))))
    guard = make_guard("scored", builtin_guard()[::25])
    vectors, guard_vectors = (
        Vectors(cached_encoder.encode(some.queries, role="query"), cached_encoder.encode(some.documents, role="document"))
        for some in (task, guard)
    )
    learned = learn(task, vectors, guard, guard_vectors, max_seconds=1.0)
    judged = assess(
        task,
        vectors,
        guard,
        guard_vectors,
        learned.head.at_strength(learned.plan.strength),
        query_only=learned.plan.way.query_only,
    )
    facts = {"way": learned.plan.way.to_dict(), "scores": judged.tuned.scores}
    shape = learned.plan.way.recipes[0].shape if learned.plan.way.recipes else None
    dumped = dump_head(
        learned.head, shape=shape or HeadShape(), strength=learned.plan.strength, encoder_fingerprint="the encoder", facts=facts
    )

    manifest = orjson.loads(dumped.files["manifest.json"])
    loaded = load_head(dumped.files["head.safetensors"], manifest, encoder_fingerprint="the encoder")
    served = loaded.at_strength(manifest["strength"])
    own, test = task.test.of(vectors), task.test.test
    assert isinstance(test, RetrievalTest)
    documents = own.documents if manifest["way"]["query_only"] else served.vectors(own.documents)
    again = evaluate(served.vectors(own.queries)[test.queries], documents, test.relevant, primary="mrr@10")
    assert again.scores == judged.tuned.scores == manifest["scores"]
    assert judged.verdict.difference == pytest.approx(again.value - judged.base.value)
    replayed = make(Way.from_dict(manifest["way"]), vectors, task.train, near=choosing_texts(guard, guard_vectors)).head
    assert isinstance(replayed, FoldedHead)
    assert isinstance(learned.head, FoldedHead)
    np.testing.assert_array_equal(replayed.matrix, learned.head.matrix)
