"""The chaos benchmark: its checks find what is planted, its times are right, and a short run of it keeps every promise."""

import copy
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import chaos
from benchmarks.chaos_facts import Facts, Head, Point, QdrantCollection, listing
from benchmarks.chaos_faults import Kill, Outage
from benchmarks.chaos_hook import ARMED, JOURNAL, KILLS, PASSED
from benchmarks.chaos_invariants import (
    Finding,
    check_documents,
    check_events,
    check_files,
    check_jobs,
    check_names,
    check_numbers,
    check_vectors,
    check_versions,
)
from benchmarks.chaos_takeovers import Takeover, takeovers
from zerogate import Encoder

ROOT = Path(__file__).parents[2]
TEXTS = {"doc-1": "one", "doc-2": "two"}
BASE = {"one": [1.0, 0.0], "two": [0.6, 0.8]}
# matrix [[0, 1], [-1, 0]] and offset [0, 0.5] at strength 0.5, by hand: x + (y - x) / 2, then divided by its length.
TURNED = {"one": np.array([0.5, -0.25]) / np.sqrt(0.3125), "two": np.array([0.7, 0.35]) / np.sqrt(0.6125)}


def base(texts: list[str]) -> NDArray[np.float32]:
    return np.array([BASE[text] for text in texts], dtype=np.float32)


def job(number: int, kind: str, **fields: Any) -> dict[str, Any]:
    row = {"id": f"job_{number}", "kind": kind, "state": "succeeded", "request": {"publish": None}, "error": None, "attempts": 1}
    return {**row, "parent_job_id": None, "event_count": 3, "progress": None, **fields}


def event(job_id: str, number: int, message: str, *, at: float = 0.0) -> dict[str, Any]:
    return {"job_id": job_id, "number": number, "message": message, "created_at": datetime.fromtimestamp(at, UTC)}


def point(name: str, **more: NDArray[np.float64]) -> Point:
    text = TEXTS[name]
    vectors = {"base": np.array(BASE[text], np.float32), "v1": TURNED[text].astype(np.float32), **more}
    return Point(f"point-{name}", {"document_id": name, "text": text}, vectors)


@pytest.fixture
def facts() -> Facts:
    """A world in which nothing is wrong: one training that was published, its rehead, and a training that was cancelled."""
    jobs = [
        job(1, "train", request={"publish": {"collection_id": "col_1"}}),
        job(2, "publish", parent_job_id="job_1"),
        job(3, "rehead"),
        job(4, "train", state="cancelled"),
    ]
    events = [
        event(one["id"], number, message)
        for one in jobs
        for number, message in enumerate(["queued", "started (attempt 1)", one["state"]], start=1)
    ]
    vector = {"collection_id": "col_1", "state": "ready", "points": 2}
    tables = {
        "jobs": jobs,
        "events": events,
        "models": [{"id": "mdl_1", "name": "m", "live_version": 1, "last_version": 1}],
        "versions": [
            {"model_id": "mdl_1", "number": 0, "job_id": None, "artifact_key": None, "strength": 1.0},
            {"model_id": "mdl_1", "number": 1, "job_id": "job_1", "artifact_key": "heads/job_1/1", "strength": 0.5},
        ],
        "promotions": [{"model_id": "mdl_1", "action": "promote", "to_version": 1}],
        "datasets": [{"id": "ds_1", "artifact_key": "datasets/ds_1.jsonl"}],
        "collections": [{"id": "col_1", "name": "notes", "model_id": "mdl_1", "qdrant_collection": "default_notes"}],
        "vectors": [{**vector, "version": 0, "vector_name": "base"}, {**vector, "version": 1, "vector_name": "v1"}],
    }
    return Facts(
        tables=tables,
        files=frozenset({"datasets/ds_1.jsonl", "heads/job_1/1/head.safetensors", "heads/job_1/1/manifest.json", "scratch/"}),
        heads={"heads/job_1/1": Head(np.array([[0, 1], [-1, 0]], np.float32), np.array([0, 0.5], np.float32))},
        qdrant={"default_notes": QdrantCollection(frozenset({"base", "v1"}), [point("doc-1"), point("doc-2")])},
        stored=frozenset({"default_notes"}),
    )


