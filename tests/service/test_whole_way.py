"""The whole way over HTTP: data in, a version out, its vectors in a collection, and every number checked by hand.

The encoder has a prompt for each role, so a query that is taken for a document somewhere would show.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from service.settings import EncoderSpec
from tests.conftest import Client, Start
from zerogate import Encoder

NAME = "prompted"
PROMPTS = {"query": "query: ", "document": "passage: "}
CUES = [
    "apple", "bridge", "candle", "desert", "engine", "feather", "guitar", "harbor", "island", "jacket", "kettle", "ladder",
    "mirror", "needle", "orchard", "pencil", "quarry", "ribbon", "saddle", "tunnel", "umbrella", "velvet", "window", "yogurt",
]  # fmt: skip
# What each cue stands for is arbitrary: the encoder cannot know it, and a head can learn it.
ANSWERS = [
    f"{who} {what}."
    for who in ("The mayor", "A nurse", "Our pilot", "The judge", "My aunt", "Their coach")
    for what in ("paid the invoice late", "moved to the coast", "lost a silver ring", "voted against the budget")
]
Vectors = NDArray[np.float32]


def unit(matrix: NDArray[Any]) -> NDArray[np.float64]:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@dataclass(frozen=True)
class Way:
    """The journey that all tests of this file look at: one service, one training, one publish."""

    client: Client
    folder: Path
    uploaded: bytes
    pairs: Any
    documents: Any
    job: Any
    publish_job: Any
    encoder: Encoder

    def base(self, texts: list[str], role: str = "query") -> Vectors:
        """x, made by an encoder that knows no prompts: the test puts them in front itself."""
        return self.encoder.encode([PROMPTS[role] + text for text in texts], role="query")

    @property
    def strength(self) -> float:
        found: float = self.client.get("/v1/models/m@1")["strength"]
        return found

    def by_hand(self, texts: list[str], role: str = "query", *, strength: float | None = None) -> NDArray[np.float64]:
        """The vectors of version 1 from the head's file: y = A x, then the dial (at the version's own), then unit rows."""
        x = self.base(texts, role).astype(np.float64)
        tensors = load_file(self.head_file())
        assert set(tensors) == {"matrix"}
        y = x @ tensors["matrix"].astype(np.float64).T
        return unit(x + (self.strength if strength is None else strength) * (y - x))

    def head_file(self) -> Path:
        (found,) = (self.folder / "files" / "heads" / self.job["id"]).rglob("head.safetensors")
        return found

    def asked(self, texts: str | list[str], **fields: Any) -> Any:
        return self.client.post("/v1/embeddings", {"model": "m", "input": texts, **fields})

    def vectors(self, texts: str | list[str], **fields: Any) -> NDArray[np.float64]:
        return vectors_of(self.asked(texts, **fields))


def vectors_of(answer: Any) -> NDArray[np.float64]:
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.asarray([one["embedding"] for one in answer["data"]])


def pairs() -> list[dict[str, str]]:
    asked = [("train", "what about the {}", "{} please", "tell me of the {}"), ("test", "do you know the {}")]
    return [
        {"anchor": template.format(cue), "positive": answer, "split": split}
        for split, *templates in asked
        for template in templates
        for cue, answer in zip(CUES, ANSWERS, strict=True)
    ]


def documents() -> list[dict[str, Any]]:
    return [{"id": f"doc-{n}", "text": text, "parity": "odd" if n % 2 else "even", "n": n} for n, text in enumerate(ANSWERS)]


@pytest.fixture(scope="module")
def way(start: Start, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    folder = tmp_path_factory.mktemp("way")
    spec = EncoderSpec(name=NAME, source="all-MiniLM-L6-v2", prompts={"query": "query: ", "document": "passage: "})
    with start(folder, encoders=(EncoderSpec(name="all-MiniLM-L6-v2", source="all-MiniLM-L6-v2"), spec)) as client:
        uploaded = client.upload(pairs(), kind="pairs", name="questions")
        stored = client.upload(documents(), kind="documents", name="answers")
        job = client.post(
            "/v1/jobs",
            {
                "model": "m",
                "encoder": NAME,
                "dataset": uploaded["id"],
                "recipe": {"epochs": 40, "batch_size": 64},
                "guard": client.small_guard(),
                "forgetting_budget": 1,  # so the strength is chosen by the score alone
                "promote": "always",
                "publish": {"collection": "shelf", "documents": "answers", "indexes": {"parity": "keyword"}},
            },
        )
        assert job["state"] == "queued"
        ended = client.wait(job["id"])
        body = "".join(json.dumps(row) + "\n" for row in pairs()).encode()
        yield Way(client, folder, body, uploaded, stored, ended, client.wait(ended["publish_job_id"]), encoder)


def test_the_datasets_are_told_with_their_digest_and_counts(way: Way) -> None:
    assert way.pairs["sha256"] == hashlib.sha256(way.uploaded).hexdigest()
    assert (way.pairs["rows"], way.pairs["bytes"]) == (96, len(way.uploaded))
    assert way.pairs["report"]["splits"] == {"train": 72, "validation": 0, "test": 24, "unassigned": 0}
    assert way.client.get("/v1/datasets/questions") == way.pairs
    assert way.documents["kind"] == "documents"


def test_the_training_succeeds_and_its_publish_follows(way: Way) -> None:
    assert (way.job["state"], way.job["error"], way.job["attempts"]) == ("succeeded", None, 1)
    assert way.job["result"]["version"] == "m@1"
    assert (way.job["result"]["pairs"], way.job["result"]["test_queries"]) == (72, 24)
    assert way.job["result"]["identity_at_start"] is True
    assert way.job["created"] <= way.job["started"] <= way.job["finished"]
    assert (way.publish_job["kind"], way.publish_job["state"]) == ("publish", "succeeded")
    assert (way.publish_job["parent_job_id"], way.publish_job["collection"]) == (way.job["id"], "shelf")
    assert (way.publish_job["result"]["written"], way.publish_job["result"]["points"]) == (24, 24)


def test_version_1_is_live_and_version_0_is_the_encoder(way: Way) -> None:
    model = way.client.get("/v1/models/m")

    assert (model["live_version"], model["versions"], model["encoder"], model["dim"]) == (1, [0, 1], NAME, 384)
    assert way.job["result"]["promoted"] is True
    history = way.client.get("/v1/models/m/promotions")["data"]
    assert [(one["action"], one["from_version"], one["to_version"], one["forced"]) for one in history] == [
        ("created", None, 0, False),
        ("promote", 0, 1, True),
    ]


def test_the_version_carries_the_scores_that_a_ranking_by_hand_gives(way: Way) -> None:
    version = way.client.get("/v1/models/m/versions/1")
    queries = [f"do you know the {cue}" for cue in CUES]

    by_hand = {
        "base": scores(way.base(queries) @ way.base(ANSWERS, "document").T),
        "tuned": scores(way.by_hand(queries) @ way.by_hand(ANSWERS, "document").T),
    }

    assert version == way.client.get("/v1/models/m@1")
    for which, expected in by_hand.items():
        assert version["scores"][which] == pytest.approx(expected, abs=1e-6)
    assert version["scores"]["tuned"]["ndcg@10"] > version["scores"]["base"]["ndcg@10"] + 0.2
    verdict = version["verdict"]
    assert (verdict["score"], verdict["queries"], verdict["outcome"]) == ("mrr@10", 24, "better")
    gained = by_hand["tuned"]["mrr@10"] - by_hand["base"]["mrr@10"]
    assert verdict["difference"] == pytest.approx(gained, abs=1e-6)
    assert 0 < verdict["low"] < gained < verdict["high"]


def scores(similarities: NDArray[Any]) -> dict[str, float]:
    """Query i wants document i; no two of these are equal, so a rank is a count of better ones."""
    ranks = [1 + int((row > row[wanted]).sum()) for wanted, row in enumerate(similarities)]
    return {
        "ndcg@10": sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10) / len(ranks),
        "mrr@10": sum(1 / rank for rank in ranks if rank <= 10) / len(ranks),
        **{f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 10, 100)},
    }


def test_the_manifest_tells_what_the_version_is_made_of(way: Way) -> None:
    manifest = way.client.get("/v1/models/m/versions/1")["manifest"]
    own = next(one for one in way.client.get("/v1/encoders")["data"] if one["name"] == NAME)

    assert manifest["head_sha256"] == hashlib.sha256(way.head_file().read_bytes()).hexdigest()
    assert manifest == json.loads((way.head_file().parent / "manifest.json").read_text())
    assert manifest["dataset_sha256"] == way.pairs["sha256"]
    assert manifest["encoder_fingerprint"] == own["fingerprint"]
    assert own["fingerprint"] != way.encoder.fingerprint  # same weights, other prompts
    assert (manifest["recipe"]["epochs"], manifest["recipe"]["batch_size"], manifest["recipe"]["seed"]) == (40, 64, 0)
    assert (manifest["dim"], manifest["out_dim"], manifest["shape"]["blocks"], manifest["strength"]) == (
        384,
        384,
        1,
        way.strength,
    )
    assert set(manifest["libraries"]) >= {"torch", "numpy", "sentence-transformers"}


# --- embeddings ---------------------------------------------------------------------------------------------------------------

TEXTS = ["do you know the apple", "Straße, 東京 and the rest", "a"]


@pytest.mark.parametrize("role", ["query", "document"])
def test_every_reference_gives_the_vectors_computed_by_hand(way: Way, role: str) -> None:
    base, tuned = way.base(TEXTS, role), way.by_hand(TEXTS, role)
    assert np.abs(tuned - base).max() > 0.01

    expected = {"m": (tuned, "v1"), "m@1": (tuned, "v1"), "m@0": (base, "base"), NAME: (base, "base")}
    for ref, (vectors, name) in expected.items():
        answer = way.asked(TEXTS, model=ref, input_type=role)
        assert np.abs(vectors_of(answer) - vectors).max() < 1e-5
        assert (answer["model"], answer["vector_name"]) == (ref, name)
        assert answer["version"] == (f"{NAME}@0" if ref == NAME else "m@0" if name == "base" else "m@1")
        got = way.client.get("/v1/embeddings", model=ref, input=TEXTS, input_type=role)
        assert np.abs(vectors_of(got) - vectors).max() < 1e-5


def test_a_text_is_a_query_unless_it_is_called_a_document(way: Way) -> None:
    assert np.array_equal(way.vectors(TEXTS), way.vectors(TEXTS, input_type="query"))
    assert np.abs(way.vectors(TEXTS) - way.vectors(TEXTS, input_type="document")).max() > 0.01


def test_one_text_and_a_list_of_one_are_the_same(way: Way) -> None:
    assert np.array_equal(way.vectors(TEXTS[0]), way.vectors([TEXTS[0]]))
    one = way.client.get("/v1/embeddings", model="m", input=TEXTS[0])
    assert np.array_equal(vectors_of(one), way.vectors(TEXTS[0]))


def test_version_0_and_the_encoder_are_not_normalised_again(way: Way) -> None:
    assert np.array_equal(way.vectors(TEXTS, model="m@0"), way.vectors(TEXTS, model=NAME))
    assert np.array_equal(way.vectors(TEXTS, model="m@0"), way.vectors(TEXTS, model="m@1", strength=0.0))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.7])
def test_the_dial_gives_what_the_formula_says(way: Way, strength: float) -> None:
    answer = way.asked(TEXTS, strength=strength)

    assert np.abs(vectors_of(answer) - way.by_hand(TEXTS, strength=strength)).max() < 1e-5
    # A collection holds the vectors of the version's own strength, and of no other.
    assert answer["vector_name"] == ("v1" if strength == way.strength else None)
    assert answer["version"] == "m@1"


def test_base64_holds_the_same_numbers_as_the_list(way: Way) -> None:
    floats = way.vectors(TEXTS).astype(np.float32)

    encoded = [base64.b64decode(one["embedding"]) for one in way.asked(TEXTS, encoding_format="base64")["data"]]

    assert [len(one) for one in encoded] == [4 * 384] * len(TEXTS)
    assert np.array_equal(np.stack([np.frombuffer(one, dtype="<f4") for one in encoded]), floats)


def test_the_vectors_are_units_and_tokens_are_counted(way: Way) -> None:
    answer = way.asked(TEXTS)

    assert np.linalg.norm(vectors_of(answer), axis=1) == pytest.approx(1.0, abs=1e-6)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 2 * len(TEXTS)


def test_asked_for_a_collection_the_answer_fits_what_it_serves(way: Way) -> None:
    answer = way.asked(TEXTS, collection="shelf")

    assert (answer["version"], answer["vector_name"]) == ("m@1", "v1")
    assert np.abs(vectors_of(answer) - way.by_hand(TEXTS)).max() < 1e-5


# --- collection and search ----------------------------------------------------------------------------------------------------


def test_the_collection_tells_how_to_query_it_in_qdrant(way: Way) -> None:
    shelf = way.client.get("/v1/collections/shelf")

    assert (shelf["qdrant_collection"], shelf["model"], shelf["points"]) == ("default_shelf", "m", 24)
    assert (shelf["ready"], shelf["building"], shelf["serving"]) == (["base", "v1"], [], "v1")
    assert shelf["indexes"] == {"parity": "keyword"}
    assert [(one["name"], one["version"], one["state"], one["points"]) for one in shelf["vectors"]] == [
        ("base", 0, "ready", 24),
        ("v1", 1, "ready", 24),
    ]
    assert [one["name"] for one in way.client.get("/v1/collections")["data"]] == ["shelf"]


@pytest.mark.parametrize("version", [None, 0, 1])
def test_hits_are_those_of_a_ranking_by_hand(way: Way, version: int | None) -> None:
    vectors = way.base if version == 0 else way.by_hand
    queries = ["do you know the guitar", "kettle?", "who lost a ring"]
    similarities = vectors(queries) @ vectors(ANSWERS, "document").T

    for query, row in zip(queries, similarities, strict=True):
        asked = {"query": query, "limit": 7} | ({} if version is None else {"version": version})
        answer = way.client.post("/v1/collections/shelf/search", asked)

        best = np.argsort(-row)[:7]
        assert [hit["document_id"] for hit in answer["data"]] == [f"doc-{n}" for n in best]
        assert np.abs(np.asarray([hit["score"] for hit in answer["data"]]) - row[best]).max() < 1e-5
        assert [hit["text"] for hit in answer["data"]] == [ANSWERS[n] for n in best]
        assert [hit["metadata"]["n"] for hit in answer["data"]] == best.tolist()
        expected = ("m@0", "base") if version == 0 else ("m@1", "v1")
        assert (answer["version"], answer["vector_name"], answer["path"]) == (*expected, "indexed")


def test_a_filter_keeps_only_what_it_matches(way: Way) -> None:
    row = (way.by_hand(["needle"]) @ way.by_hand(ANSWERS, "document").T)[0]
    odd = {"must": [{"key": "metadata.parity", "match": {"value": "odd"}}]}

    hits = way.client.post("/v1/collections/shelf/search", {"query": "needle", "limit": 5, "filter": odd})["data"]

    assert [hit["metadata"]["n"] for hit in hits] == [n for n in np.argsort(-row).tolist() if n % 2][:5]


def test_the_vector_of_the_embeddings_endpoint_finds_the_same_as_the_text(way: Way) -> None:
    vector = way.vectors("do you know the harbor", collection="shelf")[0].tolist()

    by_vector = way.client.post("/v1/collections/shelf/search", {"vector": vector, "limit": 24})
    by_text = way.client.post("/v1/collections/shelf/search", {"query": "do you know the harbor", "limit": 24})

    assert [hit["document_id"] for hit in by_vector["data"]] == [hit["document_id"] for hit in by_text["data"]]
    assert np.allclose([hit["score"] for hit in by_vector["data"]], [hit["score"] for hit in by_text["data"]], atol=1e-6)
    longer = way.client.post("/v1/collections/shelf/search", {"vector": [3 * one for one in vector], "limit": 24})
    assert np.allclose([hit["score"] for hit in longer["data"]], [hit["score"] for hit in by_text["data"]], atol=1e-6)


# --- OpenAI's own client ------------------------------------------------------------------------------------------------------


@pytest.fixture
def openai_client(way: Way) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{way.client.http.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openais_client_gets_the_same_vectors(way: Way, openai_client: openai.OpenAI) -> None:
    answer = openai_client.embeddings.create(model="m@1", input=TEXTS)

    assert np.abs(np.asarray([one.embedding for one in answer.data]) - way.by_hand(TEXTS)).max() < 1e-5
    assert answer.model == "m@1"
    documents = openai_client.embeddings.create(
        model="m", input=TEXTS, encoding_format="float", user="someone", extra_body={"input_type": "document"}
    )
    assert np.abs(np.asarray([one.embedding for one in documents.data]) - way.by_hand(TEXTS, "document")).max() < 1e-5


def test_openais_client_lists_models_and_looks_at_one(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["m", "all-MiniLM-L6-v2", NAME]
    assert openai_client.models.retrieve("m").owned_by == "default"
    assert openai_client.models.retrieve("m@1").id == "m@1"


def test_openais_client_shows_our_message_for_a_wrong_model(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model or encoder 'faq'") as caught:
        openai_client.embeddings.create(model="faq", input="a")

    assert (caught.value.code, caught.value.param, caught.value.type) == ("model_not_found", "model", "not_found_error")
    assert caught.value.request_id is not None
