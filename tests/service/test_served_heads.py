"""Heads that append numbers, map queries only, or are no single matrix: from training over publish and search to roll back."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import Client, Start
from tests.service.test_promotion_check import ANSWERS, CUES, learnable
from zerogate import Encoder
from zerogate.head_files import load_head

QUERIES = ["my drum", "their lemon", "a kite, please"]
SHAPES: dict[str, dict[str, Any]] = {
    "concat": {"merge": "concat"},
    "query_only": {"query_only": True},
    "stacked": {"norm": "pre", "activation": "relu"},
}


@dataclass(frozen=True)
class Served:
    """A live version 1 of such a head in a collection that already had documents, and its files."""

    name: str
    client: Client
    folder: Path
    encoder: Encoder
    result: Any

    @property
    def version(self) -> Any:
        return self.client.get(f"/v1/models/{self.name}@1")

    def by_hand(self, texts: list[str], role: str, *, strength: float | None = None) -> NDArray[np.float32]:
        base = self.encoder.encode(texts, role="query")  # this encoder has no prompts
        if role == "document" and self.name == "query_only":
            return base
        version = self.version
        (file,) = (self.folder / "files" / "heads" / version["job"]).rglob("head.safetensors")
        manifest = version["manifest"]
        head = load_head(file.read_bytes(), manifest, encoder_fingerprint=manifest["encoder_fingerprint"])
        return head.at_strength(version["strength"] if strength is None else strength).vectors(base)

    def asked(self, texts: list[str], **fields: Any) -> Any:
        return self.client.post("/v1/embeddings", {"model": self.name, "input": texts, **fields})

    def search(self, **fields: Any) -> Any:
        return self.client.post(f"/v1/collections/{self.name}/search", {"limit": 12, **fields})


def vectors_of(answer: Any) -> NDArray[np.float64]:
    return np.asarray([one["embedding"] for one in answer["data"]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def service(start: Start, folder: Path) -> Iterator[Client]:
    with start(folder) as client:
        client.upload(learnable(), kind="pairs", name="learnable")
        client.upload([{"id": f"d{n}", "text": text} for n, text in enumerate(ANSWERS[:6])], kind="documents", name="some")
        client.upload([{"id": f"d{n}", "text": text} for n, text in enumerate(ANSWERS)], kind="documents", name="all")
        yield client


@pytest.fixture(scope="module", params=list(SHAPES))
def served(service: Client, folder: Path, encoder: Encoder, request: pytest.FixtureRequest) -> Served:
    name: str = request.param
    body = {
        "model": name,
        "dataset": "learnable",
        "recipe": {"epochs": 30, **SHAPES[name]},
        "guard": service.small_guard(),
        "forgetting_budget": 1,
        "promote": "never",
        "publish": {"collection": name, "documents": "some"},
    }
    job = service.wait(service.post("/v1/jobs", body)["id"])
    assert job["state"] == "succeeded", job["error"]
    service.wait(job["publish_job_id"])
    service.post(f"/v1/models/{name}/promote", {"version": 1, "force": True})  # the documents so far are re-headed
    service.wait_for_all()
    service.wait(service.post(f"/v1/collections/{name}/documents", {"dataset": "all"})["id"])  # the others are written whole
    return Served(name, service, folder, encoder, job["result"])


def serving_name(name: str) -> str:
    return "base" if name == "query_only" else "v1"


def test_the_version_says_what_its_vectors_are(served: Served) -> None:
    expected = {"concat": (768, False), "query_only": (384, True), "stacked": (384, False)}[served.name]

    assert (served.version["dim"], served.version["query_only"]) == expected
    assert served.result["query_only"] == expected[1]
    assert served.client.get(f"/v1/models/{served.name}")["dim"] == expected[0]
    assert served.client.get(f"/v1/models/{served.name}@0")["dim"] == 384
    assert served.result["tuned"]["mrr@10"] > served.result["base"]["mrr@10"]


@pytest.mark.parametrize("role", ["query", "document"])
def test_embeddings_are_those_computed_by_hand(served: Served, role: str) -> None:
    answer = served.asked([*QUERIES, *ANSWERS[:3]], input_type=role)

    assert (answer["version"], answer["vector_name"]) == (f"{served.name}@1", serving_name(served.name))
    assert np.abs(vectors_of(answer) - served.by_hand([*QUERIES, *ANSWERS[:3]], role)).max() < 1e-5


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_the_dial_turns(served: Served, strength: float) -> None:
    found = vectors_of(served.asked(QUERIES, strength=strength))

    assert np.abs(found - served.by_hand(QUERIES, "query", strength=strength)).max() < 1e-5


def test_dimensions_are_those_of_the_version(served: Served) -> None:
    dim = served.version["dim"]
    body = {"model": served.name, "input": "a", "dimensions": dim}

    assert len(vectors_of(served.client.post("/v1/embeddings", body))[0]) == dim
    refused = served.client.http.post("/v1/embeddings", json={**body, "dimensions": 100})
    assert refused.status_code == 400
    assert str(dim) in refused.json()["error"]["message"]


def test_the_collection_tells_what_it_serves(served: Served) -> None:
    told = served.client.get(f"/v1/collections/{served.name}")

    assert (told["serving"], told["version"], told["points"]) == (serving_name(served.name), f"{served.name}@1", 12)
    assert told["ready"] == (["base"] if served.name == "query_only" else ["base", "v1"])
    assert told["building"] == []


@pytest.mark.parametrize("version", [None, 0, 1])
def test_searches_rank_as_by_hand(served: Served, version: int | None) -> None:
    for query in QUERIES:
        answer = served.search(query=query, version=version)

        if version == 0:
            base = served.encoder.encode([query, *ANSWERS], role="query")
            similarities = base[1:] @ base[0]
        else:
            similarities = served.by_hand(ANSWERS, "document") @ served.by_hand([query], "query")[0]
        best = np.argsort(-similarities)
        assert [hit["document_id"] for hit in answer["data"]] == [f"d{n}" for n in best]
        assert np.abs([hit["score"] for hit in answer["data"]] - similarities[best]).max() < 1e-5
        assert answer["version"] == f"{served.name}@{0 if version == 0 else 1}"
        assert answer["vector_name"] == ("base" if version == 0 else serving_name(served.name))


def test_the_vector_that_embeddings_give_for_the_collection_finds_the_same(served: Served) -> None:
    answer = served.asked(["my eagle"], collection=served.name)
    assert (answer["version"], answer["vector_name"]) == (f"{served.name}@1", serving_name(served.name))

    by_vector = served.search(vector=answer["data"][0]["embedding"])
    by_text = served.search(query="my eagle")

    assert [hit["document_id"] for hit in by_vector["data"]] == [hit["document_id"] for hit in by_text["data"]]
    wrong = served.client.http.post(f"/v1/collections/{served.name}/search", json={"vector": [1.0] * 100})
    assert str(served.version["dim"]) in wrong.json()["error"]["message"]


def test_a_new_collection_serves_it_at_once(served: Served) -> None:
    name = f"young-{served.name}"
    made = served.client.post("/v1/collections", {"name": name, "model": served.name})
    assert (made["serving"], made["version"]) == (serving_name(served.name), f"{served.name}@1")
    served.client.wait(served.client.post(f"/v1/collections/{name}/documents", {"dataset": "all"})["id"])

    young, old = (
        served.client.post(f"/v1/collections/{one}/search", {"query": "my glove"})["data"] for one in (name, served.name)
    )

    assert [(hit["document_id"], round(hit["score"], 5)) for hit in young] == [
        (hit["document_id"], round(hit["score"], 5)) for hit in old
    ]


def test_roll_back_and_promote_again(served: Served) -> None:
    before = served.search(query=f"my {CUES[3]}")

    assert served.client.post(f"/v1/models/{served.name}/rollback")["live_version"] == 0
    back = served.search(query=f"my {CUES[3]}")
    assert (back["version"], back["vector_name"]) == (f"{served.name}@0", "base")
    assert served.client.get(f"/v1/collections/{served.name}")["version"] == f"{served.name}@0"
    base = served.encoder.encode([f"my {CUES[3]}", *ANSWERS], role="query")
    assert back["data"][0]["score"] == pytest.approx(float((base[1:] @ base[0]).max()), abs=1e-5)

    jobs = len(served.client.get("/v1/jobs", limit=100)["data"])
    served.client.post(f"/v1/models/{served.name}/promote", {"version": 1, "force": True})
    served.client.wait_for_all()
    assert served.search(query=f"my {CUES[3]}") == before
    assert len(served.client.get("/v1/jobs", limit=100)["data"]) == jobs  # everything was there still
