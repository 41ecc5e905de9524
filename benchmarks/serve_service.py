"""The two services of `benchmarks.serve`, each in a process of its own: ours, and one that encodes every text by itself."""

import gc
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sqlalchemy import select
from starlette.responses import Response

from cli.encoders import register_encoders, settle, start_loading
from cli.migrate import migrate
from cli.serve import run_server
from service.artifacts import open_artifacts
from service.db import Database, make_engine, now
from service.embeddings.answers import answer
from service.embeddings.operations import Embedded, check_dimensions, check_texts
from service.embeddings.schemas import EmbeddingsAnswer, EmbeddingsRequest
from service.encoders.operations import describe, ensure_project, register_encoder
from service.http.dependencies import ProjectId, ResourcesDep
from service.http.error_answers import install_error_answers
from service.http.middleware import install_middlewares
from service.ids import new_id
from service.logging import configure_logging
from service.main import create_app
from service.models.operations import add_model
from service.queue import CeleryQueue, make_celery
from service.resources import DEFAULT_PROJECT, Resources, open_resources
from service.settings import Settings
from service.tables import Version
from zerogate.encoder_files import EncoderFiles
from zerogate.folded import FoldedHead
from zerogate.head_files import dump_head
from zerogate.head_shapes import HeadShape

_START_SECONDS = 120.0


def seeded_head(number: int, dim: int) -> FoldedHead:
    """A head that turns vectors a little, another one for every number."""
    noise = np.random.default_rng(number).normal(size=(dim, dim), scale=0.3 / np.sqrt(dim))
    return FoldedHead((np.eye(dim) + noise).astype(np.float32), None)


def model_name(number: int) -> str:
    """Of the model that serves head `number`."""
    return f"model-{number}"


def fill(settings: Settings, *, heads: int) -> EncoderFiles:
    """An installation with so many models, each with a head that is live. Gives the encoder's files."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database, artifacts = Database(make_engine(settings.sql_url)), open_artifacts(settings)
    migrate(database.engine)
    files = describe(settings.encoders[0])
    with database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
        encoder = register_encoder(session, DEFAULT_PROJECT, settings.encoders[0], files)
        for number in range(heads):
            model = add_model(session, DEFAULT_PROJECT, model_name(number), encoder)
            head, key = seeded_head(number, files.dim), f"heads/seeded/{number}"
            dumped = dump_head(head, shape=HeadShape(), strength=1.0, encoder_fingerprint=files.fingerprint, facts={})
            artifacts.write(key, dumped.files)
            zero = session.scalars(select(Version).filter_by(model_id=model.id)).one()
            version = Version(id=new_id("ver"), model_id=model.id, number=1, created_at=now(), strength=1.0)
            version.artifact_key, version.manifest, version.scores = key, dumped.manifest, zero.scores
            session.add(version)
            model.live_version = model.last_version = 1
    database.close()
    return files


@contextmanager
def running(serve: Callable[[Settings], None], settings: Settings) -> Iterator[int]:
    """Run `serve` in a fresh process; gives the port where it answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(settings.model_copy(update={"port": port}),))
    process.start()
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.join()


def _wait_for(port: int, process: Any) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/livez").raise_for_status()
            return
        except httpx.TransportError:
            if time.monotonic() > deadline or not process.is_alive():
                raise RuntimeError(f"the service did not answer within {_START_SECONDS:g} seconds") from None
            time.sleep(0.1)


def serve_ours(settings: Settings, known: tuple[str, ...] = ()) -> None:
    """Be the service. known: texts whose vectors shall be in its cache."""
    resources = _opened(settings)
    facts = register_encoders(resources)[0]
    resources.models.encoder(facts).encode(known, role="query")
    settle(start_loading(resources, facts))
    stopping = threading.Event()
    run_server(create_app(resources, stopping=stopping), settings.host, settings.port, stopping)


def serve_peer(settings: Settings) -> None:
    """Be a service with the same HTTP stack, the same questions to the database and the same heads, that encodes each text alone.

    One call of sentence-transformers' `encode` at a time, in fp32: its model must not be used by two threads.
    """
    resources = _opened(settings)
    register_encoders(resources)
    if settings.cpu_threads is not None:
        torch.set_num_threads(settings.cpu_threads)
    encoder = SentenceTransformer(str(describe(settings.encoders[0]).path), device="cpu", local_files_only=True)
    lock = threading.Lock()
    gc.collect()
    gc.freeze()  # as ours

    def encode(texts: list[str]) -> tuple[NDArray[np.float32], int]:
        with lock:
            vectors = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
            tokens = encoder.tokenize(texts)["input_ids"].numel()
        return vectors, tokens

    app = FastAPI()
    app.state.resources = resources

    @app.post("/v1/embeddings", response_model=EmbeddingsAnswer)
    def create(body: EmbeddingsRequest, resources: ResourcesDep, project_id: ProjectId) -> Response:
        texts = check_texts(body.input)
        version = resources.known_versions.choose(project_id, body.model, collection=body.collection)
        check_dimensions(version, body.dimensions)
        base, tokens = encode(texts)
        vectors = resources.models.vectors(version, base, role=body.input_type, strength=body.strength)
        return answer(body, version, Embedded(vectors, tokens))

    @app.get("/livez")
    def livez() -> str:
        return "ok"

    install_error_answers(app)
    install_middlewares(app, max_upload_bytes=settings.max_upload_bytes)
    run_server(app, settings.host, settings.port, threading.Event())


def _opened(settings: Settings) -> Resources:
    log = os.open(settings.data_dir / "service.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    configure_logging(json=True)
    return open_resources(settings, CeleryQueue(make_celery(settings.broker_url)))
