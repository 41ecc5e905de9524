"""Embeddings over HTTP: bytes of the answer, requests that share passes, the bound of what waits, and what is known already."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.conftest import Client, Start
from zerogate import Encoder

ENCODER = "all-MiniLM-L6-v2"


def ask(url: httpx.URL, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """The answers to all of them, asked at the same moment."""

    async def together() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(base_url=url, timeout=60.0, limits=limits) as client:
            return await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in bodies))

    return asyncio.run(together())


def metric(client: Client, name: str) -> float:
    lines = client.http.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def vectors_of(answer: Any) -> "np.ndarray[Any, Any]":
    return np.asarray([one["embedding"] for one in answer["data"]])


def test_numbers_are_the_shortest_that_are_the_same_float32_and_base64_holds_the_same(client: Client) -> None:
    texts = ["A drum", "eight lemons", "A kite", "über", *(f"number {n}" for n in range(20))]  # too many to be written at once
    body = {"model": ENCODER, "input": texts}
    floats = client.http.post("/v1/embeddings", json=body)
    encoded = client.post("/v1/embeddings", {**body, "encoding_format": "base64"})

    found = vectors_of(floats.json())
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(24), abs=1e-6)
    written = floats.text.split('"embedding":[')[1].split("]")[0].split(",")
    assert [float(one) for one in written] == [float(str(np.float32(one))) for one in found[0]]
    for one, row in zip(encoded["data"], found, strict=True):
        decoded = np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4")
        assert np.allclose(decoded, row, atol=1e-6)
    assert [one["index"] for one in encoded["data"]] == list(range(24))
    assert {key: value for key, value in encoded.items() if key != "data"} == {
        key: value for key, value in floats.json().items() if key != "data"
    }


def test_the_document_of_the_interface_still_tells_the_answers_shape(client: Client) -> None:
    document = client.get("/openapi.json")
    for method in ("get", "post"):
        answers = document["paths"]["/v1/embeddings"][method]["responses"]
        assert answers["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/EmbeddingsAnswer"}
        assert "Retry-After" in answers["429"]["description"]


def test_two_hundred_requests_at_once_share_passes_and_each_gets_its_own_vector(client: Client, encoder: Encoder) -> None:
    texts = [f"request number {number} of a crowd" for number in range(200)]
    client.post("/v1/embeddings", {"model": ENCODER, "input": "warm"})
    before = {name: metric(client, f"zerogate_encoder_{name}_total") for name in ("passes", "texts")}
    answers = ask(client.http.base_url, [{"model": ENCODER, "input": text} for text in texts])

    assert {answer.status_code for answer in answers} == {200}
    found = np.concatenate([vectors_of(answer.json()) for answer in answers])
    assert np.abs(found - encoder.encode(texts, role="query")).max() < 1e-5
    assert metric(client, "zerogate_encoder_texts_total") - before["texts"] == 200
    assert metric(client, "zerogate_encoder_passes_total") - before["passes"] <= 50
    assert metric(client, "zerogate_encoder_waiting_tokens") == 0


@pytest.fixture(scope="module")
def small(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service whose queue is full soon, and that remembers questions."""
    folder: Path = tmp_path_factory.mktemp("small")
    with start(folder, queue_tokens=1024, answer_cache_bytes=10**6) as client:
        client.post("/v1/embeddings", {"model": ENCODER, "input": "warm"})
        yield client


def test_more_than_may_wait_is_refused_whole_with_the_time_to_ask_again(small: Client, encoder: Encoder) -> None:
    inputs = [[f"text {number} of request {request}, and some more words" for number in range(30)] for request in range(60)]
    answers = ask(small.http.base_url, [{"model": ENCODER, "input": texts} for texts in inputs])

    assert {answer.status_code for answer in answers} == {200, 429}
    for texts, answer in zip(inputs, answers, strict=True):
        if answer.status_code == 200:
            assert np.abs(vectors_of(answer.json()) - encoder.encode(texts, role="query")).max() < 1e-5
            continue
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "queue_full", None)
        assert "the encoder's queue is full" in error["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert metric(small, "zerogate_encoder_waiting_tokens") == 0
    with openai.OpenAI(base_url=f"{small.http.base_url}/v1", api_key="none") as client:
        large = client.embeddings.create(model=ENCODER, input=[f"one of many texts, number {number}" for number in range(300)])
    assert len(large.data) == 300  # three times the bound


def test_a_question_that_comes_again_costs_no_pass(small: Client, encoder: Encoder) -> None:
    body = {"model": ENCODER, "input": ["is this known?", "and this?"]}
    first = small.post("/v1/embeddings", body)
    before = metric(small, "zerogate_encoder_texts_total")

    assert small.post("/v1/embeddings", body) == first
    assert metric(small, "zerogate_encoder_texts_total") == before
    mixed = ["is that known?", "and this?", "or that?", "is this known?"]
    found = small.post("/v1/embeddings", {"model": ENCODER, "input": mixed})
    assert metric(small, "zerogate_encoder_texts_total") == before + 2
    assert [found["data"][place]["embedding"] for place in (3, 1)] == [one["embedding"] for one in first["data"]]
    assert np.abs(vectors_of(found) - encoder.encode(mixed, role="query")).max() < 1e-5
    assert found["usage"]["prompt_tokens"] == sum(encoder.count_tokens(mixed))
