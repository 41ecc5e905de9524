"""The encoding benchmark: its floor counts what is multiplied, and a small run tells all figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.encode import MIN_COSINE, shape_of, texts_of_each_kind
from benchmarks.encode_floor import Products, Shape, flops
from zerogate.encoder import Encoder

ROOT = Path(__file__).parents[2]


def test_the_floor_counts_what_torch_counts(encoder: Encoder) -> None:
    features = encoder._model.preprocess(["just as long"] * 3)
    length = features["input_ids"].shape[1]
    attention_in_products = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)

    with torch.inference_mode(), attention_in_products, FlopCounterMode(display=False) as counter:
        encoder._model(features)

    pooler = 2 * 3 * 384 * 384  # of transformers, whose output nobody reads
    assert flops(shape_of(encoder._model), [length] * 3) == counter.get_total_flops() - pooler


def test_products_are_those_of_one_pass_without_attention() -> None:
    shape = Shape(layers=2, width=8, inner=16)
    products = Products(shape, 10, dtype=torch.float32, device=torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        rate = products.rate(1)

    assert products.flops == counter.get_total_flops() == flops(shape, [1] * 10) - 2 * 4 * 8 * 10
    assert rate > 0


def test_texts_come_from_all_over_the_library() -> None:
    docstrings, short = texts_of_each_kind(20)

    assert len(set(docstrings)) == len(set(short)) == 20
    assert all(len(text.split()) <= 8 for text in short)


def test_a_small_run_ends_with_its_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.encode", "--texts", "12", "--rounds", "1", "--device", "cpu", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    docstrings = found["texts_per_second"]["docstrings"]
    assert found["cosine_min"] >= MIN_COSINE
    assert found["ratio"] == pytest.approx(docstrings["ours"] / docstrings["peer"])
    assert found["share_of_floor"] == pytest.approx(docstrings["ours"] / docstrings["floor"])
