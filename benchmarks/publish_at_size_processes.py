"""The processes of `benchmarks.publish_at_size`: a Qdrant stand-in, the API, a worker; and their memory, seen from outside."""

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import structlog
import uvicorn

from benchmarks.publish_at_size_data import SeededModels
from service.main import create_app
from service.resources import Resources, open_resources
from service.settings import Settings
from service.tables import JobKind
from workers.tasks import run_here, run_job

_LOOK_SECONDS = 0.01
_START_SECONDS = 60.0


@dataclass
class Growth:
    """What a process held at first, and the most that it held since: anonymous memory in 10^6 bytes."""

    idle_mb: float
    peak_mb: float

    @property
    def growth_mb(self) -> float:
        return self.peak_mb - self.idle_mb


@contextmanager
def anonymous_memory(pid: int) -> Iterator[Growth]:
    """Look at a process's anonymous memory a hundred times a second while the block runs."""
    idle = _rss_anon_mb(pid)
    found = Growth(idle, idle)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            found.peak_mb = max(found.peak_mb, _rss_anon_mb(pid))

    thread = threading.Thread(target=look, name=f"memory of {pid}", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _rss_anon_mb(pid: int) -> float:
    """Memory that no file stands behind."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024 / 1e6


def cpu_seconds(pid: int) -> float:
    """The time on a processor that a process has had since its start, in steps of a tick (10 ms)."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")  # in user mode and in the kernel


@dataclass(frozen=True)
class Child:
    """A process that we started, and the line to it."""

    pid: int
    line: Connection


@contextmanager
def child(target: Callable[[Settings, Connection], None], settings: Settings) -> Iterator[Child]:
    """Run `target` in a fresh process that shares nothing with this one; it is stopped after the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(settings, theirs), daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    try:
        yield Child(process.pid, ours)
    finally:
        process.terminate()
        process.join()
        ours.close()


def serve(settings: Settings, line: Connection) -> None:
    """Be the API: tell the base URL when it answers, then go on for ever."""
    resources = _opened(settings)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(resources), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    line.send(f"http://127.0.0.1:{listening.getsockname()[1]}")  # what comes from now on waits in the socket's queue
    server.run(sockets=[listening])


def work(settings: Settings, line: Connection) -> None:
    """Be a worker: say when it is ready, run the job whose id comes, and say when that has ended."""
    resources = _opened(settings)
    resources.vectors.ping()
    line.send("ready")
    run_job(resources, line.recv(), threading.Event(), run_here)
    line.send("ended")


@contextmanager
def counting_standin() -> Iterator[str]:
    """A stand-in of a Qdrant server, which counts points, in a process of its own; gives its URL."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.qdrant_standin", "--counting", "--port", str(port)]
    process = subprocess.Popen(command)  # noqa: S603 (the command is one of this file)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            httpx.get(f"{url}/collections/none/exists")
            return
        except httpx.ConnectError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the stand-in did not answer within {_START_SECONDS:g} seconds") from None
            time.sleep(0.05)


class _NoQueue:
    """A queue without workers: the benchmark runs the job itself."""

    def send(self, job_id: str, kind: JobKind) -> None:
        """Nobody waits for it."""

    def waiting(self, queue: str) -> int:  # noqa: ARG002 (a queue's signature)
        return 0

    def ping(self) -> None:
        """It always answers."""


def _opened(settings: Settings) -> Resources:
    # One line of the log for each request and job goes nowhere: the last line of the output is the figures'.
    structlog.configure(processors=[_drop])
    resources = open_resources(settings, _NoQueue())
    resources.models.close()  # one process may open a cache's folder once
    return replace(resources, models=SeededModels(settings, resources.artifacts))


def _drop(_logger: object, _method: str, _event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent
