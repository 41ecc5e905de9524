"""What happened to a job, page by page and as a stream, while it runs and afterwards."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Client, Start

PAIRS = [{"anchor": f"event {n} of many", "positive": f"what came of event {n}"} for n in range(24)]
STREAM = {"accept": "text/event-stream"}
LONG = {"epochs": 8000}  # half a minute and more; every test that asks for it cancels it


@dataclass(frozen=True)
class Event:
    """One event of a stream, as its lines say."""

    id: str
    name: str
    data: Any


def events_of(response: httpx.Response) -> Iterator[Event]:
    """The events of a stream, as they come; ends when the stream does."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Event(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


def stream(client: Client, job_id: str, headers: dict[str, str] | None = None, **params: Any) -> list[Event]:
    """The whole stream, to its end."""
    with client.http.stream("GET", f"/v1/jobs/{job_id}/events", headers={**STREAM, **(headers or {})}, params=params) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(events_of(response))


def train(client: Client, recipe: dict[str, Any]) -> str:
    client.upload(PAIRS, kind="pairs", name="events")
    body = {"model": "events", "dataset": "events", "guard": client.small_guard(), "recipe": recipe, "promote": "never"}
    job_id: str = client.post("/v1/jobs", body)["id"]
    return job_id


@pytest.fixture(scope="module")
def done(client: Client) -> str:
    """A job that has succeeded."""
    job_id = train(client, {"epochs": 2})
    assert client.wait(job_id)["state"] == "succeeded"
    return job_id


# --- pages --------------------------------------------------------------------------------------------------------------------


def test_events_tell_the_way_of_the_job_in_order(client: Client, done: str) -> None:
    page = client.get(f"/v1/jobs/{done}/events", limit=100)

    assert (page["object"], page["has_more"]) == ("list", False)
    messages = [one["message"] for one in page["data"]]
    assert [one["id"] for one in page["data"]] == [str(n) for n in range(1, len(messages) + 1)]
    assert (messages[0], messages[1], messages[-1]) == ("queued", "started (attempt 1)", "succeeded")
    assert any(message.startswith("encoded 64 texts (") for message in messages)
    (fitted,) = [one for one in page["data"] if one["message"].startswith("fitted ")]
    assert [len(epochs) for epochs in fitted["data"]["losses"]] == [2]
    assert {one["object"] for one in page["data"]} == {"job.event"}
    times = [one["created"] for one in page["data"]]
    assert times == sorted(times)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages_put_together_are_the_whole_list(client: Client, done: str, limit: int) -> None:
    whole = client.get(f"/v1/jobs/{done}/events", limit=100)["data"]

    found: list[Any] = []
    more = True
    while more:
        after = {"after": found[-1]["id"]} if found else {}
        page = client.get(f"/v1/jobs/{done}/events", limit=limit, **after)
        assert len(page["data"]) == limit or not page["has_more"]
        found, more = found + page["data"], page["has_more"]

    assert found == whole


def test_after_the_last_event_there_is_an_empty_page(client: Client, done: str) -> None:
    whole = client.get(f"/v1/jobs/{done}/events", limit=100)["data"]

    for after in (whole[-1]["id"], "999999"):
        page = client.get(f"/v1/jobs/{done}/events", after=after)
        assert (page["data"], page["has_more"]) == ([], False)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("after", ["first", "-1", "1.5", "²", "99999999999"])
def test_an_after_that_is_no_number_is_refused(client: Client, done: str, after: str, accept: str) -> None:
    answer = client.http.get(f"/v1/jobs/{done}/events", params={"after": after}, headers={"accept": accept})

    assert answer.status_code == 400
    assert "events are numbered 1, 2, 3" in answer.json()["error"]["message"]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_events_of_no_job_are_not_found(client: Client, accept: str) -> None:
    answer = client.http.get("/v1/jobs/job_0/events", headers={"accept": accept})

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "job_not_found"


# --- streams ------------------------------------------------------------------------------------------------------------------


def test_the_stream_of_an_ended_job_gives_the_same_events_and_ends(client: Client, done: str) -> None:
    whole = client.get(f"/v1/jobs/{done}/events", limit=100)["data"]

    events = stream(client, done)

    assert [event.data for event in events] == whole
    assert [event.id for event in events] == [one["id"] for one in whole]
    assert {event.name for event in events} == {"job.event"}


def test_a_stream_resumes_after_the_last_event_id(client: Client, done: str) -> None:
    whole = stream(client, done)

    assert stream(client, done, {"last-event-id": "2"}) == whole[2:]
    assert stream(client, done, after="3") == whole[3:]
    assert stream(client, done, {"last-event-id": "2"}, after="4") == whole[2:]  # what the browser knows better
    assert stream(client, done, {"last-event-id": whole[-1].id}) == []


def test_a_wrong_last_event_id_is_refused(client: Client, done: str) -> None:
    answer = client.http.get(f"/v1/jobs/{done}/events", headers={**STREAM, "last-event-id": "last"})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Last-Event-ID"


def test_a_stream_is_not_kept_by_proxies(client: Client, done: str) -> None:
    with client.http.stream("GET", f"/v1/jobs/{done}/events", headers=STREAM) as response:
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"


def test_a_stream_gives_events_as_they_come_and_ends_when_the_job_is_cancelled(client: Client) -> None:
    job_id = train(client, LONG)

    with client.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as response:
        events = events_of(response)
        first = [next(events), next(events)]
        state_then = client.get(f"/v1/jobs/{job_id}")["state"]
        client.post(f"/v1/jobs/{job_id}/cancel")
        rest = list(events)

    assert [event.data["message"] for event in first] == ["queued", "started (attempt 1)"]
    assert state_then == "running"  # so these came while the job ran, and not all at its end
    assert rest[-1].data["message"] == "cancelled"
    whole = client.get(f"/v1/jobs/{job_id}/events", limit=100)["data"]
    assert [event.data for event in first + rest] == whole


def test_a_stream_broken_off_in_the_middle_is_resumed_without_loss_or_repeat(client: Client) -> None:
    job_id = train(client, {"epochs": 15})

    with client.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as response:
        seen = [next(events_of(response))]
    seen += stream(client, job_id, {"last-event-id": seen[-1].id})

    assert [event.id for event in seen] == [str(n) for n in range(1, len(seen) + 1)]
    assert seen[-1].data["message"] == "succeeded"


def test_two_streams_of_one_job_both_get_everything(client: Client) -> None:
    job_id = train(client, {"epochs": 15})
    got: dict[int, list[Event]] = {}

    def follow(number: int) -> None:
        got[number] = stream(client, job_id)

    threads = [threading.Thread(target=follow, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert got[0] == got[1]
    assert got[0][-1].data["message"] == "succeeded"


def test_open_streams_end_when_the_service_stops(start: Start, tmp_path: Path) -> None:
    ended = threading.Event()
    following = threading.Event()

    def follow(url: httpx.URL, job_id: str) -> None:
        with (
            httpx.Client(base_url=url, timeout=30) as http,
            http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as response,
        ):
            for _ in events_of(response):
                following.set()
        ended.set()

    with start(tmp_path) as client:
        thread = threading.Thread(target=follow, args=[client.http.base_url, train(client, LONG)])
        thread.start()
        assert following.wait(20)

    assert ended.wait(10)
    thread.join(10)
