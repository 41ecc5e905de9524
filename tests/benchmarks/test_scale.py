"""The measurement of growth: a tiny run of it, and its pure parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale import bytes_on_disk, recall

ROOT = Path(__file__).parents[2]


def test_a_tiny_run_ends_with_the_figures_of_each_size() -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--json", "--sizes", "200", "500"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert [(size["points"], size["dim"]) for size in found["sizes"]] == [(200, 384), (500, 384)]
    assert found["growth"]["points"] == 2.5
    for size in found["sizes"]:
        assert size["disk_bytes_per_point"] > 4 * 384
        assert size["rehead_disk_bytes_per_point"] > size["disk_bytes_per_point"]
        assert size["instant_recall"] >= 0.9


def test_recall_is_the_mean_share_of_what_was_wanted() -> None:
    assert recall([{"a", "b"}, {"c"}], [{"a", "x"}, {"c"}]) == pytest.approx(0.75)


def test_holes_of_a_file_take_no_disk(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    with (tmp_path / "inside" / "sparse").open("wb") as file:
        file.truncate(50_000_000)
    (tmp_path / "full").write_bytes(b"x" * 100_000)

    assert 100_000 <= bytes_on_disk(tmp_path) < 200_000
