"""The API in a process of its own, with a full database behind it and no worker: jobs wait."""

import os
import random
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.api_data import Filled, Sizes, fill
from cli.encoders import register_encoders, settle, start_loading
from cli.migrate import migrate
from cli.serve import run_server
from service.artifacts import Artifacts, open_artifacts
from service.db import Database, make_engine
from service.embeddings.loaded_models import EncoderFacts
from service.encoders.operations import describe, ensure_project, register_encoder
from service.encoders.queries import facts_of
from service.logging import configure_logging
from service.main import create_app
from service.names import vector_name
from service.queue import CeleryQueue, make_celery
from service.resources import DEFAULT_PROJECT, open_resources
from service.settings import Settings
from service.vectors.edge import EdgeEngine
from service.vectors.engine import Points

POINTS = 1000  # of each collection that is searched
SEARCHED = 4


@dataclass(frozen=True)
class World:
    """What the requests are made of: what the database holds, and the way to put more into it."""

    filled: Filled
    database: Database
    artifacts: Artifacts
    encoder_id: str
    rng: random.Random
    new_collections: list[str] = field(default_factory=list)  # that were made by requests, and not deleted yet


def make_world(settings: Settings, sizes: Sizes, *, seed: int = 0) -> World:
    """Fill an empty installation. The first collections hold points; Qdrant knows the others not yet."""
    rng = random.Random(seed)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(make_engine(settings.sql_url))
    migrate(database.engine)
    spec = settings.encoders[0]
    with database.write() as session:
        ensure_project(session, DEFAULT_PROJECT)
        encoder = register_encoder(session, DEFAULT_PROJECT, spec, describe(spec))
        filled = fill(session, encoder.id, sizes, rng)
        facts = facts_of(encoder)
    _fill_vectors(settings.data_dir / "vectors", filled, facts)
    return World(filled, database, open_artifacts(settings), encoder.id, rng)


def _fill_vectors(folder: Path, filled: Filled, encoder: EncoderFacts) -> None:
    engine = EdgeEngine(folder)
    numbers = np.random.default_rng(0)
    for name, (owner, model) in [*filled.collections.items()][:SEARCHED]:
        physical, live = f"{DEFAULT_PROJECT}_{name}", vector_name(filled.live[model])
        engine.create_collection(physical, dim=encoder.dim, indexes={"document_id": "keyword"}, owner=owner)
        engine.add_vector_name(physical, live, dim=encoder.dim)
        vectors = numbers.normal(size=(POINTS, encoder.dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        payloads = [
            {"document_id": f"d{number}", "chunk": 0, "text_sha256": "0" * 64, "text": "a text " * 20, "metadata": {"lang": "en"}}
            for number in range(POINTS)
        ]
        ids = [f"00000000-0000-4000-8000-{number:012x}" for number in range(POINTS)]
        engine.upsert(physical, Points(ids, {"base": vectors, live: vectors}, payloads))
    engine.close()


def serve(settings: Settings, line: Connection) -> None:
    """Be the API, its encoder loaded, until SIGTERM; say when it is about to listen. Its log goes to a file."""
    log = os.open(settings.data_dir / "api.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    configure_logging(json=True)
    # In a broker inside the process, as the embedded profile has it. No worker takes the messages.
    resources = open_resources(settings, CeleryQueue(make_celery(settings.broker_url)))
    settle(start_loading(resources, register_encoders(resources)[0]))
    stopping = threading.Event()
    app = create_app(resources, stopping=stopping)
    line.send("ready")
    run_server(app, settings.host, settings.port, stopping)
