"""`zerogate reproduce`: the same bytes from the same data and vectors, and plain words when something is not the same."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cli.reproduce import reproduce
from service.errors import Conflict, InvalidRequest, NotFound
from service.settings import Settings
from tests.conftest import Start

ROOT = Path(__file__).parents[2]
PAIRS = [{"anchor": f"how to do thing {n}", "positive": f"thing {n} is done like this"} for n in range(70)]
# The one: found by a search over folds; the other: asked for, with general texts in the training.
JOBS: dict[str, dict[str, Any]] = {
    "searched": {"dataset": "pairs", "recipe": "auto"},
    "asked": {"dataset": "pairs", "recipe": {"epochs": 20, "stay_near_base": 3.0, "seed": 5}},
}


@pytest.fixture(scope="module")
def settings(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The stopped service of two trained models."""
    folder = tmp_path_factory.mktemp("reproduce")
    with start(folder) as client:
        client.upload(PAIRS, kind="pairs", name="pairs")
        for model, fields in JOBS.items():
            job = client.post("/v1/jobs", {"model": model, "guard": client.small_guard(), "promote": "never", **fields})
            ended = client.wait(job["id"])
            assert ended["state"] == "succeeded", ended["error"]
        with pytest.raises(Conflict, match="needs the service to be stopped"):
            reproduce(Settings(data_dir=folder, encoder_dtype="float32"), "asked@1")
    return Settings(data_dir=folder, encoder_dtype="float32")


@pytest.mark.parametrize("model", JOBS)
def test_the_same_bytes_come_again(settings: Settings, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(settings, f"{model}@1") is True

    told = capsys.readouterr().out
    assert "The same bytes." in told
    for words in ("training matrix", "head", "torch", "torch threads", "vectors not in the cache"):
        assert words in told
    assert "differs" not in told


def altered(settings: Settings, model: str, path: str, value: str) -> None:
    with closing(sqlite3.connect(settings.data_dir / "zerogate.db")) as database, database:
        database.execute(
            "UPDATE versions SET manifest = json_set(manifest, ?, json(?)) WHERE number = 1 AND model_id = "
            "(SELECT id FROM models WHERE name = ?)",
            (path, value, model),
        )


def test_another_way_gives_other_bytes_and_says_so(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    altered(settings, "asked", "$.way.recipes[0].seed", "6")

    assert reproduce(settings, "asked@1") is False

    told = capsys.readouterr().out
    assert "Not reproduced. What differs: head." in told
    altered(settings, "asked", "$.way.recipes[0].seed", "5")
    assert reproduce(settings, "asked@1") is True


def test_the_command_exits_with_1_when_vectors_or_versions_differ(settings: Settings) -> None:
    altered(settings, "asked", "$.training_matrix_sha256", '"' + "0" * 64 + '"')
    altered(settings, "asked", "$.libraries.torch", '"1.0"')
    main = "import sys; sys.argv = ['zerogate', *sys.argv[1:]]; from cli.main import main; main()"
    command = [sys.executable, "-c", main, "reproduce", "asked@1", "--data-dir", str(settings.data_dir)]

    found = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "ZEROGATE_ENCODER_DTYPE": "float32"}, capture_output=True, text=True, check=False
    )

    assert found.returncode == 1
    assert "What differs: torch, training matrix." in found.stdout
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("ref", "error", "words"),
    [
        ("asked@0", InvalidRequest, "the encoder itself"),
        ("asked@7", NotFound, "no version 7"),
        ("nobody@1", NotFound, "no model 'nobody'"),
    ],
)
def test_what_cannot_be_made_again_is_told(settings: Settings, ref: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        reproduce(settings, ref)


def test_a_dataset_whose_file_is_gone_is_told(settings: Settings) -> None:
    (settings.data_dir / "files" / "datasets").rename(settings.data_dir / "files" / "elsewhere")
    try:
        with pytest.raises(NotFound, match="missing from the data folder"):
            reproduce(settings, "searched@1")
    finally:
        (settings.data_dir / "files" / "elsewhere").rename(settings.data_dir / "files" / "datasets")


def test_a_folder_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no data folder"):
        reproduce(Settings(data_dir=tmp_path / "none"), "asked@1")
    assert not (tmp_path / "none").exists()
