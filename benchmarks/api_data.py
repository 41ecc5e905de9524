"""A database after years of use: jobs with events and results, versions with manifests of the real size, and the rest."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from service.resources import DEFAULT_PROJECT
from service.tables import Collection, CollectionVector, Dataset, Job, JobEvent, Model, Promotion, Table, Version
from workers.train_report import library_versions
from zerogate.plan import Trial
from zerogate.recipe import Recipe

_BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
_WORDS = (
    "vector",
    "gate",
    "search",
    "password",
    "reset",
    "invoice",
    "shipping",
    "refund",
    "account",
    "answer",
    "question",
    "late",
)
_STATES = {"succeeded": 0.8, "failed": 0.12, "cancelled": 0.07, "queued": 0.005, "running": 0.005}
_KINDS = {"train": 0.6, "publish": 0.35, "rehead": 0.05}


@dataclass(frozen=True)
class Sizes:
    """How many rows there are. The first model has two fifths of the versions."""

    jobs: int = 10_000
    versions: int = 1_000
    models: int = 30
    datasets: int = 200
    collections: int = 50


@dataclass(frozen=True)
class Filled:
    """What there is to ask for. versions: the numbers by model, 0 left out; collections: id and model of each, by name."""

    jobs: list[str]
    dataset_ids: list[str]
    datasets: list[str]
    documents: list[str]
    versions: dict[str, list[int]]
    live: dict[str, int]
    collections: dict[str, tuple[str, str]]


def fill(session: Session, encoder_id: str, sizes: Sizes, rng: random.Random) -> Filled:
    """Put everything into the database; the encoder is there already."""
    datasets = [*_datasets(sizes.datasets, rng)]
    _insert(session, Dataset, datasets)
    models = [*_models(sizes, encoder_id, rng)]
    promotions = [promotion for model in models for promotion in _promotions(model)]
    _insert(session, Model, models)
    _insert(session, Promotion, promotions)
    collections = [*_collections(sizes.collections, models)]
    _insert(session, Collection, collections)
    _insert(session, CollectionVector, [row for collection in collections for row in _vectors(collection, models)])
    jobs = [*_jobs(sizes.jobs, datasets, models, collections, rng)]
    _insert(session, Job, jobs)
    _insert(session, JobEvent, [event for job in jobs for event in _events(job)])
    trained = (job for job in jobs if job["kind"] == "train" and job["state"] == "succeeded")
    _insert(session, Version, [row for model in models for row in _versions(model, trained, rng)])
    names = {model["id"]: model["name"] for model in models}
    return Filled(
        jobs=[job["id"] for job in jobs],
        dataset_ids=[row["id"] for row in datasets],
        datasets=[row["name"] for row in datasets if row["kind"] == "pairs"],
        documents=[row["name"] for row in datasets if row["kind"] == "documents"],
        versions={model["name"]: [*range(1, model["last_version"] + 1)] for model in models},
        live={model["name"]: model["live_version"] for model in models},
        collections={row["name"]: (row["id"], names[row["model_id"]]) for row in collections},
    )


def row_id(prefix: str, number: int, of: int) -> str:
    """An id as `new_id` makes them, of the `number`-th of so many rows that were made one after the other in two years."""
    milliseconds = int(_moment(number, of).timestamp() * 1000)
    return f"{prefix}_{(milliseconds << 80) | (0x7 << 76) | (0x2 << 62) | number:032x}"


def manifest(rng: random.Random, model: str, number: int) -> dict[str, Any]:
    """A version's manifest, of the shape and size that `workers.train_report` gives it: 13 kB."""
    recipes = [Recipe(seed=seed).to_dict() for seed in range(2)]
    return {
        "dim": 384, "out_dim": 384, "model": model, "number": number, "encoder_dtype": "bfloat16", "device": "cuda",
        "torch_threads": 8, "dataset_sha256": _digest(rng), "dataset_kind": "pairs", "evaluation_sha256": None,
        "training_matrix_sha256": _digest(rng), "guard_matrix_sha256": _digest(rng), "examples": 2982, "seed": 0, "mode": "head",
        "recipe": "auto", "forgetting_budget": 0.005, "query_only": False, "way": {"name": "mean of two", "recipes": recipes},
        "curve": [{"strength": step / 10, "score": rng.random(), "forgetting": rng.random() / 100} for step in range(11)],
        "candidates": [{"name": f"way {n}", "score": rng.random(), "strength": rng.random()} for n in range(6)],
        "trials": [_trial(number, rng) for number in range(16)],
        "planned": 16, "finished": 16, "sweep_seconds": 9.1, "fit_seconds": 4.0, "libraries": library_versions(),
        "scores": _scores(rng), "verdict": _verdict(rng), "forgetting": {"score": "spearman", "value": 0.003},
        "drift": {"mean": 0.1, "p95": 0.2},
    }  # fmt: skip


