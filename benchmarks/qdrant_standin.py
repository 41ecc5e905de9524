"""A stand-in for the Qdrant server: a real HTTP server that answers the REST requests which `service/vectors/server.py` makes.

What answers is qdrant-client's local engine, or with `--counting` a book that keeps ids and names only. Covered: the paths,
bodies, answers and status codes that our engine meets. Not covered: HNSW, quantization, optimisers, durability, clusters,
keys, and speed. A request that our engine has no business making is answered with 501, and so is a write that does not wait.

    with standin() as server:                           # in this process, in a thread
        ServerEngine.connect(server.url)
    python -m benchmarks.qdrant_standin --port 6333     # as a process; --path keeps the points in a folder
"""

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.qdrant_standin_answers import Asked, Refusal
from benchmarks.qdrant_standin_counting import CountingAnswers
from benchmarks.qdrant_standin_local import LocalAnswers

_START_SECONDS = 20.0
_LOUD = "THIS IS NOT QDRANT: it is a stand-in"
_COLLECTION = "/collections/{collection}"
# Method and path -> the method of the answers that gives the result.
_ROUTES = {
    ("GET", f"{_COLLECTION}/exists"): "exists",
    ("GET", _COLLECTION): "info",
    ("PUT", _COLLECTION): "create",
    ("PATCH", _COLLECTION): "update",
    ("DELETE", _COLLECTION): "drop",
    ("POST", f"{_COLLECTION}/points"): "retrieve",
    ("POST", f"{_COLLECTION}/points/scroll"): "scroll",
    ("POST", f"{_COLLECTION}/points/count"): "count",
    ("POST", f"{_COLLECTION}/points/query"): "query",
}
# The same for what takes `wait`. Without it a server answers before it has applied anything, and drops bad points silently.
_WRITES = {
    ("PUT", f"{_COLLECTION}/index"): "create_index",
    ("PUT", f"{_COLLECTION}/vectors/{{name}}"): "create_name",
    ("DELETE", f"{_COLLECTION}/vectors/{{name}}"): "drop_name",
    ("PUT", f"{_COLLECTION}/points"): "upsert",
    ("PUT", f"{_COLLECTION}/points/vectors"): "set_vectors",
    ("POST", f"{_COLLECTION}/points/delete"): "delete",
}


class Answers(Protocol):
    """What gives the results: a method for each operation of _ROUTES and _WRITES; raises Refusal."""

    def close(self) -> None:
        """Give the files back."""


@dataclass(frozen=True)
class Recorded:
    """A request as it came. path: percent-encoding undone, without the query string."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes


@dataclass
class Standin:
    """A stand-in that runs in this process.

    requests: all that came since the start. refusals: what the next requests get, one each; None lets one through.
    """

    url: str = ""
    requests: list[Recorded] = field(default_factory=list)
    refusals: list[Refusal | None] = field(default_factory=list)


@contextmanager
def standin(path: Path | None = None) -> Iterator[Standin]:
    """Run a stand-in on a free port of this machine, in a thread. path: a folder for the points, else they are in memory."""
    answers = LocalAnswers(path)
    made = Standin()
    server = _server(_app(answers, made), port=0)
    thread = threading.Thread(target=server.run, name="qdrant-standin", daemon=True)
    thread.start()
    try:
        made.url = f"http://127.0.0.1:{_wait_for_port(server, thread)}"
        yield made
    finally:
        server.should_exit = True
        thread.join(_START_SECONDS)
        answers.close()


def main() -> None:
    """Run as a process until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="A stand-in for the Qdrant server, for benchmarks.")
    parser.add_argument("--port", type=int, required=True)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--path", type=Path, help="a folder for the points; without one they are in memory")
    kind.add_argument("--counting", action="store_true", help="keep ids and vector names only")
    given = parser.parse_args()
    answers = CountingAnswers() if given.counting else LocalAnswers(given.path)
    try:
        _server(_app(answers, None), port=given.port).run()
    finally:
        answers.close()


def _app(answers: Answers, made: Standin | None) -> Starlette:
    """The application. made: where to record, and whose refusals to give; None in a process, which may run for hours."""

    # Coroutines, so that all requests run one after the other in the server's thread: the local engine is not thread-safe.
    def endpoint(operation: str | None, *, waits: bool) -> Any:
        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            body = await request.body()
            if made is not None:
                made.requests.append(Recorded(request.method, request.url.path, dict(request.query_params), body))
                refusal = made.refusals.pop(0) if made.refusals else None
                if refusal is not None:
                    return _refuse(refusal)
            if waits and request.query_params.get("wait") != "true":
                return _refuse(Refusal(501, f"{_LOUD} and only takes writes with wait=true"))
            give = getattr(answers, operation or "", None)
            if give is None:
                return _refuse(Refusal(501, f"{_LOUD} and has no answer to {request.method} {request.url.path}"))
            try:
                result = give(Asked(body=body, **request.path_params))
            except Refusal as refusal:
                return _refuse(refusal)
            return _json(200, {"result": result, "status": "ok", "time": time.perf_counter() - started})

        return answer

    routes = [
        Route(path, endpoint(operation, waits=waits), methods=[method])
        for table, waits in ((_ROUTES, False), (_WRITES, True))
        for (method, path), operation in table.items()
    ]
    everything = ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"]
    return Starlette(routes=[*routes, Route("/{anything:path}", endpoint(None, waits=False), methods=everything)])


def _refuse(refusal: Refusal) -> Response:
    if refusal.status == 501:
        print(refusal.sentence, flush=True)
    answer = _json(refusal.status, {"status": {"error": refusal.sentence}, "time": 0.0})
    if refusal.retry_after is not None:
        answer.headers["Retry-After"] = str(refusal.retry_after)
    return answer


def _json(status: int, content: object) -> Response:
    return Response(to_json(content), status_code=status, media_type="application/json")


def _server(app: Starlette, *, port: int) -> uvicorn.Server:
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False, lifespan="off")
    return uvicorn.Server(config)


def _wait_for_port(server: uvicorn.Server, thread: threading.Thread) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the stand-in did not start")
        time.sleep(0.01)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


if __name__ == "__main__":
    main()
