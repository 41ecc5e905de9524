"""Counts and times of HTTP requests, in a registry of the app's own: tests make many apps in one process."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from starlette.types import Scope

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LABELS = ("method", "route", "status")
_UNKNOWN_ROUTE = "unknown"


class HttpMetrics:
    """What `/metrics` shows. `registry` takes further metrics of the service."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("zerogate_http_requests", "HTTP requests answered", _LABELS, registry=self.registry)
        self._seconds = Histogram(
            "zerogate_http_request_seconds", "Seconds until the last byte of the answer was sent", _LABELS, registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def record(self, scope: Scope, *, status: int | None, seconds: float) -> None:
        """Count one request; `status` is None when it ended without an answer."""
        method = scope["method"] if scope["method"] in _METHODS else "other"  # a stranger must not make labels without end
        labels = (method, route_of(scope), "none" if status is None else str(status))
        self._requests.labels(*labels).inc()
        self._seconds.labels(*labels).observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


def route_of(scope: Scope) -> str:
    """The template of the route that was chosen (`/v1/jobs/{job_id}`); all unknown paths share one."""
    if "endpoint" not in scope:
        return _UNKNOWN_ROUTE
    path: str = scope["path"]
    route = scope.get("route")
    if route is None:
        return path  # FastAPI's own pages have no parameters
    # A route knows its path only without the prefix under which its router was included, so that comes from the request's path.
    template: str = route.path_format
    filled = template.format(**scope["path_params"])
    return path.removesuffix(filled) + template if path.endswith(filled) else template