def found_in(facts: Facts) -> list[Finding]:
    """What all checks together find."""
    expected = {name: frozenset({text}) for name, text in TEXTS.items()}
    return [
        *check_jobs(facts, accepted=["job_1", "job_4"], cancelled=["job_4"]),
        *check_events(facts),
        *check_versions(facts),
        *check_numbers(facts),
        *check_files(facts),
        *check_names(facts),
        *check_documents(facts, collection="notes", expected=expected),
        *check_vectors(facts, collection="notes", base=base),
    ]


def test_nothing_is_found_where_nothing_is_wrong(facts: Facts) -> None:
    assert found_in(facts) == []


# What is done to the tables, and what must be found: its kind, and words of it.
PLANTED_IN_TABLES: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "an accepted job is missing": (lambda t: t["jobs"].pop(3), "lost", "job_4 was accepted and is not there"),
    "a job has not ended": (lambda t: t["jobs"][2].update(state="running"), "lost", "rehead job_3 is still running"),
    "a job failed": (lambda t: t["jobs"][2].update(state="failed", error={"code": "x"}), "lost", "failed: {'code': 'x'}"),
    "a job was cancelled by nobody": (lambda t: t["jobs"][2].update(state="cancelled"), "lost", "cancelled by nobody"),
    "an event was deleted": (lambda t: t["events"].pop(1), "wrong", "job_1 has the events [1, 3]; its row counts 3"),
    "the last event was deleted": (lambda t: t["events"].pop(2), "wrong", "its events tell []"),
    "an event is there twice": (lambda t: t["events"].append(t["events"][1]), "wrong", "job_1 has the events [1, 2, 2, 3]"),
    "a job ended twice": (
        lambda t: (t["events"].append(event("job_1", 4, "succeeded")), t["jobs"][0].update(event_count=4)),
        "doubled",
        "job_1 ended 2 times",
    ),
    "a training has no version": (lambda t: t["versions"].pop(1), "lost", "train job_1, succeeded, has 0 versions"),
    "a training has two versions": (
        lambda t: t["versions"].append({**t["versions"][1], "number": 2}),
        "doubled",
        "train job_1, succeeded, has 2 versions",
    ),
    "a cancelled training has a version": (
        lambda t: t["versions"].append({**t["versions"][1], "number": 2, "job_id": "job_4"}),
        "wrong",
        "train job_4, cancelled, has 1 versions",
    ),
    "what was trained was not published": (lambda t: t["jobs"].pop(1), "lost", "job_1, succeeded, has 0 publish jobs"),
    "what was trained was published twice": (
        lambda t: t["jobs"].append(job(5, "publish", parent_job_id="job_1")),
        "doubled",
        "job_1, succeeded, has 2 publish jobs",
    ),
    "a version was promoted twice": (
        lambda t: t["promotions"].append(t["promotions"][0]),
        "doubled",
        "m@1 was promoted 2 times",
    ),
    "a version's number was left out": (lambda t: t["models"][0].update(last_version=2), "wrong", "has the versions [0, 1]"),
    "a version's row is gone, and its file is not": (
        lambda t: t["versions"].pop(1),
        "orphan",
        "no row knows the file heads/job_1/1/head.safetensors",
    ),
    "a named vector has no row": (lambda t: t["vectors"].pop(1), "orphan", "no row knows the named vector v1 of notes"),
    "the live version is not ready": (
        lambda t: t["vectors"][1].update(state="building"),
        "lost",
        "version 1 is live and not ready in notes",
    ),
    "a count of points is old": (lambda t: t["vectors"][1].update(points=3), "wrong", "v1 counts 3 points, there are 2"),
}


@pytest.mark.parametrize("planted", PLANTED_IN_TABLES)
def test_what_is_wrong_in_the_database_is_found(facts: Facts, planted: str) -> None:
    plant, kind, said = PLANTED_IN_TABLES[planted]
    tables = copy.deepcopy(dict(facts.tables))
    plant(tables)

    found = found_in(Facts(tables, facts.files, facts.heads, facts.qdrant, facts.stored))

    assert any(one.kind == kind and said in one.said for one in found), found


