"""A request for every endpoint of the API's own document, in numbers, and what is left out and why.

What a request uses up (a job to cancel, a dataset to delete) is put into the database before the measuring begins.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import insert, select

from benchmarks.api_data import dataset_row, manifest
from benchmarks.api_load import Request
from benchmarks.api_service import SEARCHED, World
from service.db import now
from service.ids import new_id
from service.resources import DEFAULT_PROJECT
from service.tables import Dataset, Job, Model, Promotion, Version

Endpoint = tuple[str, str]  # method, path
Maker = Callable[[World, int], list[Request]]

EXCLUDED: Final[Mapping[Endpoint, str]] = {
    ("POST", "/v1/embeddings"): "encodes texts: benchmarks of its own",
    ("GET", "/v1/embeddings"): "encodes texts: benchmarks of its own",
    ("POST", "/v1/datasets"): "an upload: benchmarks.publish_at_size",
    ("POST", "/v1/collections/{name}/compare"): "many searches by text with two versions; takes seconds and says so",
}
"""And searches by text, and event streams: their endpoints are measured with a vector, and as a page."""


def plan(document: Mapping[str, Any]) -> list[Endpoint]:
    """What to measure of an OpenAPI document, those that only read first.

    Raises RuntimeError for an operation that has neither requests nor a reason, and for one that is not in the document.
    """
    there = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    known = set(MAKERS) | set(EXCLUDED)
    if there != known:
        raise RuntimeError(f"without requests: {sorted(there - known)}; not in the document: {sorted(known - there)}")
    return list(MAKERS)


def _same(path: str, rows: int | None = None) -> Maker:
    return lambda _, count: [Request("GET", path, rows=rows)] * count


def _pages(path: str, ids: Callable[[World], list[str]], filters: tuple[str, ...]) -> Maker:
    """Pages of 20 and of 100, from the beginning and from anywhere, and with each filter."""

    def make(world: World, count: int) -> list[Request]:
        def options() -> Iterator[tuple[str, int | None]]:
            there = sorted(ids(world), reverse=True)
            while True:
                place = world.rng.randrange(len(there) - 1)
                left = len(there) - place - 1
                yield "", min(20, len(there))
                yield "limit=100", min(100, len(there))
                yield f"after={there[place]}", min(20, left)
                yield f"limit=100&after={there[place]}", min(100, left)
                yield from ((f"limit=100&{one}", None) for one in filters)

        return [Request("GET", f"{path}?{query}", rows=rows) for query, rows in _some(options(), count)]

    return make


def _each(path: Callable[[World], str], *, method: str = "GET") -> Maker:
    return lambda world, count: [Request(method, path(world)) for _ in range(count)]


def _some(values: Iterator[Any], count: int) -> list[Any]:
    return [next(values) for _ in range(count)]


def _any_version(world: World) -> tuple[str, int]:
    """Of one model or another: every second time of the one with the most."""
    names = list(world.filled.versions)
    name = names[0] if world.rng.random() < 0.5 else world.rng.choice(names)
    return name, world.rng.choice(world.filled.versions[name])


def _ref(world: World) -> str:
    name, number = _any_version(world)
    return world.rng.choice([name, f"{name}@{number}"])


def _collection(world: World) -> str:
    return world.rng.choice(list(world.filled.collections))


def _searches(world: World, count: int) -> list[Request]:
    """By a vector: for 10 hits, for 100, and with a filter that three documents pass."""
    names = [*world.filled.collections][:SEARCHED]
    where = {"must": [{"key": "document_id", "match": {"any": ["d1", "d2", "d3"]}}]}
    kinds: list[tuple[dict[str, Any], int]] = [({}, 10), ({"limit": 100}, 100), ({"filter": where}, 3)]

    def one(more: dict[str, Any], rows: int) -> Request:
        vector = [world.rng.gauss(0, 1) for _ in range(384)]
        return Request("POST", f"/v1/collections/{world.rng.choice(names)}/search", {"vector": vector, **more}, rows=rows)

    return [one(*kinds[turn % len(kinds)]) for turn in range(count)]


def _submits(world: World, count: int) -> list[Request]:
    def body(turn: int) -> dict[str, Any]:
        collection = _collection(world)
        model = world.filled.collections[collection][1]
        given = {"model": model, "dataset": world.rng.choice(world.filled.datasets)}
        documents = world.rng.choice(world.filled.documents)
        return given | ({"publish": {"collection": collection, "documents": documents}} if turn % 2 else {})

    return [Request("POST", "/v1/jobs", body(turn), status=202) for turn in range(count)]


def _cancels(world: World, count: int) -> list[Request]:
    jobs = [_waiting_job() for _ in range(count)]
    with world.database.write() as session:
        session.execute(insert(Job), jobs)
    return [Request("POST", f"/v1/jobs/{job['id']}/cancel") for job in jobs]


def _waiting_job(**columns: Any) -> dict[str, Any]:
    made = {"project_id": DEFAULT_PROJECT, "kind": "train", "request": {"publish": None}, "created_at": now(), "woken_at": now()}
    return {"id": new_id("job"), **made, **columns}


def _dataset_deletions(world: World, count: int) -> list[Request]:
    """Every second dataset was used, so it is only hidden; the others go with their files."""
    rows = [dataset_row(turn, count, random.Random(turn), name=None, kind="pairs") for turn in range(count)]
    for row in rows:
        row["id"] = new_id("ds")
        row["artifact_key"] = f"datasets/{row['id']}.jsonl"
        with world.artifacts.scratch() as scratch:
            (scratch / "rows.jsonl").write_bytes(b"{}\n" * 1000)
            world.artifacts.store(row["artifact_key"], scratch / "rows.jsonl")
    with world.database.write() as session:
        session.execute(insert(Dataset), rows)
        session.execute(insert(Job), [_waiting_job(dataset_id=row["id"], state="succeeded") for row in rows[::2]])
    return [Request("DELETE", f"/v1/datasets/{row['id']}") for row in rows]


def _model_deletions(world: World, count: int) -> list[Request]:
    """A model with two versions, then one version of another model with a history, and so on."""
    models = [_spare_model(world, f"spare-{turn}-{new_id('req')[-8:]}") for turn in range(count)]
    versions = [version for model in models for version in _spare_versions(world, model)]
    with world.database.write() as session:
        session.execute(insert(Model), models)
        session.execute(insert(Promotion), [row for model in models for row in _spare_history(model)])
        session.execute(insert(Job), [_waiting_job(id=row["job_id"], state="succeeded") for row in versions if row["job_id"]])
        session.execute(insert(Version), versions)
    return [Request("DELETE", f"/v1/models/{model['name']}{'@1' if turn % 2 else ''}") for turn, model in enumerate(models)]


def _spare_model(world: World, name: str) -> dict[str, Any]:
    row = {"id": new_id("mdl"), "project_id": DEFAULT_PROJECT, "name": name, "encoder_id": world.encoder_id}
    return {**row, "live_version": 0, "last_version": 2, "promotion_id": new_id("prm"), "created_at": now()}


def _spare_history(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Versions 2 and 0, in turn; the last is in force."""
    ids = [*(new_id("prm") for _ in range(40)), model["promotion_id"]]
    facts = {"model_id": model["id"], "action": "promote", "forced": False, "created_at": now()}
    return [
        {"id": id_, "previous_id": before, "from_version": 0, "to_version": 0 if turn % 2 == 0 else 2, **facts}
        for turn, (id_, before) in enumerate(zip(ids, [None, *ids], strict=False))
    ]


