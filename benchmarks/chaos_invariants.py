"""What must be true when the chaos is over. Every check looks at the facts alone and gives what it found wrong."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.chaos_facts import Facts, Head, Point, QdrantCollection, Row
from benchmarks.chaos_load import Text

Base = Callable[[list[str]], NDArray[np.float32]]
"""The encoder's own base vectors of document texts."""

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_FOLDERS = frozenset({"datasets/", "heads/", "encoders/", "work/", "scratch/"})  # these stay when they are empty
_TOLERANCE = 1e-5  # of a component: float32 products, in batches of other sizes


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be.

    lost: a job, or what it should have made, is not there. doubled: it was made twice. orphan: something that nobody knows.
    wrong: anything else.
    """

    kind: Literal["lost", "doubled", "orphan", "wrong"]
    said: str


def check_jobs(facts: Facts, *, accepted: Iterable[str], cancelled: Iterable[str]) -> Iterator[Finding]:
    """Every accepted job is there; every job has ended; none failed; none was cancelled but by us."""
    jobs = {row["id"]: row for row in facts.tables["jobs"]}
    for job_id in set(accepted) - jobs.keys():
        yield Finding("lost", f"{job_id} was accepted and is not there")
    for job in jobs.values():
        name = f"{job['kind']} {job['id']}"
        if job["state"] not in TERMINAL:
            yield Finding("lost", f"{name} is still {job['state']}, attempt {job['attempts']}, progress {job['progress']}")
        elif job["state"] == "failed":
            yield Finding("lost", f"{name} failed: {job['error']}")
        elif job["state"] == "cancelled" and job["id"] not in set(cancelled):
            yield Finding("lost", f"{name} was cancelled by nobody")


def check_events(facts: Facts) -> Iterator[Finding]:
    """The events of a job are numbered 1, 2, 3, ...; the last one tells its end, and only that one does."""
    events: dict[str, list[Row]] = defaultdict(list)
    for event in facts.tables["events"]:
        events[event["job_id"]].append(event)
    for job in facts.tables["jobs"]:
        mine = events[job["id"]]
        numbers = sorted(event["number"] for event in mine)
        if numbers != list(range(1, job["event_count"] + 1)):
            yield Finding("wrong", f"{job['id']} has the events {numbers}; its row counts {job['event_count']}")
        ends = [event for event in mine if event["message"].partition(":")[0] in TERMINAL]
        told = [event["message"].partition(":")[0] for event in ends]
        if len(told) > 1:
            yield Finding("doubled", f"{job['id']} ended {len(told)} times: {told}")
        elif told != ([job["state"]] if job["state"] in TERMINAL else []):
            yield Finding("wrong", f"{job['id']} is {job['state']}, and its events tell {told}")


def check_versions(facts: Facts) -> Iterator[Finding]:
    """A succeeded training has one version, with its files, and one publish job if it asked for one; others have none."""
    made = Counter(row["job_id"] for row in facts.tables["versions"] if row["job_id"] is not None)
    published = Counter(row["parent_job_id"] for row in facts.tables["jobs"] if row["kind"] == "publish")
    for job in facts.tables["jobs"]:
        done = job["kind"] == "train" and job["state"] == "succeeded"
        wanted = 1 if done else 0
        yield from _counted(f"{job['kind']} {job['id']}, {job['state']}", "versions", made[job["id"]], wanted)
        wanted = 1 if done and job["request"]["publish"] is not None else 0
        yield from _counted(f"{job['kind']} {job['id']}, {job['state']}", "publish jobs", published[job["id"]], wanted)
    for version in facts.tables["versions"]:
        if version["artifact_key"] is not None and version["artifact_key"] not in facts.heads:
            yield Finding("lost", f"version {version['number']} of {version['job_id']} has no head file")


def check_numbers(facts: Facts) -> Iterator[Finding]:
    """A model's versions are numbered 0, 1, 2, ...; each was promoted once at most."""
    for model in facts.tables["models"]:
        numbers = sorted(row["number"] for row in facts.tables["versions"] if row["model_id"] == model["id"])
        if numbers != list(range(model["last_version"] + 1)):
            yield Finding("wrong", f"model {model['name']} has the versions {numbers}, the last is {model['last_version']}")
        promoted = Counter(
            row["to_version"]
            for row in facts.tables["promotions"]
            if row["model_id"] == model["id"] and row["action"] == "promote"
        )
        for number, times in promoted.items():
            if times > 1:
                yield Finding("doubled", f"{model['name']}@{number} was promoted {times} times")


def check_files(facts: Facts) -> Iterator[Finding]:
    """Every file is known from a row, and there are no half-made ones."""
    datasets = {row["artifact_key"] for row in facts.tables["datasets"]}
    heads = {row["artifact_key"] for row in facts.tables["versions"]}
    for path in facts.files:
        if path not in datasets and path.rpartition("/")[0] not in heads and path not in _FOLDERS:
            yield Finding("orphan", f"no row knows the file {path}")
    for key in datasets - facts.files:
        yield Finding("lost", f"the dataset's file {key} is not there")