@pytest.mark.parametrize(
    "path", ["scratch/tmp1/x", "scratch/tmp1/", "work/job_4/1/fit", "heads/job_4/2/manifest.json", "x", "x/"]
)
def test_a_file_that_no_row_knows_is_found(facts: Facts, path: str) -> None:
    planted = Facts(facts.tables, facts.files | {path}, facts.heads, facts.qdrant, facts.stored)

    assert found_in(planted) == [Finding("orphan", f"no row knows the file {path}")]


def test_a_files_loss_is_found(facts: Facts) -> None:
    no_dataset = Facts(facts.tables, facts.files - {"datasets/ds_1.jsonl"}, facts.heads, facts.qdrant, facts.stored)
    no_head = Facts(facts.tables, facts.files, {}, facts.qdrant, facts.stored)

    assert found_in(no_dataset) == [Finding("lost", "the dataset's file datasets/ds_1.jsonl is not there")]
    assert found_in(no_head) == [Finding("lost", "version 1 of job_1 has no head file")]


def test_a_listing_names_files_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "heads" / "job").mkdir(parents=True)
    (tmp_path / "heads" / "head").touch()
    (tmp_path / "scratch").mkdir()

    assert listing(tmp_path) == {"heads/head", "heads/job/", "scratch/"}


def seen_in_qdrant(facts: Facts, points: list[Point], *, names: set[str], stored: set[str]) -> list[Finding]:
    qdrant = {"default_notes": QdrantCollection(frozenset(names), points)}
    return found_in(Facts(facts.tables, facts.files, facts.heads, qdrant, frozenset(stored)))