def _spare_versions(world: World, model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for number in range(3):
        job_id = new_id("job") if number else None
        key = f"heads/{job_id}/1" if number else None
        if number == 1:
            world.artifacts.write(str(key), {"head.safetensors": b"\0" * 300_000, "manifest.json": b"{}"})
        row = {"id": new_id("ver"), "model_id": model["id"], "number": number, "job_id": job_id, "artifact_key": key}
        facts = manifest(world.rng, model["name"], number) if number else {}
        yield {**row, "strength": 1.0, "manifest": facts, "scores": {}, "created_at": now()}


def _promotions(world: World, count: int) -> list[Request]:
    chosen = (_any_version(world) for _ in range(count))
    return [Request("POST", f"/v1/models/{name}/promote", {"version": number, "force": True}) for name, number in chosen]


def _roll_backs(world: World, count: int) -> list[Request]:
    """Of models that have been promoted often enough."""
    with world.database.read() as session:
        left = Counter(session.scalars(select(Model.name).join(Promotion).where(Promotion.action == "promote")))
    names = [name for name in world.filled.versions for _ in range(left[name])]
    return [Request("POST", f"/v1/models/{name}/rollback") for name in world.rng.sample(names, count)]


def _new_collections(world: World, count: int) -> list[Request]:
    names = [f"new-{turn}-{new_id('req')[-8:]}" for turn in range(count)]
    models = list(world.filled.versions)
    made = [
        Request("POST", "/v1/collections", {"name": name, "model": world.rng.choice(models), "indexes": {"lang": "keyword"}}, 201)
        for name in names
    ]
    world.new_collections.extend(names)
    return made


def _collection_deletions(world: World, count: int) -> list[Request]:
    """Those that were made before."""
    return [Request("DELETE", f"/v1/collections/{world.new_collections.pop()}") for _ in range(count)]


def _writes(world: World, count: int) -> list[Request]:
    """Twenty rows in the request, or a dataset."""

    def body(turn: int) -> dict[str, Any]:
        if turn % 2:
            return {"dataset": world.rng.choice(world.filled.documents)}
        mark = new_id("req")
        return {"rows": [{"id": f"{mark}-{row}", "text": f"a text of {mark} " * 10, "lang": "en"} for row in range(20)]}

    return [Request("POST", f"/v1/collections/{_collection(world)}/documents", body(turn), 202) for turn in range(count)]


def _document_deletions(world: World, count: int) -> list[Request]:
    body = {"ids": [f"d{number}" for number in range(20)]}
    return [Request("DELETE", f"/v1/collections/{_collection(world)}/documents", body, 202) for _ in range(count)]


MAKERS: Final[Mapping[Endpoint, Maker]] = {
    ("GET", "/livez"): _same("/livez"),
    ("GET", "/readyz"): _same("/readyz"),
    ("GET", "/metrics"): _same("/metrics"),
    ("GET", "/v1/datasets"): _pages("/v1/datasets", lambda world: world.filled.dataset_ids, ()),
    ("GET", "/v1/datasets/{dataset}"): _each(lambda world: f"/v1/datasets/{world.rng.choice(world.filled.datasets)}"),
    ("GET", "/v1/encoders"): _same("/v1/encoders", 1),
    ("GET", "/v1/jobs"): _pages(
        "/v1/jobs", lambda world: world.filled.jobs, ("state=failed", "kind=rehead", "state=running&kind=train")
    ),
    ("GET", "/v1/jobs/{job_id}"): _each(lambda world: f"/v1/jobs/{world.rng.choice(world.filled.jobs)}"),
    ("GET", "/v1/jobs/{job_id}/events"): _each(lambda world: f"/v1/jobs/{world.rng.choice(world.filled.jobs)}/events"),
    ("GET", "/v1/models"): lambda world, count: [Request("GET", "/v1/models", rows=len(world.filled.versions) + 1)] * count,
    ("GET", "/v1/models/{ref}"): _each(lambda world: f"/v1/models/{_ref(world)}"),
    ("GET", "/v1/models/{name}/versions/{number}"): _each(lambda world: "/v1/models/{}/versions/{}".format(*_any_version(world))),
    ("GET", "/v1/models/{name}/promotions"): _each(lambda world: f"/v1/models/{_any_version(world)[0]}/promotions"),
    ("GET", "/v1/collections"): lambda world, count: (
        [Request("GET", "/v1/collections", rows=len(world.filled.collections))] * count
    ),
    ("GET", "/v1/collections/{name}"): _each(lambda world: f"/v1/collections/{_collection(world)}"),
    ("POST", "/v1/collections/{name}/search"): _searches,
    ("POST", "/v1/jobs"): _submits,
    ("POST", "/v1/jobs/{job_id}/cancel"): _cancels,
    ("POST", "/v1/models/{name}/promote"): _promotions,
    ("POST", "/v1/models/{name}/rollback"): _roll_backs,
    ("POST", "/v1/collections/{name}/documents"): _writes,
    ("DELETE", "/v1/collections/{name}/documents"): _document_deletions,
    ("POST", "/v1/collections"): _new_collections,
    ("DELETE", "/v1/collections/{name}"): _collection_deletions,
    ("DELETE", "/v1/datasets/{dataset}"): _dataset_deletions,
    ("DELETE", "/v1/models/{ref}"): _model_deletions,
}
