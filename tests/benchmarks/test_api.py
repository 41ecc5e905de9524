"""The measurement of the API: nothing is forgotten, waiting counts, wrong answers are noticed, rows are of a real size."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks.api_data import manifest
from benchmarks.api_load import Request, drive, latencies
from benchmarks.api_requests import EXCLUDED, MAKERS, plan

ROOT = Path(__file__).parents[2]
PAUSE = 0.1


class OneAtATime(BaseHTTPRequestHandler):
    """Answers a list of two rows after a pause, one request after the other; /missing is 404."""

    protocol_version = "HTTP/1.1"
    turn = threading.Lock()

    def do_GET(self) -> None:
        with self.turn:
            time.sleep(PAUSE)
        content = json.dumps({"data": [1, 2]}).encode()
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), OneAtATime)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_waits_behind_other_requests_counts_as_waiting(slow_url: str) -> None:
    found = drive(slow_url, [Request("GET", "/", rows=2)] * 8, rate=100.0)

    # The last is due after 0.07 s and its turn comes after seven pauses.
    assert found.requests == 8
    assert found.max >= 1000 * (8 * PAUSE - 0.07)
    assert found.p50 >= 1000 * (4 * PAUSE - 0.07)


@pytest.mark.parametrize(
    ("request_", "said"),
    [(Request("GET", "/missing"), "GET /missing: 404"), (Request("GET", "/", rows=3), "GET /: 2 rows, 3 are there")],
)
def test_a_wrong_answer_is_an_error_and_not_a_latency(slow_url: str, request_: Request, said: str) -> None:
    with pytest.raises(RuntimeError, match=f"1 answers were wrong, the first: {said}"):
        drive(slow_url, [Request("GET", "/"), request_], rate=100.0)


def test_the_99th_percentile_is_one_that_was_measured() -> None:
    found = latencies(np.arange(1.0, 201.0))

    assert (found.p50, found.p99, found.max) == (101.0, 199.0, 200.0)  # of 200, two are slower or as slow


def test_an_endpoint_that_nobody_thought_of_is_an_error() -> None:
    document: dict[str, dict[str, dict[str, object]]] = {"paths": {}}
    for method, path in [*MAKERS, *EXCLUDED]:
        document["paths"].setdefault(path, {})[method.lower()] = {}
    assert plan(document) == list(MAKERS)

    document["paths"]["/v1/news"] = {"get": {}}
    with pytest.raises(RuntimeError, match=r"without requests: \[\('GET', '/v1/news'\)\]"):
        plan(document)

    del document["paths"]["/v1/news"], document["paths"]["/livez"]
    with pytest.raises(RuntimeError, match=r"not in the document: \[\('GET', '/livez'\)\]"):
        plan(document)


def test_a_manifest_is_as_large_as_a_real_one() -> None:
    assert 5_000 < len(json.dumps(manifest(random.Random(0), "faq", 1))) < 20_000


def test_every_endpoint_is_measured_and_told_in_the_last_line() -> None:
    command = [sys.executable, "-m", "benchmarks.api", "--json", "--requests", "6", "--jobs", "200", "--versions", "60"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert set(found) == {f"{method} {path}" for method, path in MAKERS}
    assert all(milliseconds > 0 for milliseconds in found.values())
