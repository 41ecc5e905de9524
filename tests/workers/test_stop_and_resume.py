"""Cancelling, stopping and killing: whatever happens to the work, nothing half-made is left and nothing is done twice."""

import hashlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import Conflict
from tests.conftest import Client, Start

ROOT = Path(__file__).parents[2]
PAIRS = [{"anchor": f"how to do thing {n}", "positive": f"thing {n} is done like this"} for n in range(30)]
ENDLESS = {"epochs": 10_000}  # a minute at least: every test that asks for it stops it
SHORT = {"epochs": 800}  # some seconds: long enough to be met in the middle

# Two batches: the first 256 documents are in the collection while the rest, which are long, are still to be encoded.
DOCUMENTS = [
    {"id": f"d{n}", "text": f"document number {n} tells of matter {n * n}" + " and much else" * 60 * (n >= 256), "n": n}
    for n in range(356)
]


def train(client: Client, recipe: dict[str, int], **fields: Any) -> str:
    client.upload(PAIRS, kind="pairs", name="pairs")
    body = {"model": "m", "dataset": "pairs", "guard": client.small_guard(), "recipe": recipe, "promote": "never", **fields}
    job_id: str = client.post("/v1/jobs", body)["id"]
    return job_id


def wait_for(client: Client, job_id: str, reached: Callable[[dict[str, Any]], bool], *, seconds: float = 60.0) -> None:
    """Return when the progress of the running job is as wanted."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = client.get(f"/v1/jobs/{job_id}")
        if job["progress"] is not None and reached(job["progress"]):
            return
        assert job["state"] in ("queued", "running"), f"the job has ended too soon: {job}"
        time.sleep(0.01)
    raise AssertionError(f"the job did not come that far: {client.get(f'/v1/jobs/{job_id}')}")


def is_fitting(progress: dict[str, Any]) -> bool:
    return progress["stage"] == "fit"


def told(client: Client, job_id: str) -> list[str]:
    return [event["message"] for event in client.get(f"/v1/jobs/{job_id}/events", limit=100)["data"]]


def heads(folder: Path) -> list[Path]:
    """All files of heads, finished or half-made."""
    return [path for path in (folder / "files").rglob("*") if path.is_file() and path.suffix in (".safetensors", ".json")]


# --- cancel -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cancel")


@pytest.fixture(scope="module")
def service(start: Start, folder: Path) -> Iterator[Client]:
    with start(folder) as client:
        client.upload(DOCUMENTS, kind="documents", name="documents")
        yield client


def test_a_cancelled_training_ends_at_once_registers_nothing_and_frees_its_worker(service: Client, folder: Path) -> None:
    job_id = train(service, ENDLESS)
    wait_for(service, job_id, lambda progress: is_fitting(progress) and progress["done"] > 0)

    cancelled = service.post(f"/v1/jobs/{job_id}/cancel")

    assert (cancelled["state"], cancelled["progress"]) == ("cancelled", None)
    assert cancelled["finished"] is not None
    assert service.get("/v1/models/m")["versions"] == [0]
    assert heads(folder) == []
    # The worker trains one job at a time; if it went on with the cancelled one, the next would wait for a minute.
    after = service.wait(train(service, {"epochs": 1}), seconds=20)
    assert (after["state"], after["result"]["version"]) == ("succeeded", "m@1")
    assert service.get(f"/v1/jobs/{job_id}") == cancelled
    assert told(service, job_id)[-1] == "cancelled"
    assert sorted(path.name for path in heads(folder)) == ["head.safetensors", "manifest.json"]
    service.http.delete("/v1/models/m").raise_for_status()


def test_a_training_cancelled_while_it_searches_ends_at_once_too(service: Client, folder: Path) -> None:
    rows = [{"anchor": f"what is matter {n} about", "positive": f"matter {n} is about number {n * n}"} for n in range(120)]
    service.upload(rows, kind="pairs", name="searched")
    body = {"model": "s", "dataset": "searched", "guard": service.small_guard(), "recipe": {"epochs": 10_000}}
    before = heads(folder)
    job_id = service.post("/v1/jobs", body)["id"]
    wait_for(service, job_id, lambda progress: progress["stage"] == "search")

    assert service.post(f"/v1/jobs/{job_id}/cancel")["state"] == "cancelled"

    assert service.wait(train(service, {"epochs": 1}, model="after"), seconds=20)["state"] == "succeeded"
    assert told(service, job_id)[-1] == "cancelled"
    assert service.get("/v1/models/s")["versions"] == [0]
    service.http.delete("/v1/models/after").raise_for_status()
    assert heads(folder) == before


def test_a_job_cancelled_while_it_waits_is_never_started(service: Client) -> None:
    running, waiting = train(service, ENDLESS), train(service, {"epochs": 1})
    wait_for(service, running, is_fitting)
    assert service.get(f"/v1/jobs/{waiting}")["state"] == "queued"

    service.post(f"/v1/jobs/{waiting}/cancel")
    service.post(f"/v1/jobs/{running}/cancel")

    service.wait(train(service, {"epochs": 1}), seconds=20)
    assert told(service, waiting) == ["queued", "cancelled"]
    assert service.get(f"/v1/jobs/{waiting}")["started"] is None


def test_publishes_go_on_while_a_training_runs(service: Client) -> None:
    service.post("/v1/collections", {"name": "meanwhile", "model": "m"})
    running = train(service, ENDLESS)
    wait_for(service, running, is_fitting)

    job = service.post("/v1/collections/meanwhile/documents", {"rows": DOCUMENTS[:3]})

    assert service.wait(job["id"], seconds=30)["result"]["points"] == 3
    assert service.post(f"/v1/jobs/{running}/cancel")["state"] == "cancelled"


def test_a_cancelled_publish_leaves_whole_points_and_the_next_one_completes_them(service: Client) -> None:
    service.post("/v1/collections", {"name": "half", "model": "m"})
    job = service.post("/v1/collections/half/documents", {"dataset": "documents"})
    wait_for(service, job["id"], lambda progress: progress["stage"] == "encode documents")

    service.post(f"/v1/jobs/{job['id']}/cancel")

    again = service.wait(service.post("/v1/collections/half/documents", {"dataset": "documents"})["id"])
    assert again["state"] == "succeeded"
    assert again["result"]["written"] + again["result"]["skipped"] == again["result"]["points"] == 356
    assert service.get(f"/v1/jobs/{job['id']}")["result"] is None
    found = service.post("/v1/collections/half/search", {"query": "matter", "limit": 1000})["data"]
    assert sorted(hit["metadata"]["n"] for hit in found) == list(range(356))


# --- stop and kill -----------------------------------------------------------------------------------------------------------

_MAIN = "import sys; sys.argv = ['zerogate', *sys.argv[1:]]; from cli.main import main; main()"


def command(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-c", _MAIN, "serve", "--data-dir", str(folder), "--port", str(port)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "ZEROGATE_ENCODER_DTYPE": "float32", "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def own_process(folder: Path) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """`zerogate serve` in a process of its own; killed after the block if it was not before."""
    port = free_port()
    with (
        (folder.parent / "serve.log").open("wb") as log,
        subprocess.Popen(command(folder, port), cwd=ROOT, env=environment(), stdout=log, stderr=log) as process,
    ):
        client = Client(f"http://127.0.0.1:{port}")
        try:
            with client.http:
                for _ in range(1200):
                    try:
                        client.get("/livez")
                        break
                    except httpx.TransportError:
                        assert process.poll() is None, (folder.parent / "serve.log").read_text()
                        time.sleep(0.05)
                yield client, process
        finally:
            process.kill()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


def test_a_service_stopped_by_a_signal_puts_its_work_back_and_finishes_it_after_the_next_start(
    start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with own_process(folder) as (client, process):
        running, waiting = train(client, SHORT), train(client, {"epochs": 1})
        wait_for(client, running, is_fitting)
        watch = threading.Timer(30, process.kill)
        watch.start()

        process.send_signal(signal.SIGTERM)

        assert process.wait() == 0
        watch.cancel()
    assert "Traceback" not in (tmp_path / "serve.log").read_text()
    with closing(sqlite3.connect(folder / "zerogate.db")) as database:
        rows = database.execute("SELECT id, state, attempts FROM jobs ORDER BY id").fetchall()
    assert rows == [(running, "queued", 0), (waiting, "queued", 0)]

    with start(folder) as client:
        ended = [client.wait(job_id) for job_id in (running, waiting)]

        assert [(job["state"], job["attempts"]) for job in ended] == [("succeeded", 1)] * 2
        assert [job["result"]["version"] for job in ended] == ["m@1", "m@2"]
        assert client.get("/v1/models/m")["versions"] == [0, 1, 2]
        messages = told(client, running)
        assert messages.count("put back: the worker is being stopped") == 1
        assert messages.count("started (attempt 1)") == 2
        assert messages.count("succeeded") == 1
        assert len(heads(folder)) == 4


def test_a_training_whose_process_is_killed_is_done_again_once_and_gives_the_same_head(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with own_process(folder) as (client, process):
        job_id = train(client, SHORT)
        wait_for(client, job_id, is_fitting)
        kill(process)

    with start(folder) as client:
        ended = client.wait(job_id)

        assert (ended["state"], ended["attempts"], ended["result"]["version"]) == ("succeeded", 2, "m@1")
        assert client.get("/v1/models/m")["versions"] == [0, 1]
        messages = told(client, job_id)
        assert messages.count("put back: the service was restarted") == 1
        assert [message for message in messages if message.startswith("started")] == [
            "started (attempt 1)",
            "started (attempt 2)",
        ]
        assert messages.count("succeeded") == 1
        (head,) = [path for path in heads(folder) if path.suffix == ".safetensors"]
        manifest = client.get("/v1/models/m@1")["manifest"]
        assert hashlib.sha256(head.read_bytes()).hexdigest() == manifest["head_sha256"]
        untouched = client.wait(train(client, SHORT))
        assert client.get(f"/v1/models/{untouched['result']['version']}")["manifest"]["head_sha256"] == manifest["head_sha256"]


def test_a_publish_whose_process_is_killed_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with own_process(folder) as (client, process):
        client.upload(DOCUMENTS, kind="documents", name="documents")
        publish = {"collection": "shelf", "documents": "documents"}
        trained = client.wait(train(client, {"epochs": 3}, promote="always", publish=publish))
        job_id = trained["publish_job_id"]
        # The first batch of 256 is written; the 100 of the second are being encoded.
        wait_for(client, job_id, lambda progress: progress["stage"] == "encode documents" and progress["total"] == 100)
        kill(process)

    with start(folder) as client:
        ended = client.wait(job_id)

        assert (ended["state"], ended["attempts"]) == ("succeeded", 2)
        assert ended["result"]["points"] == 356
        assert (ended["result"]["skipped"], ended["result"]["written"]) == (256, 100)  # nothing acknowledged was lost
        assert client.get("/v1/models/m")["versions"] == [0, 1]
        shelf = client.get("/v1/collections/shelf")
        assert (shelf["points"], shelf["serving"], shelf["building"]) == (356, "v1", [])
        assert [(one["name"], one["state"], one["points"]) for one in shelf["vectors"]] == [
            ("base", "ready", 356),
            ("v1", "ready", 356),
        ]
        for version in (0, 1):  # a point without the name would be missing here
            body = {"query": "which matter", "limit": 1000, "version": version}
            found = client.post("/v1/collections/shelf/search", body)["data"]
            assert sorted(hit["metadata"]["n"] for hit in found) == list(range(356))
        last = client.post("/v1/collections/shelf/search", {"query": DOCUMENTS[355]["text"], "limit": 1})["data"][0]
        assert (last["document_id"], round(last["score"], 4)) == ("d355", 1.0)


def test_what_a_killed_process_left_half_done_is_tidied_at_the_next_start(start: Start, tmp_path: Path) -> None:
    with start(tmp_path) as client:
        publish = {"collection": "kept", "documents": client.upload(DOCUMENTS[:3], kind="documents")["id"]}
        ended = client.wait(train(client, {"epochs": 1}, promote="always", publish=publish))
        client.wait(ended["publish_job_id"])
        client.post("/v1/collections", {"name": "going", "model": "m"})
    good = sorted(path for path in (tmp_path / "files").rglob("*") if path.is_file())
    orphans = ["heads/job_0/1/head.safetensors", "heads/job_0/1/manifest.json", "datasets/ds_0.jsonl", "scratch/x/rows.jsonl"]
    for orphan in orphans:
        (tmp_path / "files" / orphan).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / orphan).write_text("half")
    (tmp_path / "vectors" / ".unfinished-default_half").mkdir()
    with closing(sqlite3.connect(tmp_path / "zerogate.db")) as database, database:
        database.execute("UPDATE collections SET deleting = 1 WHERE name = 'going'")

    with start(tmp_path) as client:
        assert sorted(path for path in (tmp_path / "files").rglob("*") if path.is_file()) == good
        assert sorted(path.name for path in (tmp_path / "vectors").iterdir()) == ["default_kept"]
        assert client.http.delete("/v1/collections/going").status_code == 404
        assert client.post("/v1/collections/kept/search", {"query": "a matter"})["version"] == "m@1"
        assert client.get("/v1/embeddings", model="m@1", input="a")["version"] == "m@1"


# --- one process a folder -----------------------------------------------------------------------------------------------------


def test_a_second_process_on_the_same_folder_is_refused_in_one_line(service: Client, folder: Path) -> None:
    before = service.get("/v1/jobs", limit=100)

    refused = subprocess.run(
        command(folder, free_port()), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )

    assert refused.returncode == 1
    (told,) = [line for line in refused.stderr.splitlines() if line.startswith("zerogate:")]
    assert f"another zerogate process uses the data folder '{folder}'" in told
    assert "stop it or choose another" in told
    assert "Traceback" not in refused.stderr
    assert service.get("/v1/jobs", limit=100) == before


def test_a_second_service_in_the_same_process_is_refused_too(service: Client, start: Start, folder: Path) -> None:
    with pytest.raises(Conflict, match="another zerogate process"), start(folder):
        pass

    assert service.get("/livez") == {"status": "ok"}


def test_two_services_on_folders_of_their_own_do_not_take_each_others_jobs(service: Client, start: Start, tmp_path: Path) -> None:
    with start(tmp_path) as other:
        jobs = {client: [train(client, {"epochs": 1}, model=f"n{n}") for n in range(3)] for client in (service, other)}

        for client, ids in jobs.items():
            assert [client.wait(job_id)["state"] for job_id in ids] == ["succeeded"] * 3
            assert [told(client, job_id).count("started (attempt 1)") for job_id in ids] == [1, 1, 1]


def test_ctrl_c_stops_an_idle_service_without_a_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with own_process(folder) as (_, process):
        process.send_signal(signal.SIGINT)

        assert process.wait(30) in (0, 130)
    assert "Traceback" not in (tmp_path / "serve.log").read_text()
