"""The production profile as its users meet it: trainings, collections, many requests at once, and parts that are away."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.chaos_processes import Installation, children
from tests.conftest import Client

PAIRS = [{"anchor": f"how to do thing {n}", "positive": f"thing {n} is done like this"} for n in range(30)]
DOCUMENTS = [{"id": f"d{n}", "text": f"thing {n} is done like this", "n": n} for n in range(30)]
LONG = {"epochs": 1500}  # some seconds
ATTEMPT_SECONDS = 120.0


def train(api: Client, model: str, **fields: Any) -> str:
    api.upload(PAIRS, kind="pairs", name="pairs")
    body = {
        "model": model,
        "dataset": "pairs",
        "guard": api.small_guard(),
        "recipe": {"epochs": 2},
        "promote": "always",
        **fields,
    }
    job_id: str = api.post("/v1/jobs", body)["id"]
    return job_id


def wait_until(is_true: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def is_at(api: Client, job_id: str, stage: str) -> bool:
    job = api.get(f"/v1/jobs/{job_id}")
    assert job["state"] in ("queued", "running"), f"the job has ended too soon: {job}"
    return job["progress"] is not None and job["progress"]["stage"] == stage


def told(api: Client, job_id: str) -> list[str]:
    return [event["message"] for event in api.get(f"/v1/jobs/{job_id}/events", limit=100)["data"]]


def test_a_training_is_published_searched_promoted_and_rolled_back(api: Client, installation: Installation) -> None:
    api.upload(DOCUMENTS, kind="documents", name="documents")
    job = api.wait(train(api, "faq", publish={"collection": "shelf", "documents": "documents"}), seconds=ATTEMPT_SECONDS)
    assert (job["state"], job["result"]["version"], job["result"]["promoted"]) == ("succeeded", "faq@1", True), job
    assert api.wait(job["publish_job_id"], seconds=ATTEMPT_SECONDS)["result"]["points"] == 30

    found = api.post("/v1/collections/shelf/search", {"query": "how to do thing 7", "limit": 3})
    assert (found["version"], found["vector_name"]) == ("faq@1", "v1")
    assert "d7" in [hit["document_id"] for hit in found["data"]]
    asked = api.post("/v1/embeddings", {"model": "faq", "input": DOCUMENTS[7]["text"], "input_type": "document"})
    shelf = api.get("/v1/collections/shelf")["qdrant_collection"]
    body = {"limit": 100, "with_vector": ["v1"], "with_payload": True}
    points = httpx.post(f"{installation.qdrant_url}/collections/{shelf}/points/scroll", json=body).json()["result"]["points"]
    stored = next(point["vector"]["v1"] for point in points if point["payload"]["document_id"] == "d7")
    np.testing.assert_allclose(stored, asked["data"][0]["embedding"], atol=1e-6)

    api.post("/v1/models/faq/rollback")
    assert api.post("/v1/collections/shelf/search", {"query": "thing 7", "limit": 1})["version"] == "faq@0"


def test_two_hundred_submissions_with_one_key_make_one_job(api: Client) -> None:
    dataset = api.upload(PAIRS, kind="pairs", name="pairs")["id"]
    body = {"model": "once", "dataset": dataset, "guard": api.small_guard(), "recipe": {"epochs": 1}, "promote": "never"}

    def submit(_number: int) -> str:
        while True:  # as OpenAI's client does it: a 409 that names a time is asked again
            answer = api.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "the one"})
            if answer.status_code == 202:
                found: str = answer.json()["id"]
                return found
            assert (answer.status_code, answer.headers["retry-after"]) == (409, "1"), answer.text
            time.sleep(0.1)

    with ThreadPoolExecutor(50) as threads:
        jobs = set(threads.map(submit, range(200)))

    assert len(jobs) == 1
    assert api.wait(jobs.pop(), seconds=ATTEMPT_SECONDS)["result"]["version"] == "once@1"
    assert api.get("/v1/models/once")["versions"] == [0, 1]


def test_two_hundred_submissions_at_once_are_all_carried_out_while_a_worker_is_restarted(
    api: Client, installation: Installation
) -> None:
    train_id = train(api, "many")
    api.wait(train_id, seconds=ATTEMPT_SECONDS)
    api.post("/v1/collections", {"name": "many", "model": "many"})

    def submit(number: int) -> str:
        rows = [{"id": f"n{number}", "text": f"thing {number % 30} is done like this", "number": number}]
        answer = api.http.post(
            "/v1/collections/many/documents", json={"rows": rows}, headers={"Idempotency-Key": f"number {number}"}
        )
        assert answer.status_code == 202, answer.text
        found: str = answer.json()["id"]
        return found

    with ThreadPoolExecutor(50) as threads:
        submitted = threads.map(submit, range(200))
        for worker in installation.workers:
            worker.send(signal.SIGKILL)
        jobs = list(submitted)

    assert len(set(jobs)) == 200
    ended = [api.wait(job_id, seconds=ATTEMPT_SECONDS) for job_id in jobs]
    assert {job["state"] for job in ended} == {"succeeded"}
    assert api.get("/v1/collections/many")["points"] == 200


def test_a_trainer_that_is_killed_is_started_again_and_makes_one_version(api: Client, installation: Installation) -> None:
    job_id = train(api, "killed", recipe=LONG)
    wait_until(lambda: is_at(api, job_id, "fit"), seconds=ATTEMPT_SECONDS)
    trainers = [pid for worker in installation.workers for pid in children(worker.pid)]
    assert len(trainers) == 1

    os.kill(trainers[0], signal.SIGKILL)

    job = api.wait(job_id, seconds=ATTEMPT_SECONDS)
    assert (job["state"], job["attempts"], job["result"]["version"]) == ("succeeded", 2, "killed@1")
    assert "put back: the training process was ended by SIGKILL; was there too little memory?" in told(api, job_id)


def test_while_the_database_is_away_embeddings_are_served_and_jobs_go_on(api: Client, installation: Installation) -> None:
    job_id = train(api, "dry", recipe=LONG)
    before = api.post("/v1/embeddings", {"model": "dry@0", "input": "how to do thing 1"})
    wait_until(lambda: is_at(api, job_id, "fit"), seconds=ATTEMPT_SECONDS)
    installation.postgres.stop()
    try:
        assert api.post("/v1/embeddings", {"model": "dry@0", "input": "how to do thing 1"}) == before
        refused = api.http.post("/v1/jobs", json={"model": "dry", "dataset": "pairs"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        ready = api.http.get("/readyz")
        assert ready.status_code == 503
        checks = ready.json()["checks"]
        assert checks.pop("database").startswith("the database does not answer")
        assert set(checks.values()) == {"ok"}
        assert api.http.get("/livez").status_code == 200
        time.sleep(12)  # longer than a lease
    finally:
        installation.postgres.start()

    job = api.wait(job_id, seconds=ATTEMPT_SECONDS)
    assert (job["state"], job["attempts"], job["result"]["version"]) == ("succeeded", 1, "dry@1"), told(api, job_id)


def test_jobs_submitted_while_the_broker_is_away_are_done_when_it_is_back_empty(api: Client, installation: Installation) -> None:
    api.upload(PAIRS, kind="pairs", name="pairs")
    installation.valkey.kill()
    try:
        job_id = train(api, "unheard")
        assert api.http.get("/readyz").json()["checks"]["broker"].startswith("the broker does not answer")
        time.sleep(2)
        assert api.get(f"/v1/jobs/{job_id}")["state"] == "queued"
    finally:
        installation.valkey.start()

    assert api.wait(job_id, seconds=ATTEMPT_SECONDS)["state"] == "succeeded"


def test_while_qdrant_is_away_a_publish_waits_and_searches_say_so(api: Client, installation: Installation) -> None:
    api.wait(train(api, "far"), seconds=ATTEMPT_SECONDS)
    api.post("/v1/collections", {"name": "far", "model": "far"})
    installation.qdrant.stop()
    try:
        job = api.post("/v1/collections/far/documents", {"rows": DOCUMENTS})
        refused = api.http.post("/v1/collections/far/search", json={"query": "thing"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        made = api.http.post("/v1/collections", json={"name": "not-now", "model": "far"})
        assert made.status_code == 503
        wait_until(lambda: any(message.startswith("put back for") for message in told(api, job["id"])), seconds=ATTEMPT_SECONDS)
    finally:
        installation.qdrant.start()

    ended = api.wait(job["id"], seconds=ATTEMPT_SECONDS)
    assert (ended["state"], ended["attempts"], ended["result"]["points"]) == ("succeeded", 1, 30)
    assert api.http.get("/v1/collections/not-now").status_code == 404  # refused means that nothing is left


@pytest.mark.parametrize("again", [False, True])
def test_sweeping_once_leaves_nothing_over_and_may_be_repeated(installation: Installation, again: bool) -> None:
    installation.command("sweep", "--once")

    files = {
        path.relative_to(installation.data / "files").parts[0]
        for path in (installation.data / "files").rglob("*")
        if path.is_file()
    }
    assert files <= {"datasets", "heads"}
