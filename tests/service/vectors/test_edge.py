"""What only the embedded engine promises: its folders, and what a killed process leaves in them."""

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
import pytest
import qdrant_edge as edge

from service.errors import InvalidRequest, NotFound, Unavailable
from service.vectors import edge_files
from service.vectors.edge import EdgeEngine
from service.vectors.edge_files import OWNER
from service.vectors.edge_payloads import from_stored, to_stored
from service.vectors.engine import IndexSettings, Points

DIM = 8
ROWS_PER_WRITE = 50

# Each child says what it has done on a line of its own, so that the test knows what was acknowledged when it kills it.
CHILD = f"""
import json, os, sys
from pathlib import Path
from uuid import UUID, uuid5
import numpy as np
from service.vectors.edge import EdgeEngine
from service.vectors.engine import IndexSettings, Points

def rows(first):
    ids = [str(uuid5(UUID(int=0), str(n))) for n in range(first, first + {ROWS_PER_WRITE})]
    matrix = np.array([[n] * {DIM} for n in range(first, first + {ROWS_PER_WRITE})], dtype=np.float32)
    return ids, matrix

engine = EdgeEngine(Path(sys.argv[1]))
"""
UPSERTS = """
engine.create_collection("docs", dim=8, indexes={"number": "integer"}, owner="col_1")
first = 0
deep = json.loads("[" * 63 + "]" * 63)
while True:
    ids, matrix = rows(first)
    engine.upsert("docs", Points(ids, {"base": matrix}, [{"number": first, "live": True, "deep": deep}] * len(ids)))
    first += len(ids)
    print(first, flush=True)
"""
KILLED_WHILE_DROPPING_A_NAME = """
from service.vectors.edge_collection import EdgeCollection
engine.create_collection("docs", dim=8, indexes={}, owner="col_1")
engine.add_vector_name("docs", "v1", dim=8)
ids, matrix = rows(0)
engine.upsert("docs", Points(ids, {"base": matrix, "v1": matrix}, [{}] * len(ids)))
flush, flushed = EdgeCollection._flush, []

def die_at_the_second_flush(collection):
    flushed.append(1)
    flush(collection) if len(flushed) == 1 else os.kill(os.getpid(), 9)

EdgeCollection._flush = die_at_the_second_flush
engine.drop_vector_name("docs", "v1")
"""
KILLED_WHILE_CREATING = """
Path.rename = lambda *_: os.kill(os.getpid(), 9)
engine.create_collection("docs", dim=8, indexes={"number": "integer"}, owner="col_1")
"""
KILLED_WHILE_MAKING_THE_SHARD = """
engine.create_collection("docs", dim=8, indexes={"number": "integer"}, owner="col_1")
engine.add_vector_name("docs", "v1", dim=3)
Path.rename = lambda *_: os.kill(os.getpid(), 9)
engine.count("docs")
"""
KILLED_WHEN_THE_SHARD_IS_MADE = """
engine.create_collection("docs", dim=8, indexes={"number": "integer"}, owner="col_1")
engine.add_vector_name("docs", "v1", dim=3)
Path.unlink = lambda *_, **__: os.kill(os.getpid(), 9)
engine.count("docs")
"""
KILLED_WHILE_DROPPING = """
import shutil
engine.create_collection("docs", dim=8, indexes={}, owner="col_1")
engine.count("docs")
shutil.rmtree = lambda path, *_, **__: os.kill(os.getpid(), 9) if Path(path).exists() else None
engine.drop_collection("docs", owner="col_1")
"""


def run_child(script: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", CHILD + script, str(folder)], stdout=subprocess.PIPE, text=True)


def point_id(number: int) -> str:
    return str(uuid5(UUID(int=0), str(number)))


def numbered(first: int, count: int) -> Points:
    numbers = range(first, first + count)
    matrix = np.array([[n] * DIM for n in numbers], dtype=np.float32)
    return Points([point_id(n) for n in numbers], {"base": matrix}, [{"number": n, "live": n % 2 == 0} for n in numbers])


def test_everything_is_there_after_closing_and_reopening(tmp_path: Path) -> None:
    first = EdgeEngine(tmp_path)
    first.create_collection("docs", dim=DIM, indexes={"number": "integer", "live": "bool"}, owner="col_1")
    first.add_vector_name("docs", "v1", dim=3)
    first.upsert("docs", numbered(0, 20))
    first.set_vectors("docs", "v1", [point_id(4)], np.ones((1, 3), dtype=np.float32))
    first.close()

    again = EdgeEngine(tmp_path)

    assert again.vector_names("docs") == {"base", "v1"}
    assert again.count("docs") == 20
    assert again.count("docs", having="v1") == 1
    assert again.payloads("docs", [point_id(3)]) == {point_id(3): {"number": 3, "live": False}}
    query = np.ones(DIM, dtype=np.float32)
    hits = again.search("docs", "base", query, limit=20, where={"must": [{"key": "live", "match": {"value": True}}]})
    assert [hit.payload["number"] for hit in hits] == list(range(18, -1, -2))
    with pytest.raises(InvalidRequest, match="has dimension 3, found 8"):
        again.set_vectors("docs", "v1", [point_id(4)], np.ones((1, DIM), dtype=np.float32))
    again.close()


def test_kill_during_upserts_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with run_child(UPSERTS, tmp_path) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(30)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout]

    engine = EdgeEngine(tmp_path)
    there = {i: row for page in engine.scroll("docs", "base") for i, row in zip(page.ids, page.matrix, strict=True)}
    payloads = engine.payloads("docs", [point_id(n) for n in range(acknowledged[-1])])
    assert acknowledged[-1] >= 30 * ROWS_PER_WRITE
    assert all((there[point_id(n)] == n).all() for n in range(acknowledged[-1]))
    # As deep as is allowed: deeper ones would make the log unreadable here.
    deep = json.loads("[" * 63 + "]" * 63)
    for n in range(acknowledged[-1]):
        assert payloads[point_id(n)] == {"number": n - n % ROWS_PER_WRITE, "live": True, "deep": deep}
    engine.close()


