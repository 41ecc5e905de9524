"""A service with a collection of some hundred documents, and versions whose heads are drawn at random."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from sqlalchemy import select

from cli.embedded import embedded_service
from service.db import now
from service.ids import new_id
from service.jobs.lifecycle import LEASE
from service.models.operations import add_version, get_or_create_model
from service.resources import DEFAULT_PROJECT, Resources
from service.settings import Settings
from service.tables import Collection, EncoderRow, Job
from zerogate import Encoder
from zerogate.folded import Block, FoldedHead
from zerogate.head_files import dump_head
from zerogate.head_shapes import HeadShape
from zerogate.stacked import StackedHead
from zerogate.verdict import judge_values

WHO = ["a sailor", "the clerk", "my cousin", "one nurse", "the old king", "a pilot", "our baker"]
DOES = ["hums a song", "waits for rain", "sold the boat", "knits a scarf", "lost a ring", "paints doors", "counts sheep"]
WHERE = ["at night", "in the harbor", "by the river", "on a train", "near the mill", "in an attic"]
TEXTS = [f"{who} {does} {where}" for who, does, where in itertools.product(WHO, DOES, WHERE)]
QUERIES = ["who sings after dark?", "wool", "a boat that was sold", "insomnia", "trains and rain"]
SHAPES = {
    "plain": HeadShape(),
    "bias": HeadShape(bias=True),
    "concat": HeadShape(merge="concat", bias=True),
    "stacked": HeadShape(activation="relu"),
}


def drawn_head(name: str, *, seed: int) -> FoldedHead | StackedHead:
    draw = np.random.default_rng(seed)
    shape = SHAPES[name]
    block = Block(
        gate=draw.uniform(-0.7, 0.7, 384).astype(np.float32),
        weight=(draw.standard_normal((384, 384)) / 384**0.5).astype(np.float32),
        bias=(0.04 * draw.standard_normal(384)).astype(np.float32) if shape.bias else None,
    )
    return FoldedHead.fold([block], merge=shape.merge) if shape.folds else StackedHead(shape, (block,))


@dataclass(frozen=True)
class Service:
    """A whole service in this process; its resources are at hand."""

    http: httpx.Client
    resources: Resources

    def get(self, path: str, **params: Any) -> Any:
        return self._answer(self.http.get(path, params=params))

    def post(self, path: str, body: Any = None) -> Any:
        return self._answer(self.http.post(path, json=body or {}))

    @staticmethod
    def _answer(answer: httpx.Response) -> Any:
        assert answer.is_success, answer.text
        return answer.json()

    def settle(self) -> None:
        """Return when nothing is queued or running any more."""
        for state in ("running", "queued", "running"):
            for job in self.get("/v1/jobs", state=state)["data"]:
                for _ in range(1500):
                    if self.get(f"/v1/jobs/{job['id']}")["state"] not in ("queued", "running"):
                        break
                    time.sleep(0.02)

    def search(self, collection: str, **body: Any) -> Any:
        return self.post(f"/v1/collections/{collection}/search", body)

    def register(self, model: str, head: FoldedHead | StackedHead, shape: HeadShape, *, query_only: bool = False) -> None:
        """The next version, as a training leaves it."""
        with self.resources.database.write() as session:
            row = get_or_create_model(session, DEFAULT_PROJECT, model, encoder=None, default_encoder="all-MiniLM-L6-v2")
            fingerprint = session.get_one(EncoderRow, row.encoder_id).fingerprint
            facts = {"query_only": query_only}
            dumped = dump_head(head, shape=shape, strength=1.0, encoder_fingerprint=fingerprint, facts=facts)
            job = Job(id=new_id("job"), project_id=DEFAULT_PROJECT, kind="train", state="succeeded", request={}, model_id=row.id)
            job.created_at = job.finished_at = now()
            session.add(job)
            session.flush()
            key = f"heads/{job.id}/1"
            self.resources.artifacts.write(key, dumped.files)
            verdict = judge_values("mrr@10", np.zeros(8), np.zeros(8)).to_dict()
            told: dict[str, Any] = {"manifest": dumped.manifest, "scores": {"base": {}, "tuned": {}}, "verdict": verdict}
            add_version(session, row.id, job_id=job.id, artifact_key=key, strength=1.0, **told)

    @contextmanager
    def no_writer_gets_in(self, collection: str) -> Iterator[None]:
        """Inside, every other job that wants to write to the collection waits."""
        other = Job(id=new_id("job"), project_id=DEFAULT_PROJECT, kind="publish", state="running", token=1, request={})
        other.created_at, other.lease_expires_at = now(), now() + timedelta(minutes=5)
        with self.resources.database.write() as session:
            session.add(other)
            session.flush()
            session.scalars(select(Collection).filter_by(name=collection)).one().writer = f"{other.id}:1"
        try:
            yield
        finally:
            with self.resources.database.write() as session:
                row = session.get_one(Job, other.id)
                row.state, row.finished_at = "failed", now() - LEASE - timedelta(seconds=1)


@pytest.fixture(scope="module")
def service(warm: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("instant"), encoder_dtype="float32")
    warm(settings.data_dir)
    with embedded_service(settings) as embedded, TestClient(embedded.app) as http:
        yield Service(http, embedded.resources)


@pytest.fixture(scope="module")
def base(encoder: Encoder) -> dict[str, NDArray[np.float32]]:
    """The base vectors of all texts; this encoder has no prompts."""
    texts = [*TEXTS, *QUERIES]
    return dict(zip(texts, encoder.encode(texts, role="query"), strict=True))


_numbers = itertools.count()


@pytest.fixture
def shelf(service: Service) -> str:
    """A collection with all documents, bound to a model of the same name that has no version but the encoder."""
    name = f"shelf-{next(_numbers)}"
    with service.resources.database.write() as session:
        get_or_create_model(session, DEFAULT_PROJECT, name, encoder=None, default_encoder="all-MiniLM-L6-v2")
    service.post("/v1/collections", {"name": name, "model": name, "indexes": {"n": "integer"}})
    rows = [{"id": f"d{n}", "text": text, "n": n} for n, text in enumerate(TEXTS)]
    service.post(f"/v1/collections/{name}/documents", {"rows": rows})
    service.settle()
    return name
