"""The benchmark of the embedding cache: its peer is right, its figures follow from what was timed, and it runs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cache as benchmark


def test_the_sqlite_peer_gives_back_what_it_was_given(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(1100)]
    vectors = np.random.default_rng(1).normal(size=(1100, benchmark.DIM)).astype(np.float32)
    table = benchmark.SqliteTable(tmp_path / "vectors.db")
    table.put(texts, vectors)
    table.close()
    table = benchmark.SqliteTable(tmp_path / "vectors.db")

    found = table.get(texts[::-1])
    with pytest.raises(KeyError):
        table.get([*texts[:3], "another"])
    table.close()

    assert found.tobytes() == vectors[::-1].tobytes()


def test_the_figures_follow_from_the_seconds() -> None:
    warm = {"hits": 2.0, "matrix": 0.5, "sqlite": 6.0, "npy": 0.4, "memory": 0.1}
    cold = {name: 10 * seconds for name, seconds in warm.items()}
    told = benchmark.Found(1000, warm, cold, {"hits": 30.4, "sqlite": 20.0, "forgetting": 10.0}).to_dict()

    assert told["rows"] == 1000
    assert told["hits_per_second"] == 500
    assert told["share_of_floor"] == pytest.approx(0.05)
    assert told["ratio"] == told["cold_ratio"] == pytest.approx(3)
    assert told["matrix_open_seconds"] == 0.5
    assert told["matrix_share_of_floor"] == pytest.approx(0.2)
    assert told["matrix_ratio_to_npy"] == pytest.approx(0.8)
    assert told["matrix_ratio_to_hits"] == pytest.approx(4)
    assert told["cold_hits_per_second"] == 50
    assert told["stored_per_second_hits"] == 30


def test_it_runs_and_ends_with_one_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cache", "--json", "--rows", "1100", "--rounds", "1"])
    benchmark.main()

    told = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert told["rows"] == 1100
    assert all(value > 0 for value in told.values())


def test_a_contestant_that_gives_something_else_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmark.SqliteTable, "get", lambda _table, texts: np.zeros((len(texts), benchmark.DIM), dtype=np.float32)
    )
    with pytest.raises(RuntimeError, match="sqlite gave other vectors"):
        benchmark.measure(tmp_path, rows=1100, rounds=1)
