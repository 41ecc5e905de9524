"""What a version would change, told before it is promoted."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select

from service.tables import Job, Model, Version
from tests.service.instant.conftest import QUERIES, SHAPES, TEXTS, Service, drawn_head
from zerogate.folded import ServedHead

Base = dict[str, NDArray[np.float32]]


def vectors_by_hand(head: ServedHead | None, base: Base, texts: list[str]) -> NDArray[np.float64]:
    rows = np.stack([base[text] for text in texts])
    return (rows if head is None else head.vectors(rows)).astype(np.float64)


def top_ten(head: ServedHead | None, base: Base, query: str) -> list[str]:
    scores = vectors_by_hand(head, base, TEXTS) @ vectors_by_hand(head, base, [query])[0]
    return [f"d{n}" for n in np.argsort(-scores)[:10]]


@pytest.mark.parametrize(("name", "against"), [("plain", None), ("bias", None), ("concat", 0), ("bias", 1)])
def test_overlaps_and_cosines_are_those_computed_by_hand(
    service: Service, shelf: str, base: Base, name: str, against: int | None
) -> None:
    old = drawn_head("plain", seed=20) if against == 1 else None
    new = drawn_head(name, seed=21)
    service.register(shelf, drawn_head("plain", seed=20), SHAPES["plain"])
    service.register(shelf, new, SHAPES[name])
    body = {"version": 2, "queries": QUERIES} | ({} if against is None else {"against": against})

    found = service.post(f"/v1/collections/{shelf}/compare", body)

    assert (found["collection"], found["version"], found["against"]) == (shelf, f"{shelf}@2", f"{shelf}@{against or 0}")
    before = {query: top_ten(old, base, query) for query in QUERIES}
    after = {query: top_ten(new, base, query) for query in QUERIES}
    overlaps = {query: len({*before[query]} & {*after[query]}) / 10 for query in QUERIES}
    queries = found["queries"]
    assert (queries["source"], queries["compared"]) == ("given", len(QUERIES))
    assert queries["overlap_at_10"] == pytest.approx(np.mean(list(overlaps.values())))
    assert queries["unchanged"] == list(overlaps.values()).count(1.0) / len(QUERIES)
    changed = [query for query in QUERIES if overlaps[query] < 1.0]
    assert {one["query"] for one in queries["most_changed"]} == {*changed}
    assert [one["overlap"] for one in queries["most_changed"]] == sorted(overlaps[query] for query in changed)
    for one in queries["most_changed"]:
        was, will = before[one["query"]], after[one["query"]]
        assert [hit["document_id"] for hit in one["came"]] == [key for key in will if key not in was]
        assert [hit["document_id"] for hit in one["went"]] == [key for key in was if key not in will]

    mine, theirs = vectors_by_hand(new, base, TEXTS), vectors_by_hand(old, base, TEXTS)
    cosines = (mine[:, : theirs.shape[1]] * theirs).sum(axis=1)
    documents = found["documents"]
    assert documents["compared"] == len(TEXTS)
    for at, value in documents["cosine_percentiles"].items():
        assert value == pytest.approx(np.percentile(cosines, int(at)), abs=1e-5)
    least = np.argsort(cosines)[:10]
    assert [one["document_id"] for one in documents["most_moved"]] == [f"d{n}" for n in least]
    assert [one["cosine"] for one in documents["most_moved"]] == pytest.approx(cosines[least].tolist(), abs=1e-5)
    assert [one["text"] for one in documents["most_moved"]] == [TEXTS[n] for n in least]


def test_a_version_changes_nothing_against_itself(service: Service, shelf: str) -> None:
    service.register(shelf, drawn_head("bias", seed=22), SHAPES["bias"])

    found = service.post(f"/v1/collections/{shelf}/compare", {"version": 1, "against": 1, "sample": 7})

    queries = found["queries"]
    assert (queries["source"], queries["compared"]) == ("documents", 7)  # its training had no dataset
    assert (queries["overlap_at_10"], queries["unchanged"], queries["most_changed"]) == (1.0, 1.0, [])
    assert found["documents"]["cosine_percentiles"]["1"] == pytest.approx(1.0, abs=1e-6)


def test_it_is_told_before_the_promotion_and_promotes_nothing(service: Service, shelf: str) -> None:
    service.register(shelf, drawn_head("plain", seed=23), SHAPES["plain"])
    jobs = len(service.get("/v1/jobs", limit=100)["data"])

    told = [service.post(f"/v1/collections/{shelf}/compare", {"version": 1, "queries": QUERIES}) for _ in range(2)]

    assert told[0] == told[1]
    assert service.get(f"/v1/models/{shelf}")["live_version"] == 0
    assert service.get(f"/v1/collections/{shelf}")["ready"] == ["base"]
    assert len(service.get("/v1/jobs", limit=100)["data"]) == jobs


def test_queries_come_from_the_dataset_that_trained_the_version_until_its_owner_deletes_it(service: Service, shelf: str) -> None:
    rows = [{"anchor": f"{shelf} asks {n}", "positive": TEXTS[n]} for n in range(30)]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    headers = {"content-type": "application/x-ndjson"}
    answer = service.http.post("/v1/datasets", params={"kind": "pairs"}, content=body, headers=headers)
    dataset = answer.json()["id"]
    service.register(shelf, drawn_head("plain", seed=24), SHAPES["plain"])
    with service.resources.database.write() as session:
        version = session.scalars(select(Version).join(Model).where(Model.name == shelf, Version.number == 1)).one()
        session.get_one(Job, version.job_id).dataset_id = dataset

    found = service.post(f"/v1/collections/{shelf}/compare", {"version": 1, "sample": 12})["queries"]

    assert (found["source"], found["compared"]) == ("dataset", 12)
    assert {one["query"] for one in found["most_changed"]} <= {row["anchor"] for row in rows}
    service.http.delete(f"/v1/datasets/{dataset}")
    assert service.post(f"/v1/collections/{shelf}/compare", {"version": 1, "sample": 3})["queries"]["source"] == "documents"


def test_what_cannot_be_compared_is_refused_with_the_reason(service: Service, shelf: str) -> None:
    service.register(shelf, drawn_head("stacked", seed=25), SHAPES["stacked"])
    service.post("/v1/collections", {"name": f"empty-{shelf}", "model": shelf})

    refused = {
        name: service.http.post(f"/v1/collections/{where}/compare", json=body)
        for name, where, body in (
            ("stacked", shelf, {"version": 1}),
            ("unknown", shelf, {"version": 9}),
            ("blank", shelf, {"version": 0, "queries": [" "]}),
            ("empty", f"empty-{shelf}", {"version": 0}),
            ("nowhere", "nowhere", {"version": 0}),
        )
    }

    told = {name: (answer.status_code, answer.json()["error"]["code"]) for name, answer in refused.items()}
    assert told == {
        "stacked": (409, "version_not_ready"),
        "unknown": (400, "version_not_found"),
        "blank": (400, "invalid_request"),
        "empty": (409, "collection_empty"),
        "nowhere": (404, "collection_not_found"),
    }
