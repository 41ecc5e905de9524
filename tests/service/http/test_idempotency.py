"""A POST that is sent twice is carried out once."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text, update
from starlette.responses import JSONResponse

from service.db import Database, now
from service.errors import Busy, Conflict, InvalidRequest, OutcomeUnknown, Unavailable
from service.http.dependencies import ResourcesDep
from service.tables import IdempotencyKey, Project

Logs = Callable[[], list[dict[str, Any]]]
Serve = Callable[[FastAPI], str]

KEY = {"Idempotency-Key": "k1"}


class Work:
    """What POST /v1/jobs does: counts, waits if told to, then answers or fails."""

    def __init__(self) -> None:
        self.done = 0
        self.error: Exception | None = None
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, body: dict[str, Any]) -> JSONResponse:
        self.done += 1
        number = self.done
        self.began.set()
        assert self.may_end.wait(10)
        if self.error is not None:
            raise self.error
        return JSONResponse({"number": number, "body": body}, status_code=202)


@pytest.fixture
def work(app: FastAPI) -> Iterator[Work]:
    work = Work()

    @app.post("/v1/jobs")
    @app.post("/v1/other")
    @app.post("/v1/datasets")
    @app.post("/v1/embeddings")
    @app.post("/v1/collections/docs/search")
    def endpoint(body: dict[str, Any]) -> JSONResponse:
        return work(body)

    yield work
    work.may_end.set()


def rows(database: Database) -> list[IdempotencyKey]:
    with database.read() as session:
        return list(session.scalars(select(IdempotencyKey)))


def make_older(database: Database, **age: float) -> None:
    """Move all keys into the past."""
    with database.write() as session:
        for row in session.scalars(select(IdempotencyKey)):
            row.created_at = now() - timedelta(**age)


def test_a_repeat_gets_the_answer_of_the_first(client: TestClient, work: Work) -> None:
    first = client.post("/v1/jobs", json={"model": "faq"}, headers=KEY)
    second = client.post("/v1/jobs", json={"model": "faq"}, headers=KEY)

    assert work.done == 1
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json() == {"number": 1, "body": {"model": "faq"}}
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["content-type"] == "application/json"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]


def test_without_a_key_every_request_is_carried_out(client: TestClient, work: Work, database: Database) -> None:
    for _ in range(2):
        client.post("/v1/jobs", json={})

    assert work.done == 2
    assert rows(database) == []


def test_the_same_key_with_another_body_or_query_is_refused(client: TestClient, work: Work) -> None:
    client.post("/v1/jobs", json={"model": "faq"}, headers=KEY)

    for answer in (
        client.post("/v1/jobs", json={"model": "faq2"}, headers=KEY),
        client.post("/v1/jobs?dry=1", json={"model": "faq"}, headers=KEY),
    ):
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "idempotency_key_reused"
        assert answer.json()["error"]["param"] == "Idempotency-Key"
    assert work.done == 1


def test_a_key_belongs_to_its_route(client: TestClient, work: Work) -> None:
    client.post("/v1/jobs", json={}, headers=KEY)
    client.post("/v1/other", json={}, headers=KEY)

    assert work.done == 2


@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/embeddings", "/v1/collections/docs/search"])
def test_uploads_and_reads_are_not_remembered(client: TestClient, work: Work, database: Database, path: str) -> None:
    for _ in range(2):
        assert client.post(path, json={"input": "a text"}, headers=KEY).status_code == 202

    assert work.done == 2
    assert rows(database) == []


def test_get_requests_pass(client: TestClient, app: FastAPI, database: Database) -> None:
    @app.get("/v1/jobs")
    def jobs() -> None: ...

    assert client.get("/v1/jobs", headers=KEY).status_code == 200
    assert rows(database) == []


@pytest.mark.parametrize("length", [0, 256])
def test_a_key_of_impossible_length_is_refused(client: TestClient, work: Work, length: int) -> None:
    answer = client.post("/v1/jobs", json={}, headers={"Idempotency-Key": "k" * length})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_idempotency_key"
    assert answer.json()["error"]["message"] == f"the Idempotency-Key is {length} characters long; it must have 1 to 255"
    assert work.done == 0


def test_the_longest_key_is_taken(client: TestClient, work: Work) -> None:
    assert client.post("/v1/jobs", json={}, headers={"Idempotency-Key": "k" * 255}).status_code == 202


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), HTTPException(502, "bad gateway"), Unavailable("no answer"), Busy("being written")]
)
def test_an_answer_that_may_change_frees_the_key(client: TestClient, work: Work, database: Database, error: Exception) -> None:
    work.error = error
    assert client.post("/v1/jobs", json={}, headers=KEY).status_code in {409, 500, 502, 503}
    assert rows(database) == []

    work.error = None
    assert client.post("/v1/jobs", json={}, headers=KEY).status_code == 202
    assert work.done == 2


def test_a_request_that_may_have_been_carried_out_keeps_its_key_for_a_while(client: TestClient, work: Work) -> None:
    work.error = OutcomeUnknown("the answer to the commit was lost")
    assert client.post("/v1/jobs", json={}, headers=KEY).status_code == 503

    work.error = None
    again = client.post("/v1/jobs", json={}, headers=KEY)
    assert (again.status_code, again.json()["error"]["code"], work.done) == (409, "still_running", 1)


def test_a_refusal_is_repeated(client: TestClient, work: Work) -> None:
    work.error = InvalidRequest("there is no recipe 'magic'", param="recipe")
    answers = [client.post("/v1/jobs", json={}, headers=KEY) for _ in range(2)]

    assert work.done == 1
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json()


def test_a_repeated_conflict_still_says_not_to_ask_again(client: TestClient, work: Work) -> None:
    work.error = Conflict("version 3 is not better")
    answers = [client.post("/v1/jobs", json={}, headers=KEY) for _ in range(2)]

    assert work.done == 1
    assert [answer.headers["x-should-retry"] for answer in answers] == ["false", "false"]


def test_a_repeat_during_the_first_is_told_to_wait(app: FastAPI, work: Work, serve: Serve) -> None:
    url = serve(app) + "/v1/jobs"
    work.may_end.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(httpx.post, url, json={}, headers=KEY)
        assert work.began.wait(10)
        second = httpx.post(url, json={}, headers=KEY)
        another = httpx.post(url, json={"other": 1}, headers=KEY)
        work.may_end.set()

        assert first.result().status_code == 202
    assert (second.status_code, second.headers["retry-after"]) == (409, "1")
    assert second.json()["error"]["code"] == "still_running"
    assert "x-should-retry" not in second.headers
    assert another.status_code == 422
    assert httpx.post(url, json={}, headers=KEY).json() == first.result().json()
    assert work.done == 1


def test_of_many_simultaneous_first_requests_one_runs(app: FastAPI, work: Work, serve: Serve) -> None:
    urls = [serve(app) + "/v1/jobs", serve(app) + "/v1/jobs"]  # two servers, as two processes over one database
    work.may_end.clear()
    start = threading.Barrier(8)

    def post(number: int) -> httpx.Response:
        start.wait()
        return httpx.post(urls[number % 2], json={}, headers=KEY, timeout=20)

    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(post, number) for number in range(8)]
        assert work.began.wait(10)
        while sum(answer.done() for answer in sent) < 7:
            time.sleep(0.005)
        work.may_end.set()
        answers = [answer.result() for answer in sent]

    assert work.done == 1
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7


def test_after_a_day_a_key_is_forgotten(client: TestClient, work: Work, database: Database) -> None:
    client.post("/v1/jobs", json={}, headers=KEY)
    client.post("/v1/jobs", json={}, headers={"Idempotency-Key": "k2"})
    make_older(database, hours=23.9)
    assert client.post("/v1/jobs", json={}, headers=KEY).json()["number"] == 1

    make_older(database, hours=24.1)
    assert client.post("/v1/jobs", json={"another": "body"}, headers=KEY).json()["number"] == 3
    assert [row.key for row in rows(database)] == ["k1"]  # k2 went along


def test_the_key_of_a_process_that_died_is_taken_over(app: FastAPI, work: Work, database: Database, serve: Serve) -> None:
    url = serve(app) + "/v1/jobs"
    work.may_end.clear()
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(httpx.post, url, json={}, headers=KEY)
        assert work.began.wait(10)
        make_older(database, seconds=59)
        assert httpx.post(url, json={}, headers=KEY).status_code == 409

        make_older(database, seconds=61)
        work.began.clear()
        second = pool.submit(httpx.post, url, json={}, headers=KEY)
        assert work.began.wait(10)
        work.may_end.set()

        assert {slow.result().json()["number"], second.result().json()["number"]} == {1, 2}
    assert httpx.post(url, json={}, headers=KEY).json()["number"] == 2  # not the answer of the one that lost its claim
    assert work.done == 2


def test_one_that_lost_its_claim_does_not_free_it(app: FastAPI, database: Database, client: TestClient) -> None:
    @app.post("/v1/slow")
    def slow() -> None:
        with database.write() as session:  # another process takes the key over meanwhile
            session.execute(update(IdempotencyKey).values(created_at=now() + timedelta(seconds=1)))
        raise Unavailable("too late")

    client.post("/v1/slow", headers=KEY)

    assert len(rows(database)) == 1


def test_a_cancelled_request_frees_its_key(app: FastAPI, database: Database) -> None:
    began = asyncio.Event()

    @app.post("/v1/slow")
    async def slow(request: Request) -> None:
        assert await request.json() == {"model": "faq"}
        began.set()
        await asyncio.sleep(60)

    async def send_and_cancel() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            sending = asyncio.create_task(client.post("/v1/slow", json={"model": "faq"}, headers=KEY))
            await began.wait()
            assert len(rows(database)) == 1
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending

    asyncio.run(send_and_cancel())

    assert rows(database) == []


def test_the_work_and_its_key_are_separate_transactions(app: FastAPI, client: TestClient, database: Database) -> None:
    @app.post("/v1/projects")
    def create(body: dict[str, str], resources: ResourcesDep) -> dict[str, str]:
        with resources.database.write() as session:
            session.add(Project(id=body["id"], name=body["id"], created_at=now()))
        return body

    for _ in range(2):
        assert client.post("/v1/projects", json={"id": "second"}, headers=KEY).json() == {"id": "second"}

    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Project)) == 2


def test_done_work_is_answered_even_when_its_answer_cannot_be_kept(
    app: FastAPI, client: TestClient, database: Database, logs: Logs
) -> None:
    @app.post("/v1/sabotage")
    def sabotage() -> dict[str, bool]:
        with database.write() as session:
            session.execute(text("ALTER TABLE idempotency_keys RENAME TO elsewhere"))
        return {"done": True}

    answer = client.post("/v1/sabotage", headers=KEY)

    assert answer.json() == {"done": True}
    assert "idempotency.unsettled" in [line["event"] for line in logs()]


def test_a_body_over_the_limit_makes_no_claim(client: TestClient, work: Work, database: Database) -> None:
    answer = client.post("/v1/jobs", content=iter([b"x" * 2**20] * 33), headers=KEY)

    assert answer.status_code == 413
    assert rows(database) == []
