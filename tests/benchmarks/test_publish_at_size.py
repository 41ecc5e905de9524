"""The measurement of a large upload and publish: that it counts what there is, and sees memory where it goes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.publish_at_size import measure
from benchmarks.publish_at_size_data import DIM, SeededEncoder, as_jsonl, documents
from benchmarks.publish_at_size_processes import anonymous_memory

ROOT = Path(__file__).parents[2]


TAKES_MEMORY = """
import time
print("idle", flush=True)
input()
held = b"x" * 200_000_000
time.sleep(0.2)
del held
print("given back", flush=True)
input()
"""


def test_the_whole_way_is_measured_and_told_in_the_last_line() -> None:
    command = [sys.executable, "-m", "benchmarks.publish_at_size", "--rows", "3000", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["rows"] == found["points"] == 3000
    assert found["points_per_second"] == pytest.approx(3000 / found["publish_seconds"])
    assert 0 < found["encode_seconds"] < found["publish_seconds"]
    assert found["times_floor"] == pytest.approx((found["publish_seconds"] - found["encode_seconds"]) / found["floor_seconds"])
    assert 0 < found["publish_cpu_seconds"] < 2 * found["publish_seconds"]  # one thread does nearly all
    assert found["within_limit"] is True


def test_growth_over_the_limit_is_told(tmp_path: Path) -> None:
    found = measure(1000, tmp_path, limit_mb=0.0)

    assert found.publish_rss_anon_growth_mb > 0
    assert not found.within_limit


def test_memory_that_a_process_took_and_gave_back_was_seen() -> None:
    command = [sys.executable, "-c", TAKES_MEMORY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        with anonymous_memory(process.pid) as found:
            process.stdin.write("go\n")
            process.stdout.readline()
        process.stdin.write("end\n")

    assert found.growth_mb == pytest.approx(200, rel=0.05)


def test_the_seeded_vectors_are_unit_rows_that_depend_on_the_text_alone() -> None:
    texts = [row["text"] for row in documents(500)]

    vectors = SeededEncoder().encode(texts, role="document")
    again = SeededEncoder().encode(texts[::-1], role="document")[::-1]

    assert vectors.shape == (500, DIM)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(500), abs=1e-6)
    assert np.array_equal(vectors, again)
    assert len(np.unique(vectors, axis=0)) == len(set(texts))


def test_the_body_of_the_upload_is_the_documents_in_order() -> None:
    body = b"".join(as_jsonl(documents(2500)))

    assert [json.loads(line) for line in body.splitlines()] == list(documents(2500))