def test_log_file_that_is_renamed_while_the_log_is_synced_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(edge_files, "_fsync", lambda path: synced.append(path.resolve(strict=True)))
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / "tmp-open-3").symlink_to("open-3")  # listed, and gone when it is opened
    (tmp_path / "wal" / "open-2").touch()

    edge_files.fsync_log(tmp_path)

    assert synced == [tmp_path / "wal" / "open-2"]


def test_kill_while_dropping_a_name_keeps_the_points_that_had_it(tmp_path: Path) -> None:
    with run_child(KILLED_WHILE_DROPPING_A_NAME, tmp_path) as child:
        child.wait()

    engine = EdgeEngine(tmp_path)
    assert child.returncode == -signal.SIGKILL
    assert engine.vector_names("docs") == {"base"}
    assert engine.count("docs", having="base") == engine.count("docs") == ROWS_PER_WRITE
    engine.close()


@pytest.mark.parametrize("script", [KILLED_WHILE_CREATING, KILLED_WHILE_DROPPING])
def test_half_made_or_half_dropped_folder_is_as_if_it_never_was(tmp_path: Path, script: str) -> None:
    with run_child(script, tmp_path) as child:
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert any(tmp_path.iterdir())

    engine = EdgeEngine(tmp_path)

    assert not any(tmp_path.iterdir())
    with pytest.raises(NotFound):
        engine.count("docs")
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
    engine.upsert("docs", numbered(0, 3))
    assert engine.count("docs") == 3
    engine.close()


@pytest.mark.parametrize("script", [KILLED_WHILE_MAKING_THE_SHARD, KILLED_WHEN_THE_SHARD_IS_MADE])
def test_kill_while_the_shard_is_made_keeps_the_collection(tmp_path: Path, script: str) -> None:
    with run_child(script, tmp_path) as child:
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the declaration, and a shard that is half or just made

    engine = EdgeEngine(tmp_path)

    assert len(list(tmp_path.iterdir())) == 1
    assert engine.vector_names("docs") == {"base", "v1"}
    engine.upsert("docs", numbered(0, 3))
    assert engine.count("docs") == 3
    engine.close()


def test_new_collection_is_one_small_file_until_it_is_used(tmp_path: Path) -> None:
    first = EdgeEngine(tmp_path)
    first.create_collection("docs", dim=DIM, indexes={"number": "integer"}, owner="col_1")
    first.add_vector_name("docs", "v1", dim=3)
    first.create_collection("docs", dim=DIM, indexes={"live": "bool"}, owner="col_1")
    with pytest.raises(InvalidRequest, match="has dimension 8, not 9"):
        first.create_collection("docs", dim=9, indexes={}, owner="col_1")
    with pytest.raises(InvalidRequest, match="has dimension 3, not 4"):
        first.add_vector_name("docs", "v1", dim=4)
    first.close()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 1000

    again = EdgeEngine(tmp_path)

    assert again.vector_names("docs") == {"base", "v1"}
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]
    again.close()
    shard = edge.EdgeShard.load(str(tmp_path / "docs"))
    assert set(shard.info().payload_schema) == {"number", "live"}
    shard.close()


def test_collection_that_was_never_used_is_dropped_by_its_owner_alone(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")

    engine.drop_collection("docs", owner="col_2")
    assert any(tmp_path.iterdir())
    engine.drop_collection("docs", owner="col_1")

    assert not any(tmp_path.iterdir())
    with pytest.raises(NotFound):
        engine.count("docs")
    engine.close()


def test_collection_of_another_owner_that_was_never_used_is_replaced(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
    engine.add_vector_name("docs", "v1", dim=DIM)

    engine.create_collection("docs", dim=3, indexes={}, owner="col_2")

    assert engine.vector_names("docs") == {"base"}
    engine.upsert("docs", Points([point_id(0)], {"base": np.ones((1, 3), np.float32)}, [{}]))
    engine.drop_collection("docs", owner="col_1")
    assert engine.count("docs") == 1
    engine.close()


def test_calls_that_need_a_new_shard_at_once_get_the_same_one(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: engine.upsert("docs", numbered(n, 1)), range(8)))

    assert engine.count("docs") == 8
    engine.close()


def test_field_that_cannot_be_indexed_is_refused_at_once(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)

    with pytest.raises(InvalidRequest, match="invalid JSON path a b"):
        engine.create_collection("docs", dim=DIM, indexes={"a b": "keyword"}, owner="col_1")

    assert not any(tmp_path.iterdir())
    engine.close()


def test_collection_that_was_dropped_can_be_created_again(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=3, indexes={}, owner="col_1")

    engine.drop_collection("docs", owner="col_1")
    engine.create_collection("docs", dim=DIM, indexes={"number": "integer"}, owner="col_1")
    engine.upsert("docs", numbered(0, 3))

    assert engine.count("docs") == 3
    engine.close()


def test_shard_of_another_owner_is_a_leftover_and_is_replaced(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
    engine.upsert("docs", numbered(0, 3))

    engine.create_collection("docs", dim=3, indexes={}, owner="col_2")

    assert engine.count("docs") == 0
    engine.drop_collection("docs", owner="col_1")
    assert engine.vector_names("docs") == {"base"}
    engine.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_shard_from_before_the_marks_is_kept_and_marked(tmp_path: Path, reopened: bool) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
    engine.upsert("docs", numbered(0, 3))
    (tmp_path / "docs" / OWNER).unlink()
    if reopened:
        engine.close()
        engine = EdgeEngine(tmp_path)

    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_2")

    assert engine.count("docs") == 3
    engine.drop_collection("docs", owner="col_1")
    assert engine.count("docs") == 3
    engine.close()


def test_shard_from_before_the_marks_is_dropped_by_anyone(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
    engine.upsert("docs", numbered(0, 3))
    (tmp_path / "docs" / OWNER).unlink()

    engine.drop_collection("docs", owner="col_2")

    assert not any(tmp_path.iterdir())
    engine.close()


def test_indexes_that_are_missing_are_made_and_kept(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={"number": "integer"}, owner="col_1")
    engine.upsert("docs", numbered(0, 3))

    engine.create_collection("docs", dim=DIM, indexes={"number": "integer", "parts[].live": "bool"}, owner="col_1")

    engine.close()
    shard = edge.EdgeShard.load(str(tmp_path / "docs"))
    assert set(shard.info().payload_schema) == {"number", "parts[].live"}
    assert shard.info().points_count == 3
    shard.close()


@pytest.mark.parametrize("settings", [IndexSettings(quantization="scalar"), IndexSettings(hnsw_m=32)])
def test_settings_of_an_index_are_refused(tmp_path: Path, settings: IndexSettings) -> None:
    engine = EdgeEngine(tmp_path)

    with pytest.raises(InvalidRequest, match="searches exactly"):
        engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1", settings=settings)

    assert not any(tmp_path.iterdir())
    engine.close()


def test_second_engine_on_the_same_collection_is_unavailable(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
    engine.upsert("docs", numbered(0, 3))

    with pytest.raises(Unavailable, match="docs"):
        EdgeEngine(tmp_path).count("docs")
    engine.close()


def test_closed_engine_is_unavailable(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")
    engine.upsert("docs", numbered(0, 3))
    pages = engine.scroll("docs", "base", batch_size=1)
    next(pages)

    engine.close()

    for ask in (engine.ping, lambda: engine.count("docs"), lambda: next(pages)):
        with pytest.raises(Unavailable):
            ask()
    engine.close()


def test_ping_tells_that_the_folder_is_gone(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path / "vectors")
    shutil.rmtree(tmp_path / "vectors")

    with pytest.raises(Unavailable, match="is gone"):
        engine.ping()


def test_condition_that_edge_lacks_is_refused_by_name(tmp_path: Path) -> None:
    engine = EdgeEngine(tmp_path)
    engine.create_collection("docs", dim=DIM, indexes={}, owner="col_1")

    with pytest.raises(InvalidRequest, match="no `slice` condition; use key, nested"):
        engine.delete("docs", where={"must": [{"slice": {"index": 0, "total": 2}}]})
    engine.close()


def test_stored_form_of_payloads_has_no_booleans_and_is_one_to_one() -> None:
    values = [True, False, "", "\x00", "\x00\x01", "\x00\x02", "\x00\x00", "\x00\x00\x01", "\x01", 1, 0, None]

    stored = to_stored({"values": values})

    assert not any(isinstance(value, bool) for value in stored["values"])
    assert len(set(map(repr, stored["values"]))) == len(values)
    assert list(map(repr, from_stored(stored)["values"])) == list(map(repr, values))
