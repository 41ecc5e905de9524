"""The serving benchmark: its parts, and one tiny run."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serve import decoded, texts
from benchmarks.serve_load import embeddings_request, split_answer

ROOT = Path(__file__).parents[2]


def test_no_text_comes_twice() -> None:
    rng = np.random.default_rng(0)
    assert len(set(texts(2000, rng))) == 2000
    assert texts(1, rng) != texts(1, rng)


def test_a_request_is_one_that_another_parser_reads() -> None:
    head, _, body = embeddings_request("faq", "ü?").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/embeddings HTTP/1.1\r\n")
    assert f"content-length: {len(body)}" in head.decode().split("\r\n")
    assert json.loads(body) == {"model": "faq", "input": "ü?", "encoding_format": "base64"}


@pytest.mark.parametrize("cut", [0, 10, 40, 62])
def test_an_answer_is_taken_when_all_of_it_is_there(cut: int) -> None:
    whole = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 5\r\nx: y\r\n\r\nhello"
    assert split_answer(whole[:cut]) is None
    assert split_answer(whole) == (429, b"hello")


def test_a_vector_is_read_from_an_answer() -> None:
    vector = np.asarray([0.5, -1.25], dtype="<f4")
    answer = {"data": [{"embedding": base64.b64encode(vector.tobytes()).decode()}]}
    assert decoded(json.dumps(answer).encode()).tolist() == [0.5, -1.25]


def test_a_tiny_run_ends_with_the_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.serve", "--requests", "40", "--rounds", "1", "--heads", "3", "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    figures = json.loads(found.stdout.splitlines()[-1])
    assert {"ratio", "heads_100_ratio", "head_overhead", "p50_ms", "p99_ms"} <= set(figures)
    assert figures["requests"] == 40
    assert 0.999 <= figures["least_cosine"] <= 1.0001
    assert all(value > 0 for value in figures.values())
