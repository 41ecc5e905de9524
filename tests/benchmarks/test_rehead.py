"""The measurement of re-heading: a tiny run of it, its texts, and that it sees what it must not pass over."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rehead import _difference, texts
from benchmarks.scale_collection import PHYSICAL, a_head, workplace

ROOT = Path(__file__).parents[2]


def test_a_tiny_run_ends_with_the_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.rehead", "--json", "--points", "600", "--sample", "8", "--rounds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["points"] == 600
    assert found["ratio"] == pytest.approx(found["points_per_second"] / found["texts_per_second"])
    assert found["ratio_plain"] == pytest.approx(found["points_per_second"] / found["plain_texts_per_second"])
    assert found["difference"] < 1e-6
    assert 0 <= found["late_p99_ms"] <= found["late_max_ms"]


def test_texts_have_eight_words_and_differ_between_rounds() -> None:
    assert {len(text.split()) for text in texts(50, seed=1)} == {8}
    assert texts(50, seed=1) == texts(50, seed=1)
    assert not set(texts(50, seed=1)) & set(texts(50, seed=2))


def test_vectors_that_are_not_the_heads_are_told(tmp_path: Path) -> None:
    with workplace(tmp_path, dim=16) as place:
        place.publish(20)
        place.rehead(place.add_version())
        assert _difference(place, 1) < 1e-6
        one = next(place.vectors.scroll(PHYSICAL, "v1", batch_size=1))

        place.vectors.set_vectors(PHYSICAL, "v1", one.ids, one.matrix + np.float32(1e-4))

        with pytest.raises(RuntimeError, match=r"differs from head\(base\) by"):
            _difference(place, 1)


def test_head_turns_vectors_about_as_far_as_trained_ones_do() -> None:
    rows = np.random.default_rng(1).standard_normal((200, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    cosines = (a_head(384, seed=0).vectors(rows) * rows).sum(axis=1)

    assert 15 < np.degrees(np.arccos(cosines.mean())) < 25