def off(vector: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    return vector + np.array([by, 0.0])


@pytest.mark.parametrize(
    ("points", "kind", "said"),
    [
        ([point("doc-1")], "lost", "document doc-2 has the text None; it should have 'two'"),
        ([point("doc-1"), point("doc-2"), point("doc-2")], "doubled", "document doc-2 has 2 points"),
        (
            [point("doc-1"), Point("p", {"document_id": "doc-2", "text": "one"}, point("doc-1").vectors)],
            "wrong",
            "the text 'one'",
        ),
        ([point("doc-1"), point("doc-2", v1=off(TURNED["two"], 1e-4))], "wrong", "v1 of document doc-2 is off by 0.0001"),
        ([point("doc-1"), point("doc-2", base=off(np.array(BASE["two"]), 1e-4))], "wrong", "base of document doc-2 is off by"),
        ([point("doc-1"), point("doc-2", v1=np.array([np.nan, 0.0]))], "wrong", "v1 of document doc-2 is off by nan"),
        ([point("doc-1"), point("doc-2", v9=TURNED["two"])], "orphan", "points have the vector v9, which no row knows"),
        (
            [point("doc-1"), Point("p", point("doc-2").payload, {"base": point("doc-2").vectors["base"]})],
            "lost",
            "1 of 2 points lack v1",
        ),
    ],
)
def test_what_is_wrong_with_a_point_is_found(facts: Facts, points: list[Point], kind: str, said: str) -> None:
    found = seen_in_qdrant(facts, points, names={"base", "v1"}, stored={"default_notes"})

    assert any(one.kind == kind and said in one.said for one in found), found


def test_what_qdrant_holds_too_much_or_too_little_is_found(facts: Facts) -> None:
    points = [point("doc-1"), point("doc-2")]

    assert seen_in_qdrant(facts, points, names={"base", "v1", "v7"}, stored={"default_notes"}) == [
        Finding("orphan", "no row knows the named vector v7 of notes")
    ]
    assert seen_in_qdrant(facts, points, names={"base"}, stored={"default_notes"}) == [
        Finding("lost", "v1 of notes is ready and not in Qdrant")
    ]
    assert seen_in_qdrant(facts, points, names={"base", "v1"}, stored={"default_notes", "default_x"}) == [
        Finding("orphan", "no row knows the Qdrant collection default_x")
    ]


def passed(pid: int, job_id: str, token: int, time: float) -> dict[str, Any]:
    return {"pid": pid, "job_id": job_id, "token": token, "time": time, "role": "worker", "when": "after"}


def test_a_takeover_lasts_from_the_kill_to_the_next_claim() -> None:
    kills = [Kill(110.0, "worker", 1, None), Kill(111.0, "trainer", 2, None), Kill(150.0, "worker", 1, None)]
    events = [
        *(event("running", n, said, at=at) for n, (said, at) in enumerate([("queued", 99), ("started (attempt 1)", 100),
          ("fitted 9 examples", 105), ("taken over: gone", 121.5), ("started (attempt 2)", 121.5), ("succeeded", 130)], start=1)),
        *(event("ended", n, said, at=at) for n, (said, at) in enumerate([("queued", 99), ("started (attempt 1)", 100),
          ("put back: the worker is being stopped", 105), ("started (attempt 1)", 120)], start=1)),
        *(event("cancelled", n, said, at=at) for n, (said, at) in enumerate([("queued", 99), ("started (attempt 1)", 100),
          ("cancelled", 115)], start=1)),
    ]  # fmt: skip
    claims = [passed(1, name, 1, 100.01) for name in ("running", "ended", "cancelled")] + [passed(3, "ended", 3, 120.01)]

    def found(*more: Kill, outage: Outage | None = None) -> list[Takeover]:
        return takeovers([*kills, *more], claims, events, [] if outage is None else [outage])

    assert found() == [Takeover("running", 11.5, disturbed=False)]
    assert found(outage=Outage("broker", 112.0, 113.0)) == [Takeover("running", 11.5, disturbed=True)]
    assert found(outage=Outage("broker", 122.0, 123.0)) == [Takeover("running", 11.5, disturbed=False)]
    assert found(Kill(120.0, "worker", 9, None)) == [Takeover("running", 11.5, disturbed=True)]


HOOKED = """
import sys
sys.orig_argv = sys.argv[1:]
from benchmarks.chaos_hook import install
install()
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
work = '''
def commit(engine, mine):
    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO words VALUES ('kept')"))
        with session.begin_nested():
            pass
'''
class Claim:
    kind, job_id, token = "train", "job_1", 7
namespace = {"__name__": "workers.somewhere", "Session": Session, "text": text}
exec(work, namespace)
engine = create_engine("sqlite:///" + sys.argv[-1])
namespace["commit"](engine, Claim())
print("alive")
"""


@pytest.mark.parametrize(("when", "kept"), [("before", 0), ("after", 1), ("never", 1)])
def test_the_hook_kills_its_process_at_the_boundary_it_is_told(tmp_path: Path, when: str, kept: int) -> None:
    database = tmp_path / "words.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE words (word TEXT)")
    armed = {"boundaries": [["train", "worker", "commit:3", when]], "victim": "worker"}
    target = tmp_path / ARMED.format("train")
    target.write_text(json.dumps(armed))

    ended = subprocess.run(
        [sys.executable, "-c", HOOKED, str(database)],
        cwd=ROOT,
        env={**os.environ, JOURNAL: str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM words").fetchone() == (kept,)
    rows = [json.loads(line) for line in (tmp_path / PASSED).read_text().splitlines()]
    assert [row["when"] for row in rows] == (["before"] if when == "before" else ["before", "after"])
    assert {(row["kind"], row["job_id"], row["token"]) for row in rows} == {("train", "job_1", 7)}
    if when == "never":
        assert (ended.returncode, ended.stdout) == (0, "alive\n"), ended.stderr
        assert target.exists()
    else:
        assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, ""), ended.stderr
        assert not target.exists()
        assert json.loads((tmp_path / KILLS).read_text())["victim"] == "worker"


@pytest.fixture(scope="module")
def report(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three rounds with everything real but Qdrant."""
    return chaos.run(tmp_path_factory.mktemp("c") / "s", rounds=3, seed=0, encoder=encoder)


def test_three_rounds_of_chaos_lose_nothing_do_nothing_twice_and_leave_nothing_behind(report: dict[str, Any]) -> None:
    found = {name: report[name] for name in ("lost", "doubled", "orphans", "wrong", "findings")}
    assert found == {"lost": 0, "doubled": 0, "orphans": 0, "wrong": 0, "findings": []}


def test_there_was_chaos(report: dict[str, Any]) -> None:
    assert report["rounds"] == 3
    assert report["kills"] >= 3
    assert sum(report["faults"].values()) >= 1
    assert report["versions"] >= 3
    assert report["states"].keys() <= {"succeeded", "cancelled"}


def test_a_killed_workers_job_is_another_workers_within_15_seconds(report: dict[str, Any]) -> None:
    assert report["takeovers"] >= 1
    assert report["takeover_seconds_max"] <= 15.0
