"""Promote, roll back, and what a collection serves meanwhile, looked at from both sides: over HTTP and in the vector engine."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sqlalchemy import select

from cli.embedded import embedded_service
from service.db import now
from service.ids import new_id
from service.jobs.lifecycle import LEASE
from service.models.operations import add_version, get_or_create_model
from service.resources import DEFAULT_PROJECT, Resources
from service.settings import Settings
from service.tables import Collection, CollectionVector, EncoderRow, Job, Model, Version
from tests.conftest import SMALL_GUARD
from zerogate import Encoder
from zerogate.folded import Block, FoldedHead
from zerogate.head_files import dump_head
from zerogate.head_shapes import HeadShape
from zerogate.verdict import judge_values

CUES = ["anchor", "basket", "copper", "drum", "eagle", "flour", "glove", "hammer", "ivory", "jungle", "kite", "lemon"]
ANSWERS = [f"{who} {what}" for who in ("the clerk", "a sailor", "my cousin") for what in ("hums", "waits", "left", "knits")]
# Cue and answer have nothing to do with each other: only a head that has learned them finds the answer.
LEARNABLE = [
    {"anchor": wording.format(cue), "positive": answer, "split": split}
    for wording, split in (("the {}", "train"), ("a {}, please", "train"), ("my {}", "test"))
    for cue, answer in zip(CUES, ANSWERS, strict=True)
]
# Here the encoder finds everything already, so no head can be better.
PERFECT = [{"anchor": f"{cue} and nothing else", "positive": f"{cue} and nothing else"} for cue in CUES] + [
    {"anchor": f"{answer} today", "positive": f"{answer} today"} for answer in ANSWERS
]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Service:
    """A whole service in this process; its resources are at hand."""

    http: httpx.Client
    resources: Resources

    def get(self, path: str, **params: Any) -> Any:
        return self.asked("GET", path, params=params)

    def post(self, path: str, body: Any = None) -> Any:
        return self.asked("POST", path, json=body or {})

    def asked(self, method: str, path: str, **how: Any) -> Any:
        answer = self.http.request(method, path, **how)
        assert answer.is_success, answer.text
        return answer.json()

    def upload(self, rows: list[dict[str, Any]], **params: str) -> Any:
        body = "".join(json.dumps(row) + "\n" for row in rows)
        return self.asked("POST", "/v1/datasets", params=params, content=body, headers={"content-type": "application/x-ndjson"})

    def wait(self, job: Any) -> Any:
        for _ in range(1500):
            job = self.get(f"/v1/jobs/{job['id']}")
            if job["state"] not in ("queued", "running"):
                assert job["state"] == "succeeded", job["error"]
                return job
            time.sleep(0.02)
        raise AssertionError(f"job {job['id']} does not end: {job['progress']}")

    def settle(self) -> None:
        """Return when nothing is queued or running any more."""
        for state in ("running", "queued", "running"):
            for job in self.get("/v1/jobs", state=state)["data"]:
                self.wait(job)

    def train(self, model: str, *, dataset: str = "learnable", seed: int = 0, promote: str = "always", **fields: Any) -> Any:
        """Train the next version, with a small guard; the rehead jobs that follow are over when this returns."""
        recipe = {"epochs": 15, "batch_size": 32, "seed": seed, "learning_rate": 0.02}
        asked = {"model": model, "dataset": dataset, "recipe": recipe, "promote": promote, "guard": "guard", **fields}
        job = self.wait(self.post("/v1/jobs", asked))
        self.settle()
        return job

    def register(self, model: str, *, seed: int) -> None:
        """A version as a training leaves it, with a head drawn at random."""
        draw = np.random.default_rng(seed)
        weight = (draw.standard_normal((384, 384)) / 384**0.5).astype(np.float32)
        head = Block(gate=draw.uniform(-0.7, 0.7, 384).astype(np.float32), weight=weight, bias=None)
        verdict = judge_values("mrr@10", np.zeros(8), np.zeros(8)).to_dict()
        with self.resources.database.write() as session:
            row = get_or_create_model(session, "default", model, encoder=None, default_encoder="all-MiniLM-L6-v2")
            fingerprint = session.get_one(EncoderRow, row.encoder_id).fingerprint
            folded = FoldedHead.fold([head])
            dumped = dump_head(folded, shape=HeadShape(), strength=1.0, encoder_fingerprint=fingerprint, facts={})
            job = Job(id=new_id("job"), project_id="default", kind="train", state="succeeded", request={}, model_id=row.id)
            job.created_at = job.finished_at = now()
            session.add(job)
            session.flush()
            key = f"heads/{job.id}/1"
            self.resources.artifacts.write(key, dumped.files)
            facts: dict[str, Any] = {"manifest": dumped.manifest, "scores": {"base": {}, "tuned": {}}, "verdict": verdict}
            add_version(session, row.id, job_id=job.id, artifact_key=key, strength=1.0, **facts)

    def promote(self, model: str, version: int) -> Any:
        answer = self.post(f"/v1/models/{model}/promote", {"version": version, "force": True})
        self.settle()
        return answer

    def roll_back(self, model: str) -> Any:
        answer = self.post(f"/v1/models/{model}/rollback")
        self.settle()
        return answer

    def write(self, collection: str, rows: list[dict[str, Any]]) -> Any:
        return self.wait(self.post(f"/v1/collections/{collection}/documents", {"rows": rows}))

    def search(self, collection: str, query: str, **fields: Any) -> Any:
        return self.post(f"/v1/collections/{collection}/search", {"query": query, **fields})

    def found(self, collection: str, query: str, **fields: Any) -> list[str]:
        return [hit["document_id"] for hit in self.search(collection, query, **fields)["data"]]

    # what the vector engine holds

    def having(self, collection: str) -> dict[str, int]:
        """How many points have each named vector of the collection."""
        physical = f"default_{collection}"
        engine = self.resources.vectors
        return {name: engine.count(physical, having=name) for name in sorted(engine.vector_names(physical))}

    def points(self, collection: str) -> int:
        return self.resources.vectors.count(f"default_{collection}")

    def stored(self, collection: str, name: str) -> dict[str, Vectors]:
        """The stored vectors of a name, by point id."""
        pages = self.resources.vectors.scroll(f"default_{collection}", name)
        return {key: row for page in pages for key, row in zip(page.ids, page.matrix, strict=True)}

    def head_by_hand(self, model: str, version: int, base: Vectors) -> NDArray[np.float64]:
        with self.resources.database.read() as session:
            key = session.scalar(select(Version.artifact_key).join(Model).where(Model.name == model, Version.number == version))
        tensors = load_file(self.resources.settings.data_dir / "files" / str(key) / "head.safetensors")
        y = base.astype(np.float64) @ tensors["matrix"].T
        return y / np.linalg.norm(y, axis=1, keepdims=True)

    def set_state(self, collection: str, version: int, state: str) -> None:
        with self.resources.database.write() as session:
            row = session.scalars(
                select(CollectionVector)
                .join(Collection)
                .where(Collection.name == collection, CollectionVector.version == version)
            ).one()
            row.state = state  # type: ignore[assignment]


@pytest.fixture(scope="module")
def service(warm: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("versions"), encoder_dtype="float32")
    warm(settings.data_dir)
    with embedded_service(settings) as embedded, TestClient(embedded.app) as http:
        made = Service(http, embedded.resources)
        made.upload(LEARNABLE, kind="pairs", name="learnable")
        made.upload(PERFECT, kind="pairs", name="perfect")
        made.upload(SMALL_GUARD, kind="scored", name="guard")
        yield made


_numbers = itertools.count()


@pytest.fixture
def model(service: Service) -> str:
    """A model of its own for each test, with two versions that are not live and did not pass the promotion check."""
    name = f"model-{next(_numbers)}"
    for seed in (1, 2):
        service.register(name, seed=seed)
    return name


@pytest.fixture
def shelf(service: Service, model: str) -> str:
    """A collection of that model with a document for each answer."""
    name = f"shelf-{model}"
    service.post("/v1/collections", {"name": name, "model": model, "indexes": {"n": "integer"}})
    service.write(name, [{"id": f"d{n}", "text": text, "n": n} for n, text in enumerate(ANSWERS)])
    return name


def live(service: Service, model: str) -> int:
    found: int = service.get(f"/v1/models/{model}")["live_version"]
    return found


# --- promote and roll back ----------------------------------------------------------------------------------------------------


def test_roll_back_goes_back_one_promotion_at_a_time_until_there_is_none(service: Service, model: str) -> None:
    service.promote(model, 1)
    service.promote(model, 2)
    seen = [live(service, model)]

    for _ in range(2):
        answer = service.roll_back(model)
        seen.append(answer["live_version"])
        assert answer["promotion"]["action"] == "rollback"

    assert seen == [2, 1, 0]
    refused = service.http.post(f"/v1/models/{model}/rollback")
    assert refused.status_code == 409
    assert "nothing to roll back to" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert live(service, model) == 0


def test_roll_back_after_a_new_promotion_returns_to_what_was_live_before_it(service: Service, model: str) -> None:
    service.promote(model, 1)
    service.promote(model, 2)
    service.roll_back(model)  # 1
    service.promote(model, 2)

    assert service.roll_back(model)["live_version"] == 1
    assert service.roll_back(model)["live_version"] == 0


def test_the_history_only_grows(service: Service, model: str) -> None:
    path = f"/v1/models/{model}/promotions"
    told = [service.get(path)["data"]]

    for step in (
        lambda: service.promote(model, 1),
        lambda: service.promote(model, 2),
        lambda: service.roll_back(model),
        lambda: service.promote(model, 0),
    ):
        step()
        told.append(service.get(path)["data"])

    for before, after in itertools.pairwise(told):
        assert after[:-1] == before
    assert [(one["action"], one["from_version"], one["to_version"]) for one in told[-1]] == [
        ("created", None, 0),
        ("promote", 0, 1),
        ("promote", 1, 2),
        ("rollback", 2, 1),
        ("promote", 1, 0),
    ]
    assert [one["forced"] for one in told[-1]] == [False, True, True, False, True]


def test_promoting_what_is_live_changes_nothing(service: Service, model: str) -> None:
    service.promote(model, 1)
    before = service.get(f"/v1/models/{model}/promotions")

    answer = service.promote(model, 1)

    assert answer["live_version"] == 1
    assert service.get(f"/v1/models/{model}/promotions") == before


def test_a_bare_name_means_the_live_version_at_once(service: Service, model: str) -> None:
    def embedded(ref: str) -> Any:
        return service.get("/v1/embeddings", model=ref, input="my drum")

    for version in (1, 2, 0):
        service.promote(model, version)
        assert embedded(model)["version"] == f"{model}@{version}"
        assert embedded(model)["data"] == embedded(f"{model}@{version}")["data"]
    vectors = [embedded(f"{model}@{version}")["data"][0]["embedding"] for version in (0, 1, 2)]
    assert all(np.abs(np.subtract(a, b)).max() > 1e-3 for a, b in ((vectors[0], vectors[1]), (vectors[1], vectors[2])))


# --- the promotion check ------------------------------------------------------------------------------------------------------


def test_a_version_that_is_better_goes_live_by_itself(service: Service) -> None:
    job = service.train("better", promote="if_better", guard=None)  # the built-in guard

    assert job["result"]["verdict"]["outcome"] == "better"
    assert job["result"]["promoted"] is True
    assert live(service, "better") == 1
    assert service.get("/v1/models/better/promotions")["data"][-1]["forced"] is False


def test_a_version_that_is_not_better_is_kept_back_and_the_refusal_gives_the_numbers(service: Service) -> None:
    job = service.train("same", dataset="perfect", promote="if_better", forgetting_budget=0.25)
    verdict = job["result"]["verdict"]
    assert (verdict["outcome"], verdict["difference"], job["result"]["promoted"]) == ("no evidence", 0.0, False)
    assert live(service, "same") == 0

    refused = service.http.post("/v1/models/same/promote", json={"version": 1})

    assert refused.status_code == 409
    assert refused.headers["x-should-retry"] == "false"
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("promotion_check_failed", "version")
    for words in (
        "same@1",
        "mrr@10",
        "+0.0000",
        f"{verdict['queries']} queries",
        "'no evidence'",
        "0.2500 is allowed",
        "force: true",
    ):
        assert words in error["message"]
    assert live(service, "same") == 0
    assert len(service.get("/v1/models/same/promotions")["data"]) == 1


def test_force_promotes_it_anyway_and_the_history_says_so(service: Service) -> None:
    service.train("forced", dataset="perfect", promote="never")

    answer = service.post("/v1/models/forced/promote", {"version": 1, "force": True})

    assert (answer["live_version"], answer["promotion"]["forced"]) == (1, True)


def test_version_0_always_passes_the_check(service: Service, model: str) -> None:
    service.promote(model, 1)

    assert service.post(f"/v1/models/{model}/promote", {"version": 0})["live_version"] == 0


# --- versions in a collection -------------------------------------------------------------------------------------------------


def test_a_document_added_while_version_2_is_live_is_found_after_a_roll_back(service: Service, model: str, shelf: str) -> None:
    service.promote(model, 1)
    service.promote(model, 2)
    service.write(shelf, [{"id": "late", "text": "an unusual zeppelin over the bakery"}])
    assert service.found(shelf, "zeppelin", limit=1) == ["late"]

    for version in (1, 0):
        service.roll_back(model)
        answer = service.search(shelf, "an unusual zeppelin over the bakery", limit=20)
        assert answer["version"] == f"{model}@{version}"
        assert answer["data"][0]["document_id"] == "late"
        assert answer["data"][0]["score"] == pytest.approx(1.0, abs=1e-5)
        assert len(answer["data"]) == 13
    counts = service.having(shelf)
    assert set(counts.values()) == {13}


def test_a_document_with_another_text_keeps_all_names_and_loses_the_old_text(
    service: Service, model: str, shelf: str, encoder: Encoder
) -> None:
    service.promote(model, 1)
    service.promote(model, 2)
    assert service.having(shelf) == {"base": 12, "v1": 12, "v2": 12}
    old = {name: service.stored(shelf, name) for name in ("base", "v1", "v2")}

    job = service.write(shelf, [{"id": "d3", "text": "a completely different matter", "n": 3}])

    assert (job["result"]["written"], job["result"]["skipped"], job["result"]["points"]) == (1, 0, 12)
    assert service.having(shelf) == {"base": 12, "v1": 12, "v2": 12}
    base = encoder.encode(["a completely different matter"], role="document")
    expected = {"base": base, "v1": service.head_by_hand(model, 1, base), "v2": service.head_by_hand(model, 2, base)}
    for name, vectors in expected.items():
        now_stored = service.stored(shelf, name)
        (changed,) = [key for key in now_stored if not np.array_equal(now_stored[key], old[name][key])]
        assert np.abs(now_stored[changed] - vectors[0]).max() < 1e-6
    for version in (0, 1, 2):
        hits = service.search(shelf, "a completely different matter", version=version, limit=20)["data"]
        assert hits[0]["document_id"] == "d3"
        assert ANSWERS[3] not in [hit["text"] for hit in hits]


def test_the_same_documents_again_are_skipped(service: Service, shelf: str) -> None:
    before = service.stored(shelf, "base")

    job = service.write(shelf, [{"id": f"d{n}", "text": text, "n": n} for n, text in enumerate(ANSWERS)])

    assert (job["result"]["documents"], job["result"]["written"], job["result"]["skipped"]) == (12, 0, 12)
    assert job["result"]["encode_seconds"] == 0.0
    after = service.stored(shelf, "base")
    assert all(np.array_equal(after[key], vectors) for key, vectors in before.items())


def test_the_same_text_with_other_metadata_is_written_again(service: Service, shelf: str) -> None:
    job = service.write(shelf, [{"id": "d0", "text": ANSWERS[0], "n": 700}])

    assert job["result"]["written"] == 1
    where = {"must": [{"key": "metadata.n", "range": {"gte": 100}}]}
    assert service.found(shelf, "anything", filter=where) == ["d0"]


def test_vectors_of_a_new_version_are_the_head_of_the_stored_base_vectors(service: Service, model: str, shelf: str) -> None:
    before = service.stored(shelf, "base")

    service.promote(model, 1)
    service.promote(model, 2)

    base = service.stored(shelf, "base")
    assert {key: row.tobytes() for key, row in base.items()} == {key: row.tobytes() for key, row in before.items()}
    keys = list(base)
    for version in (1, 2):
        stored = service.stored(shelf, f"v{version}")
        assert set(stored) == set(keys)
        by_hand = service.head_by_hand(model, version, np.stack([base[key] for key in keys]))
        assert np.abs(np.stack([stored[key] for key in keys]) - by_hand).max() < 1e-6


def test_base_vectors_are_those_of_the_encoder(service: Service, shelf: str, encoder: Encoder) -> None:
    expected = encoder.encode(ANSWERS, role="document")

    hits = service.resources.vectors.search(f"default_{shelf}", "base", expected[0], limit=20)
    stored = service.stored(shelf, "base")

    for hit in hits:
        assert np.abs(stored[hit.id] - expected[hit.payload["metadata"]["n"]]).max() < 1e-6


def test_a_version_that_is_still_building_is_searched_through_base_and_not_served_by_name(
    service: Service, model: str, shelf: str
) -> None:
    service.promote(model, 1)
    service.promote(model, 2)
    wanted = service.search(shelf, "my kite")
    assert (wanted["version"], wanted["vector_name"], wanted["path"]) == (f"{model}@2", "v2", "indexed")

    service.set_state(shelf, 2, "building")

    for named in ({}, {"version": 2}):
        found = service.search(shelf, "my kite", **named)
        assert (found["version"], found["vector_name"], found["path"]) == (f"{model}@2", "base", "instant")
        assert [hit["document_id"] for hit in found["data"]] == [hit["document_id"] for hit in wanted["data"]]
        assert [hit["score"] for hit in found["data"]] == pytest.approx([hit["score"] for hit in wanted["data"]], abs=1e-6)
    told = service.get(f"/v1/collections/{shelf}")
    assert (told["ready"], told["building"], told["serving"], told["version"]) == (["base", "v1"], ["v2"], "v1", f"{model}@1")
    assert told["search"] == {"version": f"{model}@2", "path": "instant"}
    embedded = service.post("/v1/embeddings", {"model": model, "input": "my kite", "collection": shelf})
    assert (embedded["version"], embedded["vector_name"]) == (f"{model}@1", "v1")
    by_vector = service.post(f"/v1/collections/{shelf}/search", {"vector": embedded["data"][0]["embedding"]})
    assert (by_vector["version"], by_vector["vector_name"], by_vector["path"]) == (f"{model}@1", "v1", "indexed")
    asked = {"model": f"{model}@2", "input": "my kite", "collection": shelf}
    assert service.http.post("/v1/embeddings", json=asked).status_code == 400

    service.set_state(shelf, 1, "building")  # then base is the last one that is ready
    assert service.get(f"/v1/collections/{shelf}")["serving"] == "base"
    assert service.search(shelf, "my kite")["version"] == f"{model}@2"


def test_the_next_writer_finishes_a_version_that_was_left_building(service: Service, model: str, shelf: str) -> None:
    service.promote(model, 1)
    service.set_state(shelf, 1, "building")
    some = list(service.stored(shelf, "v1"))[:5]
    physical, engine = f"default_{shelf}", service.resources.vectors
    engine.drop_vector_name(physical, "v1")  # as if its worker had been killed after five points
    engine.add_vector_name(physical, "v1", dim=384)
    base = service.stored(shelf, "base")
    made = service.head_by_hand(model, 1, np.stack([base[key] for key in some]))
    engine.set_vectors(physical, "v1", some, made.astype(np.float32))
    assert service.having(shelf) == {"base": 12, "v1": 5}

    service.write(shelf, [{"id": "one-more", "text": "one more document"}])

    assert service.having(shelf) == {"base": 13, "v1": 13}
    told = service.get(f"/v1/collections/{shelf}")
    assert (told["ready"], told["building"], told["serving"]) == (["base", "v1"], [], "v1")
    base = service.stored(shelf, "base")
    stored = service.stored(shelf, "v1")
    by_hand = service.head_by_hand(model, 1, np.stack(list(base.values())))
    assert np.abs(np.stack([stored[key] for key in base]) - by_hand).max() < 1e-6


def test_old_names_are_dropped_and_base_live_and_the_one_before_are_kept(service: Service, model: str, shelf: str) -> None:
    service.register(model, seed=3)
    seen = []

    for version in (1, 2, 3):
        service.promote(model, version)
        told = service.get(f"/v1/collections/{shelf}")
        assert told["serving"] == f"v{version}"
        assert told["ready"] == sorted(service.having(shelf))
        assert [one["points"] for one in told["vectors"]] == [12] * len(told["ready"])
        seen.append(told["ready"])

    assert seen == [["base", "v1"], ["base", "v1", "v2"], ["base", "v2", "v3"]]
    assert service.having(shelf) == {"base": 12, "v2": 12, "v3": 12}


def test_a_dropped_version_comes_back_when_it_is_rolled_back_to(service: Service, model: str, shelf: str) -> None:
    service.register(model, seed=3)
    for version in (1, 2, 3):
        service.promote(model, version)
    assert "v1" not in service.having(shelf)

    service.roll_back(model)
    service.roll_back(model)

    told = service.get(f"/v1/collections/{shelf}")
    assert (live(service, model), told["serving"]) == (1, "v1")
    assert service.having(shelf)["v1"] == 12
    assert service.found(shelf, ANSWERS[4], limit=1) == ["d4"]


def test_a_version_that_is_never_promoted_has_no_vectors_in_any_collection(service: Service, model: str, shelf: str) -> None:
    assert service.having(shelf) == {"base": 12}
    assert service.get(f"/v1/collections/{shelf}")["serving"] == "base"


def test_a_collection_made_while_a_version_is_live_serves_it_from_the_first_document(service: Service, model: str) -> None:
    service.promote(model, 1)
    name = f"young-{model}"
    made = service.post("/v1/collections", {"name": name, "model": model})

    assert (made["points"], made["ready"], made["serving"]) == (0, ["base", "v1"], "v1")
    assert service.search(name, "anything")["data"] == []
    service.write(name, [{"id": "only", "text": ANSWERS[0]}])
    assert service.having(name) == {"base": 1, "v1": 1}
    assert service.search(name, ANSWERS[0])["version"] == f"{model}@1"


# --- deleting documents -------------------------------------------------------------------------------------------------------


def delete_documents(service: Service, shelf: str, body: dict[str, Any]) -> Any:
    return service.wait(service.asked("DELETE", f"/v1/collections/{shelf}/documents", json=body))


def test_documents_are_deleted_by_their_ids_from_all_names(service: Service, model: str, shelf: str) -> None:
    service.promote(model, 1)

    job = delete_documents(service, shelf, {"ids": ["d1", "d5", "d99"]})

    assert job["result"]["points"] == 10
    assert service.having(shelf) == {"base": 10, "v1": 10}
    assert {"d1", "d5"}.isdisjoint(service.found(shelf, ANSWERS[1], limit=50))
    assert service.get(f"/v1/collections/{shelf}")["vectors"][0]["points"] == 10
    service.write(shelf, [{"id": "d1", "text": ANSWERS[1], "n": 1}])  # and it may come back
    assert service.having(shelf) == {"base": 11, "v1": 11}


def test_documents_are_deleted_by_a_filter(service: Service, shelf: str) -> None:
    delete_documents(service, shelf, {"filter": {"must": [{"key": "metadata.n", "range": {"lt": 4}}]}})

    assert sorted(service.found(shelf, "anything", limit=50)) == sorted(f"d{n}" for n in range(4, 12))


def test_an_empty_filter_deletes_all_documents_and_the_collection_goes_on(service: Service, shelf: str) -> None:
    delete_documents(service, shelf, {"filter": {}})

    assert service.having(shelf) == {"base": 0}
    service.write(shelf, [{"id": "d1", "text": ANSWERS[1]}])
    assert service.found(shelf, "anything") == ["d1"]


# --- deleting versions, models and collections --------------------------------------------------------------------------------


def refusal(service: Service, path: str) -> str:
    answer = service.http.delete(path)
    assert answer.status_code == 409, answer.text
    assert answer.headers["x-should-retry"] == "false"
    message: str = answer.json()["error"]["message"]
    return message


def test_a_version_is_deleted_only_when_nothing_needs_it(service: Service, model: str, shelf: str) -> None:
    heads = service.resources.settings.data_dir / "files" / "heads"
    service.promote(model, 1)

    assert "it is live" in refusal(service, f"/v1/models/{model}@1")
    service.promote(model, 2)
    assert "a roll back may return to it" in refusal(service, f"/v1/models/{model}@1")
    service.roll_back(model)
    assert "a collection holds its vectors" in refusal(service, f"/v1/models/{model}@2")
    assert "the encoder itself" in refusal(service, f"/v1/models/{model}@0")

    service.write(shelf, [{"id": "next", "text": "the next writer drops what is no longer kept"}])
    job = service.get(f"/v1/models/{model}@2")["job"]
    assert list((heads / job).rglob("*.safetensors"))
    answer = service.asked("DELETE", f"/v1/models/{model}@2")
    assert answer == {"id": f"{model}@2", "object": "model.version", "deleted": True}
    assert not list((heads / job).rglob("*.safetensors"))
    assert service.get(f"/v1/models/{model}")["versions"] == [0, 1]
    assert service.http.get("/v1/embeddings", params={"model": f"{model}@2", "input": "a"}).status_code == 404
    assert service.http.get(f"/v1/models/{model}/versions/2").status_code == 404


def test_the_number_of_a_deleted_version_is_never_given_again(service: Service, model: str) -> None:
    service.asked("DELETE", f"/v1/models/{model}@2")

    job = service.train(model, seed=7, promote="never")

    assert job["result"]["version"] == f"{model}@3"
    assert service.get(f"/v1/models/{model}")["versions"] == [0, 1, 3]


def test_a_model_is_deleted_with_everything_when_no_collection_is_bound_to_it(service: Service, model: str, shelf: str) -> None:
    assert f"bound to the collections {shelf}" in refusal(service, f"/v1/models/{model}")
    assert service.asked("DELETE", f"/v1/collections/{shelf}") == {"id": shelf, "object": "collection", "deleted": True}
    jobs = [service.get(f"/v1/models/{model}@{version}")["job"] for version in (1, 2)]

    service.asked("DELETE", f"/v1/models/{model}")

    assert service.http.get(f"/v1/models/{model}").status_code == 404
    assert service.http.get(f"/v1/models/{model}/promotions").status_code == 404
    heads = service.resources.settings.data_dir / "files" / "heads"
    assert [file for job in jobs for file in (heads / job).rglob("*") if file.is_file()] == []
    assert [service.get(f"/v1/jobs/{job}")["model"] for job in jobs] == [None, None]
    service.train(model, promote="never")  # the name is free again, and the numbers begin anew
    assert service.get(f"/v1/models/{model}")["versions"] == [0, 1]


def test_a_model_with_unfinished_jobs_is_not_deleted(service: Service, model: str) -> None:
    with service.resources.database.write() as session:
        row = session.scalars(select(Model).filter_by(name=model)).one()
        session.add(Job(id=f"job_{model}", project_id="default", kind="train", request={}, model_id=row.id, created_at=now()))

    assert "1 unfinished jobs" in refusal(service, f"/v1/models/{model}")

    service.post(f"/v1/jobs/job_{model}/cancel")
    service.asked("DELETE", f"/v1/models/{model}")


def test_a_deleted_collection_takes_its_points_with_it_and_its_name_is_free(service: Service, model: str, shelf: str) -> None:
    folder = service.resources.settings.data_dir / "vectors" / f"default_{shelf}"
    assert folder.is_dir()

    service.asked("DELETE", f"/v1/collections/{shelf}")

    assert not folder.exists()
    assert service.http.post(f"/v1/collections/{shelf}/search", json={"query": "a"}).status_code == 404
    assert service.http.delete(f"/v1/collections/{shelf}").status_code == 404
    made = service.post("/v1/collections", {"name": shelf, "model": model})
    assert made["points"] == 0


def test_a_collection_is_bound_to_its_model_for_good(service: Service, model: str, shelf: str) -> None:
    service.upload([{"id": "x", "text": f"for {shelf}"}], kind="documents", name=f"x-{model}")
    body = {"model": "other", "dataset": "learnable", "publish": {"collection": shelf, "documents": f"x-{model}"}}

    refused = service.http.post("/v1/jobs", json=body)

    assert refused.status_code == 400
    assert f"bound to model '{model}' for good" in refused.json()["error"]["message"]
    assert service.http.get("/v1/models/other").status_code == 404
    other = {"model": "all-MiniLM-L6-v2", "input": "a", "collection": shelf}
    assert service.http.post("/v1/embeddings", json=other).status_code == 400


def test_a_collection_deleted_during_the_training_costs_the_publish_and_not_the_version(service: Service, model: str) -> None:
    name = f"gone-{model}"
    service.upload([{"id": "x", "text": f"for {name}"}], kind="documents", name=f"x-{model}")
    job = service.post(
        "/v1/jobs",
        {
            "model": model,
            "dataset": "learnable",
            "guard": "guard",
            "recipe": {"epochs": 200},
            "promote": "never",
            "publish": {"collection": name, "documents": f"x-{model}"},
        },
    )

    service.asked("DELETE", f"/v1/collections/{name}")

    ended = service.wait(job)
    assert ended["result"]["version"] == f"{model}@3"
    assert ended["publish_job_id"] is None
    told = service.get(f"/v1/jobs/{job['id']}/events", limit=100)["data"]
    assert [one["message"] for one in told if one["level"] == "warn"] == ["not published: the collection was deleted meanwhile"]


# --- writers ------------------------------------------------------------------------------------------------------------------


def test_a_writer_waits_for_the_one_before_and_goes_on_when_its_job_is_over(service: Service, shelf: str) -> None:
    database = service.resources.database
    other = Job(
        id=new_id("job"), project_id=DEFAULT_PROJECT, kind="publish", state="running", token=1, request={}, created_at=now()
    )
    other.lease_expires_at = now() + timedelta(minutes=5)
    with database.write() as session:
        session.add(other)
        session.flush()
        session.scalars(select(Collection).filter_by(name=shelf)).one().writer = f"{other.id}:1"
    job = service.post(f"/v1/collections/{shelf}/documents", {"rows": [{"id": "patient", "text": "patience"}]})
    for _ in range(500):
        waiting = service.get(f"/v1/jobs/{job['id']}")
        if waiting["progress"] is not None:
            break
        time.sleep(0.01)
    assert waiting["progress"]["stage"] == "wait for the collection's writer"
    assert service.points(shelf) == 12

    with database.write() as session:  # it was given up; whoever still ran it has noticed long ago
        row = session.get_one(Job, other.id)
        row.state, row.finished_at = "failed", now() - LEASE - timedelta(seconds=1)

    assert service.wait(job)["result"]["points"] == 13


def test_datasets_are_named_by_id_or_by_name_everywhere(service: Service, model: str, shelf: str) -> None:
    named = service.upload([{"id": "n1", "text": "by its name"}], kind="documents", name=f"named-{model}")
    nameless = service.upload([{"id": "n2", "text": "by its id"}], kind="documents")

    for ref in (named["name"], nameless["id"]):
        service.wait(service.post(f"/v1/collections/{shelf}/documents", {"dataset": ref}))

    assert {"n1", "n2"} <= set(service.found(shelf, "by its name", limit=50))
    learnable = service.get("/v1/datasets/learnable")["id"]
    job = service.train(model, dataset=learnable, promote="never")
    assert (job["dataset"], job["result"]["version"]) == (learnable, f"{model}@3")


def test_a_second_training_makes_the_next_version_with_weights_of_its_own(service: Service) -> None:
    assert service.train("again", seed=1)["result"]["version"] == "again@1"
    assert service.train("again", seed=2)["result"]["version"] == "again@2"
    assert service.train("again", seed=1)["result"]["version"] == "again@3"

    first, second, third = (service.get(f"/v1/models/again@{version}") for version in (1, 2, 3))
    assert first["manifest"]["head_sha256"] != second["manifest"]["head_sha256"]
    assert first["manifest"]["training_matrix_sha256"] == second["manifest"]["training_matrix_sha256"]
    assert first["manifest"]["head_sha256"] == third["manifest"]["head_sha256"]  # the same recipe makes the same bytes
    assert (live(service, "again"), first["live"], third["live"]) == (3, False, True)


def test_a_damaged_head_is_not_served(service: Service, model: str) -> None:
    with service.resources.database.read() as session:
        key = session.scalar(select(Version.artifact_key).join(Model).where(Model.name == model, Version.number == 2))
    file: Path = service.resources.settings.data_dir / "files" / str(key) / "head.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))

    answer = service.http.get("/v1/embeddings", params={"model": f"{model}@2", "input": "a"})

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "head_damaged"
    assert service.get("/v1/embeddings", model=f"{model}@1", input="a")["version"] == f"{model}@1"
