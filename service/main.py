"""The FastAPI application. Importing it loads neither torch nor sentence-transformers."""

import importlib.metadata
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service.collections.endpoints import router as collections
from service.datasets.endpoints import router as datasets
from service.embeddings.endpoints import router as embeddings
from service.embeddings.metrics import EncoderMetrics
from service.encoders.endpoints import router as encoders
from service.health.endpoints import router as health
from service.http.error_answers import error_responses, install_error_answers
from service.http.middleware import install_middlewares
from service.jobs.endpoints import router as jobs
from service.jobs.metrics import JobMetrics
from service.models.endpoints import router as models
from service.resources import Resources


def create_app(resources: Resources, *, stopping: threading.Event | None = None) -> FastAPI:
    """The application over the given resources. `stopping` ends open event streams when it is set."""
    ended = stopping or threading.Event()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        ended.set()

    app = FastAPIOffline(
        redoc_url=None,
        title="Zerogate",
        summary="Fine-tune text embeddings without breaking them.",
        version=importlib.metadata.version("zerogate"),
        lifespan=lifespan,
        responses=error_responses(400, 404, 409, 503),
    )
    app.state.resources = resources
    app.state.stopping = ended
    for router in (datasets, encoders, jobs, models, embeddings, collections, health):
        app.include_router(router)
    install_error_answers(app)
    install_middlewares(app, max_upload_bytes=resources.settings.max_upload_bytes)
    app.state.metrics.registry.register(JobMetrics(resources.database))
    app.state.metrics.registry.register(EncoderMetrics(resources.models))
    return app
