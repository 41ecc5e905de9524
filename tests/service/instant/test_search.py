"""A version is searched before its vectors exist: from the moment it is live, by its number, and at any strength."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select

from service.collections.queries import vector_rows
from service.tables import Collection
from tests.service.instant.conftest import QUERIES, SHAPES, TEXTS, Service, drawn_head
from zerogate.folded import ServedHead


def ranking(head: ServedHead | None, base: dict[str, NDArray[np.float32]], query: str) -> tuple[list[str], NDArray[np.float64]]:
    """All documents by the definition, best first, and their scores: what the full index of the version would give."""
    rows = np.stack([base[query], *(base[text] for text in TEXTS)])
    vectors = (rows if head is None else head.vectors(rows)).astype(np.float64)
    scores = vectors[1:] @ vectors[0]
    order = np.argsort(-scores, kind="stable")
    return [f"d{n}" for n in order], scores[order]


def assert_found(answer: Any, head: ServedHead | None, base: dict[str, NDArray[np.float32]], query: str) -> None:
    wanted, scores = ranking(head, base, query)
    count = len(answer["data"])
    assert [hit["document_id"] for hit in answer["data"]] == wanted[:count]
    assert np.abs([hit["score"] for hit in answer["data"]] - scores[:count]).max() < 1e-5
    assert all(hit["text"] == TEXTS[hit["metadata"]["n"]] for hit in answer["data"])


@pytest.mark.parametrize("name", ["plain", "bias", "concat"])
def test_the_live_version_is_searched_at_once_and_with_the_same_result_when_its_vectors_are_there(
    service: Service, shelf: str, base: dict[str, NDArray[np.float32]], name: str
) -> None:
    head = drawn_head(name, seed=1)
    service.register(shelf, head, SHAPES[name])

    with service.no_writer_gets_in(shelf):
        service.post(f"/v1/models/{shelf}/promote", {"version": 1, "force": True})
        early = {query: service.search(shelf, query=query) for query in QUERIES}
        told = service.get(f"/v1/collections/{shelf}")
        queued = [job["kind"] for job in service.get("/v1/jobs")["data"] if job["state"] in ("queued", "running")]
    service.settle()
    late = {query: service.search(shelf, query=query) for query in QUERIES}

    assert "rehead" in queued
    assert (told["serving"], told["search"]) == ("base", {"version": f"{shelf}@1", "path": "instant"})
    assert service.get(f"/v1/collections/{shelf}")["search"] == {"version": f"{shelf}@1", "path": "indexed"}
    for query in QUERIES:
        assert (early[query]["version"], early[query]["vector_name"], early[query]["path"]) == (f"{shelf}@1", "base", "instant")
        assert (late[query]["version"], late[query]["vector_name"], late[query]["path"]) == (f"{shelf}@1", "v1", "indexed")
        assert len(early[query]["data"]) == 10
        assert_found(early[query], head, base, query)
        assert_found(late[query], head, base, query)


def test_a_thread_that_searches_all_the_time_sees_the_new_version_from_the_promotion_on(service: Service, shelf: str) -> None:
    service.register(shelf, drawn_head("bias", seed=2), SHAPES["bias"])
    seen: list[tuple[float, str]] = []
    stop = threading.Event()

    def searching() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            seen.append((began, service.search(shelf, query=QUERIES[0])["version"]))

    thread = threading.Thread(target=searching)
    with service.no_writer_gets_in(shelf):
        thread.start()
        time.sleep(0.1)
        service.post(f"/v1/models/{shelf}/promote", {"version": 1, "force": True})
        promoted = time.perf_counter()
        while not seen or seen[-1][0] < promoted:
            time.sleep(0.01)
        stop.set()
        thread.join()

    assert seen[0][1] == f"{shelf}@0"
    assert {version for began, version in seen if began > promoted} == {f"{shelf}@1"}
    service.settle()


def test_a_version_that_was_never_promoted_is_searched_by_its_number(
    service: Service, shelf: str, base: dict[str, NDArray[np.float32]]
) -> None:
    head = drawn_head("bias", seed=3)
    service.register(shelf, head, SHAPES["bias"])
    few = {"must": [{"key": "metadata.n", "range": {"lt": 7}}]}

    for query in QUERIES:
        answer = service.search(shelf, query=query, version=1, limit=len(TEXTS))
        assert (answer["version"], answer["path"], len(answer["data"])) == (f"{shelf}@1", "instant", len(TEXTS))
        assert_found(answer, head, base, query)
        kept = [hit for hit in answer["data"] if hit["metadata"]["n"] < 7]
        filtered = service.search(shelf, query=query, version=1, limit=5, filter=few)["data"]
        assert [hit["document_id"] for hit in filtered] == [hit["document_id"] for hit in kept[:5]]
    assert service.search(shelf, query="wool")["version"] == f"{shelf}@0"
    assert service.get(f"/v1/collections/{shelf}")["ready"] == ["base"]


def test_a_vector_of_that_version_finds_what_its_text_finds(service: Service, shelf: str) -> None:
    service.register(shelf, drawn_head("concat", seed=4), SHAPES["concat"])
    embedded = service.post("/v1/embeddings", {"model": f"{shelf}@1", "input": "wool"})

    by_vector = service.search(shelf, vector=embedded["data"][0]["embedding"], version=1)

    assert by_vector["path"] == "instant"
    by_text = service.search(shelf, query="wool", version=1)
    assert [hit["document_id"] for hit in by_vector["data"]] == [hit["document_id"] for hit in by_text["data"]]
    # Without the version it would be one of the 384 numbers that the collection serves by name: never compared.
    refused = service.http.post(f"/v1/collections/{shelf}/search", json={"vector": embedded["data"][0]["embedding"]})
    assert "384" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["bias", "concat"])
@pytest.mark.parametrize(("strength", "path"), [(0.0, "indexed"), (0.5, "instant"), (1.0, "indexed"), (1.6, "instant")])
def test_the_dial_turns_a_search(
    service: Service, shelf: str, base: dict[str, NDArray[np.float32]], name: str, strength: float, path: str
) -> None:
    head = drawn_head(name, seed=5)
    service.register(shelf, head, SHAPES[name])
    service.post(f"/v1/models/{shelf}/promote", {"version": 1, "force": True})
    service.settle()

    for query in QUERIES:
        answer = service.search(shelf, query=query, strength=strength)

        assert (answer["version"], answer["strength"], answer["path"]) == (f"{shelf}@1", strength, path)
        assert_found(answer, head.at_strength(strength) if strength else None, base, query)


def test_a_version_that_maps_queries_only_is_always_compared_with_base(
    service: Service, shelf: str, base: dict[str, NDArray[np.float32]]
) -> None:
    head = drawn_head("bias", seed=6)
    service.register(shelf, head, SHAPES["bias"], query_only=True)

    for strength in (1.0, 0.5):
        answer = service.search(shelf, query="wool", version=1, strength=strength)

        assert (answer["vector_name"], answer["path"]) == ("base", "indexed")
        mapped = head.at_strength(strength).vectors(base["wool"][None])[0]
        scores = np.stack([base[text] for text in TEXTS]) @ mapped
        assert [hit["metadata"]["n"] for hit in answer["data"]] == np.argsort(-scores)[:10].tolist()


def test_a_head_that_is_no_matrix_is_searched_when_its_vectors_are_there(
    service: Service, shelf: str, base: dict[str, NDArray[np.float32]]
) -> None:
    head = drawn_head("stacked", seed=7)
    service.register(shelf, head, SHAPES["stacked"])
    where = f"/v1/collections/{shelf}/search"

    for wrong, param in (({"version": 1}, "version"), ({"version": 1, "strength": 0.5}, "strength")):
        refused = service.http.post(where, json={"query": "wool", **wrong})
        assert refused.status_code == 409
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("version_not_ready", param)
        assert "activation" in error["message"]
        assert "ready are 0" in error["message"]

    with service.no_writer_gets_in(shelf):
        service.post(f"/v1/models/{shelf}/promote", {"version": 1, "force": True})
        waiting = service.search(shelf, query="wool")
    service.settle()
    assert (waiting["version"], waiting["path"]) == (f"{shelf}@0", "indexed")
    answer = service.search(shelf, query="wool")
    assert (answer["version"], answer["vector_name"], answer["path"]) == (f"{shelf}@1", "v1", "indexed")
    assert_found(answer, head, base, "wool")


def test_an_unknown_version_is_refused_with_those_that_there_are(service: Service, shelf: str) -> None:
    service.register(shelf, drawn_head("plain", seed=8), SHAPES["plain"])

    refused = service.http.post(f"/v1/collections/{shelf}/search", json={"query": "wool", "version": 7})

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "version"
    assert "it has 0, 1" in refused.json()["error"]["message"]


def test_an_empty_collection_finds_nothing_in_any_version(service: Service, shelf: str) -> None:
    service.register(shelf, drawn_head("plain", seed=9), SHAPES["plain"])
    service.post("/v1/collections", {"name": f"empty-{shelf}", "model": shelf})

    answer = service.search(f"empty-{shelf}", query="wool", version=1)

    assert (answer["data"], answer["version"], answer["path"]) == ([], f"{shelf}@1", "instant")


def test_a_name_that_is_dropped_while_it_is_searched_gives_way_to_base(
    service: Service, shelf: str, base: dict[str, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = drawn_head("bias", seed=10)
    service.register(shelf, head, SHAPES["bias"])
    service.post(f"/v1/models/{shelf}/promote", {"version": 1, "force": True})
    service.settle()
    service.post(f"/v1/models/{shelf}/rollback")
    engine = service.resources.vectors
    plain_search = engine.search

    def dropping(collection: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """As if a writer had dropped the name after it was chosen."""
        if name == "v1":
            with service.resources.database.write() as session:
                row = session.scalars(select(Collection).filter_by(name=shelf)).one()
                session.delete(next(one for one in vector_rows(session, row.id) if one.version == 1))
            engine.drop_vector_name(collection, name)
        return plain_search(collection, name, *args, **kwargs)

    monkeypatch.setattr(engine, "search", dropping)

    answer = service.search(shelf, query="wool", version=1)

    assert (answer["version"], answer["path"]) == (f"{shelf}@1", "instant")
    assert_found(answer, head, base, "wool")
