"""A whole production installation out of real processes: servers, API, workers; and an orchestrator that restarts workers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg
from psycopg.rows import dict_row

from benchmarks.chaos_hook import JOURNAL
from benchmarks.servers import PostgresServer, ValkeyServer

WORKERS = 2
_ROOT = Path(__file__).parents[1]
_ZEROGATE = [sys.executable, "-c", "from cli.main import main; main()"]
_SITECUSTOMIZE = "from benchmarks.chaos_hook import install\n\ninstall()\n"
_START_SECONDS = 90.0
_STOP_SECONDS = 40.0
_RESTART_SECONDS = 1.5  # after a worker's death; an orchestrator takes about that long
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Exit:
    """A process that ended otherwise than by SIGKILL, and without being asked."""

    time: float
    name: str
    code: int


class Process:
    """One of our own processes; its output goes to a log."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, again or for the first time."""
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C is for us.
            self._process = subprocess.Popen(  # noqa: S603 (our own commands)
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return None if self._process is None else self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> int:
        """Ask it to end; gives the exit code, that of a kill where it took too long."""
        self.ask_to_end()
        return self.wait()

    def ask_to_end(self) -> None:
        """Send it SIGTERM, and wake it up for that."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)

    def wait(self) -> int:
        """Wait for its end; gives the exit code, that of a kill where it took too long."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Installation:
    """Servers and processes in one folder. `with running(folder) as installation`."""

    def __init__(self, folder: Path, postgres: PostgresServer, valkey: ValkeyServer) -> None:
        self.folder = folder
        self.postgres = postgres
        self.valkey = valkey
        self.journal = _made(folder / "journal")
        self.data = folder / "data"
        self.cache = folder / "cache"
        self.qdrant_points = folder / "qdrant"
        self.exits: list[Exit] = []
        self._logs = _made(folder / "logs")
        (_made(folder / "site") / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        self._database = postgres.create_database("zerogate")
        qdrant_port, port = _free_port(), _free_port()
        self.qdrant_url = f"http://127.0.0.1:{qdrant_port}"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_ANSWER_SECONDS)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ZEROGATE_")},
            "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{_ROOT}",
            "ZEROGATE_DATABASE_URL": self._database,
            "ZEROGATE_BROKER_URL": valkey.url,
            "ZEROGATE_QDRANT_URL": self.qdrant_url,
            "ZEROGATE_DATA_DIR": str(self.data),
            "ZEROGATE_CACHE_DIR": str(self.cache),
            "ZEROGATE_PORT": str(port),
            "ZEROGATE_ENCODER_DTYPE": "float32",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        standin = ["-m", "benchmarks.qdrant_standin", "--port", str(qdrant_port), "--path", str(self.qdrant_points)]
        self.qdrant = self._process("qdrant", [sys.executable, *standin])
        self.api = self._process("api", [*_ZEROGATE, "api"])
        watched = {JOURNAL: str(self.journal)}
        self.workers = [
            self._process(f"worker-{n}", [*_ZEROGATE, "worker", "--queues", "gpu,cpu"], watched) for n in range(WORKERS)
        ]
        self._ended = threading.Event()
        self._orchestrator = threading.Thread(target=self._keep_workers, name="orchestrator", daemon=True)

    def start(self) -> None:
        """Start everything, and return when the API is ready."""
        self.qdrant.start()
        self.command("migrate")
        for process in (self.api, *self.workers):
            process.start()
        self._orchestrator.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the API was not ready within {_START_SECONDS:g} s; see {self._logs}")
            time.sleep(0.2)

    def command(self, *arguments: str) -> None:
        """Run `zerogate` with these arguments to its end. Raises CalledProcessError when it fails."""
        with (self._logs / f"{arguments[0]}.log").open("ab") as log:
            subprocess.run(  # noqa: S603 (our own command)
                [*_ZEROGATE, *arguments], env=self._environment, stdout=log, stderr=log, check=True, timeout=_START_SECONDS
            )

    def stop_workers(self) -> list[int]:
        """Ask the workers to end, for good; gives their exit codes."""
        self._ended.set()
        self._orchestrator.join()
        for worker in self.workers:
            worker.ask_to_end()
        return [worker.wait() for worker in self.workers]

    def close(self) -> None:
        """End all that this started, but the servers."""
        self._ended.set()
        if self._orchestrator.is_alive():
            self._orchestrator.join()
        for process in (*self.workers, self.api):
            if process.code() is None:
                process.ask_to_end()
        for process in (*self.workers, self.api):
            process.wait()
        self.qdrant.stop()  # last: the others use it to their end
        self.http.close()

    def rows(self, statement: LiteralString) -> list[dict[str, Any]]:
        """Ask the database by plain SQL. Raises psycopg.OperationalError while it is away."""
        url = self._database.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(url, row_factory=dict_row) as connection:
            return connection.execute(statement).fetchall()

    def _process(self, name: str, command: list[str], more: dict[str, str] | None = None) -> Process:
        return Process(name, command, {**self._environment, **(more or {})}, self._logs / f"{name}.log")

    def _is_ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _keep_workers(self) -> None:
        """Start workers again that have ended."""
        died: dict[str, float] = {}
        while not self._ended.wait(0.05):
            for worker in self.workers:
                code = worker.code()
                if code is None:
                    continue
                if worker.name not in died:
                    died[worker.name] = time.monotonic()
                    if code != -signal.SIGKILL:
                        self.exits.append(Exit(time.time(), worker.name, code))
                elif time.monotonic() > died[worker.name] + _RESTART_SECONDS:
                    del died[worker.name]
                    worker.start()


@contextmanager
def running(folder: Path) -> Iterator[Installation]:
    """Start an installation in an empty folder whose path is short (a socket lies in it), and end it after the block."""
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(folder / "pg"))
        valkey = stack.enter_context(ValkeyServer(folder / "vk", _free_port()))
        installation = Installation(folder, postgres, valkey)
        stack.callback(installation.close)
        yield installation


def children(pid: int) -> list[int]:
    """The processes that this process has started and that still run: of a worker, its trainers."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # gone meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(status.parent.name))
    return found


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
