"""The servers for tests: real ones, that keep what they should, and leave nothing behind whatever becomes of us."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import redis

from benchmarks.servers import PostgresServer, ValkeyServer

ROOT = Path(__file__).parents[2]

STARTS_BOTH = """
import pathlib, sys, time
from benchmarks.servers import PostgresServer, ValkeyServer
folder, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with PostgresServer(folder / "postgres"), ValkeyServer(folder / "valkey", port):
    print("up", flush=True)
    time.sleep(60)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that name the folder or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            works_in = str((process / "cwd").readlink())
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if process.name != str(os.getpid()) and (str(folder) in command or works_in.startswith(str(folder))):
            found.append(command)
    return found


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True)


def test_postgres_keeps_what_was_committed_over_a_stop_and_over_a_crash(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "p") as server:
        url = server.create_database("kept")
        with connect(url) as connection:
            connection.execute("CREATE TABLE words (word TEXT)")
        for word, end in [("stopped", server.stop), ("killed", server.kill)]:
            with connect(url) as connection:
                connection.execute("INSERT INTO words VALUES (%s)", [word])
                end()
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError):
                connect(url)
            server.start()

        with connect(url) as connection:
            assert connection.execute("SELECT word FROM words").fetchall() == [("stopped",), ("killed",)]
            assert connection.execute("SHOW server_version_num").fetchone() >= ("180000",)


def test_a_copied_database_has_the_templates_rows_and_goes_its_own_way(postgres_server: PostgresServer) -> None:
    with connect(postgres_server.create_database("original")) as connection:
        connection.execute("CREATE TABLE words (word TEXT); INSERT INTO words VALUES ('both')")
    with connect(postgres_server.create_database("copy", template="original")) as connection:
        connection.execute("INSERT INTO words VALUES ('copy')")
        assert connection.execute("SELECT count(*) FROM words").fetchone() == (2,)

        postgres_server.drop_database("copy")  # although somebody is connected
        postgres_server.drop_database("original")

        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


@pytest.mark.parametrize(("append_only", "kept"), [(False, None), (True, b"here")])
def test_valkey_forgets_with_a_restart_unless_it_is_told_to_keep(tmp_path: Path, append_only: bool, kept: bytes | None) -> None:
    with ValkeyServer(tmp_path / "v", free_port(), append_only=append_only) as server, redis.Redis.from_url(server.url) as client:
        client.set("word", "here")
        for end in (server.stop, server.kill):
            end()
            with pytest.raises(redis.ConnectionError):
                client.get("word")
            server.start()
            assert client.get("word") == kept

        client.set("word", "gone")
        server.flush()
        assert client.get("word") is None


def test_valkey_says_why_it_did_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.servers._PATIENCE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ValkeyServer(tmp_path / "v", taken.getsockname()[1])
        with pytest.raises(RuntimeError, match=r"(?s)not ready within 1 seconds.*Address already in use"):
            server.start()

    assert processes_of(tmp_path) == []


def test_a_folder_whose_socket_would_have_too_long_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a path has at most 107 bytes"):
        PostgresServer(tmp_path / ("x" * 100))


def test_a_folder_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    for start in (lambda: PostgresServer(tmp_path), lambda: ValkeyServer(tmp_path, 1)):
        with pytest.raises(FileExistsError):
            start()

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_nothing_is_left_when_the_block_has_ended(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "p"), ValkeyServer(tmp_path / "v", free_port()):
        assert len(processes_of(tmp_path)) >= 4  # two servers and the shell before each

    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_both_die_with_the_process_that_started_them(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", STARTS_BOTH, str(tmp_path), str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "up\n"
        assert processes_of(tmp_path)
        starter.send_signal(number)

    assert _comes_true(lambda: processes_of(tmp_path) == [], seconds=10.0), processes_of(tmp_path)


def test_a_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "v", free_port()) as server, redis.Redis.from_url(server.url) as client:
        server.stop()
        with ThreadPoolExecutor(1) as thread:
            thread.submit(server.start).result()

        time.sleep(0.1)
        assert client.ping()


def _comes_true(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
