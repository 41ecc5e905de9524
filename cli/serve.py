"""`zerogate serve`, and the same service inside another program (`zerogate demo`, tests)."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from cli.embedded import embedded_service
from cli.encoders import settle
from service.settings import Settings

# Uvicorn would wait for open event streams for ever; they end by themselves within a poll.
_GRACE_SECONDS = 5
_START_SECONDS = 60.0


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM."""
    with embedded_service(settings) as service:
        threading.Thread(target=settle, args=[service.loading], daemon=True).start()
        run_server(service.app, settings.host, settings.port, service.stopping)


def run_server(app: FastAPI, host: str, port: int, stopping: threading.Event) -> None:
    """Serve the app until SIGINT or SIGTERM; `stopping` is set then."""
    # Uvicorn raises the signal once more when the server has shut down, and by default SIGTERM would end the process there:
    # before the workers have put their jobs back and the vectors are flushed.
    signal.signal(signal.SIGTERM, _leave)
    _server(app, host, port, stopping).run()


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


@contextmanager
def serving_in_background(settings: Settings) -> Iterator[str]:
    """The whole service with its HTTP server in a thread of this process; gives the base URL, on a free port where 0 is set."""
    with embedded_service(settings) as service:
        server = _server(service.app, settings.host, settings.port, service.stopping)
        thread = threading.Thread(target=server.run, name="http", daemon=True)
        thread.start()
        try:
            yield f"http://{settings.host}:{_wait_for_port(server, thread)}"
        finally:
            service.stopping.set()
            server.should_exit = True
            thread.join(_GRACE_SECONDS + 5)


class _Server(uvicorn.Server):
    """Tells open event streams to end as soon as a signal asks the server to."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._stopping.set()
        await super().shutdown(sockets)  # type: ignore[arg-type]


def _server(app: FastAPI, host: str, port: int, stopping: threading.Event) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # our own holds no query string
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return _Server(config, stopping)


def _wait_for_port(server: uvicorn.Server, thread: threading.Thread) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the HTTP server did not start")
        time.sleep(0.02)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port
