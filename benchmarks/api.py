"""How long every endpoint takes to answer at a steady rate, with years of rows in the database.

    python -m benchmarks.api [--json] [--postgres] [--requests N] [--rate R] [--jobs N] [--versions N]

A process of its own is the API as `zerogate serve` runs it, over SQLite (or a real PostgreSQL) and Qdrant Edge, without a worker.
Each operation of its openapi.json gets its requests alone, `rate` a second, sent whether the ones before were answered or not; an
answer's time counts from the moment its request was due. GET /livez, which asks nobody, is the floor. Each answer is checked
for its status, a list's for the number of its rows. With --json the last line is {endpoint: p99 in milliseconds}.
"""

import argparse
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.api_data import Sizes
from benchmarks.api_load import Latencies, drive
from benchmarks.api_requests import EXCLUDED, MAKERS, Endpoint, plan
from benchmarks.api_service import World, make_world, serve
from benchmarks.publish_at_size_processes import child
from benchmarks.servers import PostgresServer
from service.settings import Settings

LIMIT_MILLISECONDS = 50.0
_WARM_UP = 10  # requests to each endpoint, unmeasured


def measure(folder: Path, *, sizes: Sizes, requests: int, rate: float, postgres: bool) -> dict[Endpoint, Latencies]:
    """The latencies of every endpoint, in an empty folder with a short path (a socket may lie in it).

    Raises RuntimeError where an answer is wrong, and for an endpoint that nobody has written requests for.
    """
    with _running(folder, sizes, postgres=postgres) as (world, url):
        return {
            endpoint: _measure_one(world, url, endpoint, requests=requests, rate=rate)
            for endpoint in plan(httpx.get(f"{url}/openapi.json").json())
        }


def _measure_one(world: World, url: str, endpoint: Endpoint, *, requests: int, rate: float) -> Latencies:
    made = MAKERS[endpoint](world, _WARM_UP + requests)
    drive(url, made[:_WARM_UP], rate=rate)
    return drive(url, made[_WARM_UP:], rate=rate)


@contextmanager
def _running(folder: Path, sizes: Sizes, *, postgres: bool) -> Iterator[tuple[World, str]]:
    with ExitStack() as stack:
        database_url = None
        if postgres:
            database_url = stack.enter_context(PostgresServer(folder / "pg")).create_database("zerogate")
        settings = Settings(data_dir=folder / "data", database_url=database_url, port=_free_port())
        world = make_world(settings, sizes)
        stack.callback(world.database.close)
        stack.enter_context(child(serve, settings)).line.recv()
        url = f"http://{settings.host}:{settings.port}"
        _wait_for(url)
        yield world, url


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _wait_for(url: str) -> None:
    while True:
        try:
            httpx.get(f"{url}/livez")
            return
        except httpx.ConnectError:
            time.sleep(0.05)


def _show(found: dict[Endpoint, Latencies], *, title: str) -> None:
    table = Table("endpoint", title=title)
    for name in ("p50", "p99", "max"):
        table.add_column(f"{name} ms", justify="right")
    for (method, path), one in found.items():
        colour = "red" if one.p99 > LIMIT_MILLISECONDS else "default"
        table.add_row(f"{method} {path}", f"{one.p50:.1f}", f"[{colour}]{one.p99:.1f}[/]", f"{one.max:.1f}")
    Console(width=100).print(table)


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description="Latencies of every endpoint with a full database.")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL instead of SQLite")
    parser.add_argument("--requests", type=int, default=200, help="to each endpoint")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--jobs", type=int, default=Sizes.jobs)
    parser.add_argument("--versions", type=int, default=Sizes.versions)
    given = parser.parse_args()
    sizes = Sizes(jobs=given.jobs, versions=given.versions)
    with tempfile.TemporaryDirectory(prefix="api-") as folder:
        found = measure(Path(folder), sizes=sizes, requests=given.requests, rate=given.rate, postgres=given.postgres)
    where = "PostgreSQL" if given.postgres else "SQLite"
    _show(found, title=f"{where}, {sizes.jobs:,} jobs, {sizes.versions:,} versions; {given.rate:g} requests a second")
    for (method, path), reason in EXCLUDED.items():
        print(f"not measured: {method} {path}: {reason}")
    if given.json:
        print(json.dumps({f"{method} {path}": round(one.p99, 2) for (method, path), one in found.items()}))


if __name__ == "__main__":
    main()