def _trial(number: int, rng: random.Random) -> dict[str, Any]:
    return Trial(number, 0.25, Recipe(seed=number), rng.random(), rng.random() / 100, rng.random(), rng.random()).to_dict()


def _insert(session: Session, table: type[Table], rows: list[dict[str, Any]]) -> None:
    session.execute(insert(table), rows)


def _moment(number: int, of: int) -> datetime:
    return _BEGIN + timedelta(days=700) * (number / of)


def _digest(rng: random.Random) -> str:
    return f"{rng.getrandbits(256):064x}"


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def _scores(rng: random.Random) -> dict[str, Any]:
    names = ("ndcg@10", "mrr@10", "recall@1", "recall@10", "recall@100", "map@100")
    return {side: {name: rng.random() for name in names} for side in ("base", "tuned")}


def _verdict(rng: random.Random) -> dict[str, Any]:
    return {
        "score": "ndcg@10", "difference": 0.1, "low": 0.05, "high": 0.15, "queries": 994, "outcome": "better", "p": rng.random(),
    }  # fmt: skip


def _verdict_with_examples(rng: random.Random) -> dict[str, Any]:
    sides = {
        side: [{"query": _text(rng, 10), "before": rng.random(), "after": rng.random()} for _ in range(10)]
        for side in ("won", "lost")
    }
    return {**_verdict(rng), "examples": sides}


def _datasets(count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield dataset_row(number, count, rng, name=f"data-{number}", kind="documents" if number % 4 == 0 else "pairs")


def dataset_row(number: int, of: int, rng: random.Random, *, name: str | None, kind: str) -> dict[str, Any]:
    """A dataset's row, with a report of the real size."""
    id_ = row_id("ds", number, of)
    report = {
        "rows": 2982, "duplicates": 3, "splits": {"train": 2000, "test": 982}, "length": {"p50": 9, "p99": 40, "max": 88},
        "fields": {field: {"empty": 0, "longest": 300} for field in ("anchor", "positive")},
        "examples": [_text(rng, 12) for _ in range(5)],
    }  # fmt: skip
    return {
        "id": id_, "project_id": DEFAULT_PROJECT, "name": name, "kind": kind, "sha256": _digest(rng), "columns": {},
        "columns_sha256": _digest(rng), "rows": 2982, "size_bytes": 500_000, "report": report,
        "artifact_key": f"datasets/{id_}.jsonl", "created_at": _moment(number, of),
    }  # fmt: skip


def _models(sizes: Sizes, encoder_id: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    largest = sizes.versions * 2 // 5
    others, more = divmod(sizes.versions - largest, sizes.models - 1)
    for number in range(sizes.models):
        last = largest if number == 0 else others + (number <= more)
        history = [rng.randint(1, last) for _ in range(max(4, last // 3))]  # what went live, in order
        yield {
            "id": row_id("mdl", number, sizes.models), "project_id": DEFAULT_PROJECT, "name": f"model-{number}",
            "encoder_id": encoder_id, "live_version": history[-1], "last_version": last, "created_at": _BEGIN,
            "promotion_id": _promotion_id(number, len(history)), "number": number, "history": history,
        }  # fmt: skip


def _promotion_id(model: int, turn: int) -> str:
    return row_id("prm", model * 10_000 + turn, 1_000_000)


def _promotions(model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The model's history: made, and then one version after the other; takes what is no column out of the model's row."""
    number, history = model.pop("number"), [0, *model.pop("history")]
    for turn, version in enumerate(history):
        yield {
            "id": _promotion_id(number, turn), "model_id": model["id"], "action": "promote" if turn else "created",
            "from_version": history[turn - 1] if turn else None, "to_version": version, "forced": False, "created_at": _BEGIN,
            "previous_id": _promotion_id(number, turn - 1) if turn else None,
        }  # fmt: skip


def _collections(count: int, models: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {
            "id": row_id("col", number, count), "project_id": DEFAULT_PROJECT, "name": f"docs-{number}",
            "model_id": models[number % len(models)]["id"], "qdrant_collection": f"{DEFAULT_PROJECT}_docs-{number}",
            "indexes": {"lang": "keyword"}, "settings": {"quantization": "none", "hnsw_m": None, "hnsw_ef_construct": None},
            "created_at": _moment(number, count),
        }  # fmt: skip


def _vectors(collection: dict[str, Any], models: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Two of three collections have followed the live version; the others still serve `base`."""
    live = next(model["live_version"] for model in models if model["id"] == collection["model_id"])
    for version in (0, live):
        is_ready = version == 0 or int(collection["name"].rpartition("-")[2]) % 3 > 0
        yield {
            "collection_id": collection["id"], "version": version, "vector_name": f"v{version}" if version else "base",
            "state": "ready" if is_ready else "building", "points": 1000 if is_ready else 0, "created_at": _BEGIN,
        }  # fmt: skip


def _jobs(
    count: int,
    datasets: list[dict[str, Any]],
    models: list[dict[str, Any]],
    collections: list[dict[str, Any]],
    rng: random.Random,
) -> Iterator[dict[str, Any]]:
    by_kind = {kind: [row["id"] for row in datasets if row["kind"] == kind] for kind in ("pairs", "documents")}
    parent = None
    for number in range(count):
        kind = "train" if number < count // 5 else rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        state = rng.choices(list(_STATES), list(_STATES.values()))[0]
        collection = rng.choice(collections)
        moment = _moment(number, count)
        is_train, is_over = kind == "train", state in ("succeeded", "failed", "cancelled")
        job = {
            "id": row_id("job", number, count), "project_id": DEFAULT_PROJECT, "kind": kind, "state": state,
            "request": _request(by_kind, rng) if is_train else {"delete": None},
            "model_id": rng.choice(models)["id"] if is_train else collection["model_id"],
            "dataset_id": rng.choice(by_kind["pairs" if is_train else "documents"]) if kind != "rehead" else None,
            "collection_id": None if is_train else collection["id"],
            "parent_job_id": parent if kind == "publish" else None,
            "progress": {"stage": "fit", "done": 3, "total": 16} if state == "running" else None,
            "result": _result(rng, is_train=is_train) if state == "succeeded" else None,
            "error": {"code": "too_few_examples", "message": _text(rng, 20)} if state == "failed" else None,
            "attempts": 1, "event_count": 6, "token": 1, "created_at": moment, "woken_at": moment, "started_at": moment,
            "finished_at": moment + timedelta(seconds=30) if is_over else None,
            "lease_expires_at": datetime(2100, 1, 1, tzinfo=UTC) if state == "running" else None,
        }  # fmt: skip
        parent = job["id"] if is_train and state == "succeeded" else None
        yield job


def _request(datasets: dict[str, list[str]], rng: random.Random) -> dict[str, Any]:
    return {
        "evaluation_id": rng.choice([None, *datasets["pairs"]]), "guard_id": rng.choice([None, *datasets["pairs"]]),
        "forgetting_budget": 0.005, "mode": "head", "recipe": Recipe().to_dict(), "tuning": None, "promote": "if_better",
        "publish": None,
    }  # fmt: skip


def _result(rng: random.Random, *, is_train: bool) -> dict[str, Any]:
    if not is_train:
        return {"documents": 1000, "written": 10, "skipped": 990, "points": 1000, "encode_seconds": 1.5, "seconds": 2.0}
    return {
        "version": "model-0@1", "promoted": True, "not_promoted_because": None, "live": None, "pairs": 2982, "examples": 2982,
        "test_queries": 994, "documents": 3976, "metric": "ndcg@10", **_scores(rng), "verdict": _verdict(rng),
        "forgetting": {"score": "spearman", "value": 0.003}, "forgetting_budget": 0.005, "drift": {"mean": 0.1, "p95": 0.2},
        "way": "mean of two", "recipes": [Recipe(seed=seed).to_dict() for seed in range(2)], "strength": 0.9, "query_only": False,
        "trials": {"planned": 16, "finished": 16}, "identity_at_start": True, "encode_seconds": 8.1, "sweep_seconds": 9.1,
        "fit_seconds": 4.0, "evaluate_seconds": 1.1, "tuned_encoder": None,
    }  # fmt: skip


def _events(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    told = ("queued", "started (attempt 1)", "encoded 3,976 texts", "tried 16 recipes", "better: ndcg@10 0.4 -> 0.5", "ended")
    for number, message in enumerate(told, 1):
        yield {"job_id": job["id"], "number": number, "level": "info", "message": message, "created_at": job["created_at"]}


def _versions(model: dict[str, Any], trained: Iterator[dict[str, Any]], rng: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(model["last_version"] + 1):
        job_id = next(trained)["id"] if number else None
        yield {
            "id": f"ver_{model['id'][4:-6]}{number:06x}", "model_id": model["id"], "number": number, "job_id": job_id,
            "artifact_key": f"heads/{job_id}/1" if number else None, "strength": 0.9 if number else 1.0, "created_at": _BEGIN,
            "manifest": manifest(rng, model["name"], number) if number else {},
            "scores": {**_scores(rng), "forgetting": {"score": "spearman", "value": 0.003}} if number else {},
            "verdict": _verdict_with_examples(rng) if number else None,
        }  # fmt: skip
