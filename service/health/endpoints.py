"""Is the process alive, can it do its work, and what has it counted."""

from collections.abc import Callable
from typing import Literal

import anyio
import structlog
from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from service.errors import ServiceError, Unavailable
from service.http.dependencies import ResourcesDep
from service.http.error_answers import body_of, error_responses, headers_of
from service.http.metrics import HttpMetrics

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

router = APIRouter(tags=["health"])

_PATIENCE_SECONDS = 3.0


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Everything that the process needs answers."""

    status: Literal["ok"] = "ok"
    checks: dict[str, str]


@router.get("/livez")
async def livez() -> Alive:
    """200 as long as the process runs. Asks nobody else: a database that is down is no reason to restart this process."""
    return Alive()


@router.get("/readyz", response_model=Ready, responses=error_responses(503))
async def readyz(resources: ResourcesDep) -> Ready | JSONResponse:
    """200 when everything outside answers within three seconds; otherwise 503, and `checks` says what does not.

    Not being ready does not mean being useless: embeddings of what is loaded are served all the same.
    """
    checks = await _run_checks(
        {
            "database": resources.database.ping,
            "broker": resources.queue.ping,
            "vectors": resources.vectors.ping,
            "files": resources.artifacts.ping,
        }
    )
    failed = [name for name, found in checks.items() if found != "ok"]
    if not failed:
        return Ready(checks=checks)
    log.warning("readiness.failed", **{name: checks[name] for name in failed})
    error = Unavailable("not ready: " + "; ".join(f"{name}: {checks[name]}" for name in failed), code="not_ready")
    return JSONResponse(
        {"error": body_of(error).model_dump(), "checks": checks}, status_code=error.status, headers=headers_of(error)
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"}},
)
def metrics(request: Request) -> Response:
    """Counts and times since the process started."""
    http: HttpMetrics = request.app.state.metrics
    return Response(http.text(), media_type=http.content_type)


async def _run_checks(pings: dict[str, Callable[[], None]]) -> dict[str, str]:
    """What each check found, `ok` or what is wrong; they run at the same time."""
    found: dict[str, str] = {}

    async def check(name: str, ping: Callable[[], None]) -> None:
        found[name] = await _check(name, ping)

    async with anyio.create_task_group() as group:
        for name, ping in pings.items():
            group.start_soon(check, name, ping)
    return {name: found[name] for name in pings}


async def _check(name: str, ping: Callable[[], None]) -> str:
    # A ping that hangs must not hold one of the threads that run the endpoints, hence the limiter of its own.
    try:
        with anyio.fail_after(_PATIENCE_SECONDS):
            await to_thread.run_sync(ping, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    except TimeoutError:
        return f"no answer within {_PATIENCE_SECONDS:g} seconds"
    except ServiceError as error:
        return error.message
    except Exception as error:  # whatever it is, it is the finding of this check
        log.warning("readiness.check_failed", check=name, exc_info=True)
        return f"failed with {type(error).__name__}"
    return "ok"
