"""The demo on a tenth of its data: what it prints, and that a second run encodes nothing."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.demo import COLLECTION, run_demo
from cli.docstrings import Pair, docstring_pairs
from service.errors import Conflict

KEYS = {
    "pairs", "test_queries", "documents", "base", "tuned", "fit_seconds", "encode_seconds", "publish_seconds",
    "identity_at_start", "version", "vector_names", "sweep_seconds", "strength", "forgetting", "verdict",
}  # fmt: skip


RECIPE = {"epochs": 20}  # a search takes half a minute, and what it finds is not what these tests are about


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return docstring_pairs()[::10]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache-home")


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_demo_goes_the_whole_way_and_a_second_run_encodes_nothing(
    pairs: list[Pair], cache_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))

    run_demo(as_json=True, keep=None, pairs=pairs, recipe=RECIPE)
    first = last_line(capsys)
    run_demo(as_json=True, keep=None, pairs=pairs, recipe=RECIPE)
    second = last_line(capsys)

    assert set(first) == KEYS
    assert first["documents"] == len(pairs)
    assert first["pairs"] + first["test_queries"] == len(pairs)
    assert first["identity_at_start"] is True
    assert first["version"] == "stdlib@1"
    assert "base" in first["vector_names"]
    assert 0 < first["base"]["mrr@10"] <= 1
    # Nothing is encoded again, so everything but the seconds is the same to the last bit.
    timed = {"sweep_seconds", "fit_seconds", "encode_seconds", "publish_seconds"}
    assert {key: first[key] for key in KEYS - timed} == {key: second[key] for key in KEYS - timed}
    assert second["encode_seconds"] < first["encode_seconds"]


def test_the_printed_report_names_scores_queries_and_vectors(
    pairs: list[Pair], cache_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))

    run_demo(as_json=False, keep=tmp_path / "kept", pairs=pairs, recipe=RECIPE)

    told = capsys.readouterr().out
    for words in ("recipes tried in", "at strength", "Forgotten of general English"):
        assert words in told
    for words in ("mrr@10", "ndcg@10", "recall@10", "95 % interval", f"default_{COLLECTION}", "zerogate serve --data-dir"):
        assert words in told
    assert told.count("encoder: top 3") == 5
    assert (tmp_path / "kept" / "zerogate.db").is_file()


def test_a_folder_with_something_in_it_is_never_used(pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("do not touch")

    with pytest.raises(Conflict, match="is not empty"):
        run_demo(as_json=False, keep=tmp_path, pairs=pairs, recipe=RECIPE)

    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
