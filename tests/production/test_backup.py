"""A backup by the commands of docs/operations.md, restored elsewhere, serves the same and goes on with what waited."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.qdrant_standin import standin
from benchmarks.servers import PostgresServer, _postgres_binary
from tests.conftest import Client, Start

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
TEXTS = [f"matter {n} is settled in the way of {n * n}" for n in range(30)]
PAIRS = [{"anchor": f"how is matter {n} settled", "positive": text} for n, text in enumerate(TEXTS)]
DOCUMENTS = [{"id": f"d{n}", "text": text} for n, text in enumerate(TEXTS)]
ENDLESS = {"epochs": 10_000}  # longer than any test lets it run
SHORT = {"epochs": 20}


def documented(first_line: str) -> list[str]:
    """The commands of the block that begins with this comment."""
    _, block = OPERATIONS.split(f"```sh\n# {first_line}", 1)
    return [line for line in block.split("```", 1)[0].splitlines()[1:] if line and not line.startswith("#")]


def run(commands: list[str], **variables: str | Path) -> None:
    """Run the commands in a shell as a person would. Raises CalledProcessError."""
    environment = {
        **os.environ,
        **{name: str(value) for name, value in variables.items()},
        "PATH": f"{_postgres_binary('pg_dump').parent}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run(["/bin/sh", "-eu", "-c", "\n".join(commands)], env=environment, check=True, timeout=60)


@dataclass(frozen=True)
class Served:
    """What users see: vectors of the same texts by three versions, and what a search finds."""

    vectors: dict[str, np.ndarray[Any, Any]]
    hits: list[tuple[str, float]]

    def assert_same(self, other: "Served") -> None:
        assert self.vectors.keys() == other.vectors.keys()
        for model, vectors in self.vectors.items():
            np.testing.assert_allclose(vectors, other.vectors[model], atol=1e-5, err_msg=model)
        assert [name for name, _ in self.hits] == [name for name, _ in other.hits]
        np.testing.assert_allclose([score for _, score in self.hits], [score for _, score in other.hits], atol=1e-5)


def served(client: Client) -> Served:
    def vectors(model: str) -> np.ndarray[Any, Any]:
        answer = client.post("/v1/embeddings", {"model": model, "input": ["how is matter 7 settled", "something new"]})
        return np.array([one["embedding"] for one in answer["data"]])

    found = client.post("/v1/collections/shelf/search", {"query": "how is matter 7 settled", "limit": 5})
    assert found["version"] == "faq@1"
    hits = [(hit["document_id"], hit["score"]) for hit in found["data"]]
    return Served({model: vectors(model) for model in ("faq", "faq@0", "faq@1")}, hits)


def train(client: Client, recipe: Mapping[str, int], **fields: Any) -> str:
    body = {"model": "faq", "dataset": "pairs", "guard": client.small_guard(), "recipe": recipe, "promote": "never"}
    job_id: str = client.post("/v1/jobs", {**body, **fields})["id"]
    return job_id


def wait_until(is_true: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def fill(client: Client) -> None:
    """A promoted version, and a collection that serves it."""
    client.upload(PAIRS, kind="pairs", name="pairs")
    client.upload(DOCUMENTS, kind="documents", name="documents")
    job_id = train(client, SHORT, promote="always", publish={"collection": "shelf", "documents": "documents"})
    assert client.wait(job_id)["state"] == "succeeded"
    client.wait_for_all()


def occupy(client: Client) -> tuple[str, str]:
    """A training that runs and would for long, and one that waits behind it."""
    running = train(client, ENDLESS)
    wait_until(lambda: client.get(f"/v1/jobs/{running}")["progress"] is not None)
    return running, train(client, SHORT)


def check_that_all_goes_on(client: Client, running: str, waiting: str) -> None:
    """The job that ran runs again; once it is out of the way, the one that waited makes the version."""
    assert client.get(f"/v1/jobs/{running}")["state"] in ("queued", "running")
    assert client.get(f"/v1/jobs/{waiting}")["state"] == "queued"
    wait_until(lambda: client.get(f"/v1/jobs/{running}")["state"] == "running")
    client.post(f"/v1/jobs/{running}/cancel")
    ended = client.wait(waiting)
    assert (ended["state"], ended["result"]["version"]) == ("succeeded", "faq@2")


def test_an_embedded_service_is_restored_from_a_copy_of_its_folder(start: Start, tmp_path: Path) -> None:
    old, new, backup = tmp_path / "old", tmp_path / "new", tmp_path / "backup"
    backup.mkdir()
    with start(old) as client:
        fill(client)
        before = served(client)
        running, waiting = occupy(client)

    run(documented("embedded"), DATA_DIR=old, BACKUP=backup, NEW_DATA_DIR=new)
    shutil.rmtree(old)
    assert not (new / "cache").exists()

    with start(new) as client:
        served(client).assert_same(before)
        check_that_all_goes_on(client, running, waiting)


@pytest.fixture
def postgres_of_our_own() -> Iterator[PostgresServer]:
    # Not tmp_path: a socket lies in it, whose path must be short.
    with tempfile.TemporaryDirectory(prefix="zg-") as folder, PostgresServer(Path(folder) / "pg") as server:
        yield server


def test_a_production_service_is_restored_from_a_dump_and_a_copy_of_its_files_that_were_made_while_it_ran(
    start: Start, postgres_of_our_own: PostgresServer, tmp_path: Path
) -> None:
    # API and workers are in one process here: what is restored does not know. Real processes: test_installation.py.
    old, new, backup = tmp_path / "old", tmp_path / "new", tmp_path / "backup"
    backup.mkdir()
    points, copied_points = tmp_path / "points", tmp_path / "copied-points"
    old_url, new_url = (postgres_of_our_own.create_database(name) for name in ("old", "new"))
    with standin(points) as qdrant, start(old, database_url=old_url, qdrant_url=qdrant.url) as client:
        fill(client)
        before = served(client)
        running, waiting = occupy(client)
        run(documented("backup"), DATABASE=plain(old_url), FILES=old / "files", BACKUP=backup)
        # Made after the backup, so not in it.
        client.upload([{"anchor": "late", "positive": "too late"}], kind="pairs", name="late")
    shutil.rmtree(old)
    points.rename(copied_points)  # the stand-in has no snapshots

    run(documented("restore"), DATABASE=plain(new_url), FILES=new / "files", BACKUP=backup)

    with standin(copied_points) as qdrant, start(new, database_url=new_url, qdrant_url=qdrant.url) as client:
        served(client).assert_same(before)
        assert {one["name"] for one in client.get("/v1/datasets")["data"]} == {"pairs", "documents", None}
        check_that_all_goes_on(client, running, waiting)

    # And without a snapshot of Qdrant: publishing the documents makes the collection what it was.
    with standin() as empty, start(new, database_url=new_url, qdrant_url=empty.url) as client:
        job = client.post("/v1/collections/shelf/documents", {"dataset": "documents"})
        assert client.wait(job["id"])["state"] == "succeeded"
        served(client).assert_same(before)


def plain(url: str) -> str:
    """The URL as PostgreSQL's own programs read it."""
    return url.replace("postgresql+psycopg:", "postgresql:")