def check_names(facts: Facts) -> Iterator[Finding]:
    """Qdrant holds the collections and the named vectors that rows tell of, and what is live is ready in each."""
    known = {row["qdrant_collection"] for row in facts.tables["collections"]}
    for name in facts.stored - known:
        yield Finding("orphan", f"no row knows the Qdrant collection {name}")
    live = {row["id"]: row["live_version"] for row in facts.tables["models"]}
    for collection in facts.tables["collections"]:
        rows = [row for row in facts.tables["vectors"] if row["collection_id"] == collection["id"]]
        found = facts.qdrant[collection["qdrant_collection"]]
        for name in found.vector_names - {row["vector_name"] for row in rows}:
            yield Finding("orphan", f"no row knows the named vector {name} of {collection['name']}")
        ready = {row["vector_name"] for row in rows if row["state"] == "ready"}
        for name in ready - found.vector_names:
            yield Finding("lost", f"{name} of {collection['name']} is ready and not in Qdrant")
        if not any(row["version"] == live[collection["model_id"]] and row["state"] == "ready" for row in rows):
            yield Finding("lost", f"version {live[collection['model_id']]} is live and not ready in {collection['name']}")
        for row in rows:
            if row["state"] == "ready" and row["points"] != len(found.points):
                yield Finding("wrong", f"{row['vector_name']} counts {row['points']} points, there are {len(found.points)}")


def check_documents(facts: Facts, *, collection: str, expected: Mapping[str, frozenset[Text]]) -> Iterator[Finding]:
    """The points are the documents that were asked for, with their texts, each once."""
    points = _of(facts, collection)[1].points
    texts: dict[str, list[Text]] = defaultdict(list)
    for point in points:
        texts[point.payload["document_id"]].append(point.payload["text"])
    for name, found in texts.items():
        if len(found) > 1:
            yield Finding("doubled", f"document {name} has {len(found)} points")
    for name in sorted(expected.keys() | texts.keys()):
        allowed = expected.get(name, frozenset({None}))
        for text in texts.get(name, [None]):
            if text not in allowed:
                kind: Literal["lost", "wrong"] = "lost" if text is None else "wrong"
                yield Finding(kind, f"document {name} has the text {text!r}; it should have {' or '.join(map(repr, allowed))}")


def check_vectors(facts: Facts, *, collection: str, base: Base) -> Iterator[Finding]:
    """Each point has `base`, as the encoder makes it, and every ready name: the head's unit vectors of it; and no other name."""
    row, found = _of(facts, collection)
    rows = [one for one in facts.tables["vectors"] if one["collection_id"] == row["id"]]
    for one in rows:
        if one["state"] == "ready":
            missing = [point.id for point in found.points if one["vector_name"] not in point.vectors]
            if missing:
                yield Finding("lost", f"{len(missing)} of {len(found.points)} points lack {one['vector_name']}")
    unknown = {name for point in found.points for name in point.vectors} - {one["vector_name"] for one in rows}
    for name in sorted(unknown):
        yield Finding("orphan", f"points have the vector {name}, which no row knows")
    with_base = [point for point in found.points if "base" in point.vectors]
    if not with_base:
        return
    stored = np.stack([point.vectors["base"] for point in with_base])
    yield from _compared("base", with_base, base([point.payload["text"] for point in with_base]))
    versions = {one["number"]: one for one in facts.tables["versions"] if one["model_id"] == row["model_id"]}
    for one in rows:
        version = versions.get(one["version"])
        if version is None:
            yield Finding("lost", f"version {one['version']} has the named vector {one['vector_name']} and no row")
        elif one["state"] == "ready" and version["artifact_key"] in facts.heads:
            wanted = _by_hand(facts.heads[version["artifact_key"]], version["strength"], stored)
            yield from _compared(one["vector_name"], with_base, wanted)


def _by_hand(head: Head, strength: float, base: NDArray[np.float32]) -> NDArray[np.float64]:
    """normalise(x + s (y - x)) of base vectors x, (n, dim), in float64."""
    x = base.astype(np.float64)
    y = x @ head.matrix.astype(np.float64).T + (0.0 if head.offset is None else head.offset)
    dialled = x + strength * (y - x)
    return np.asarray(dialled / np.linalg.norm(dialled, axis=1, keepdims=True))


def _compared(name: str, points: list[Point], wanted: NDArray[np.floating]) -> Iterator[Finding]:
    for point, vector in zip(points, wanted, strict=True):
        found = point.vectors.get(name)
        if found is not None and not np.abs(found - vector).max() <= _TOLERANCE:
            off = float(np.abs(found - vector).max())
            yield Finding("wrong", f"{name} of document {point.payload['document_id']} is off by {off:.2g}")


def _counted(who: str, what: str, found: int, wanted: int) -> Iterator[Finding]:
    if found != wanted:
        kind: Literal["lost", "doubled", "wrong"] = "lost" if found < wanted else "doubled" if wanted else "wrong"
        yield Finding(kind, f"{who}, has {found} {what}; there should be {wanted}")


def _of(facts: Facts, collection: str) -> tuple[Row, QdrantCollection]:
    row = next(row for row in facts.tables["collections"] if row["name"] == collection)
    return row, facts.qdrant[row["qdrant_collection"]]
