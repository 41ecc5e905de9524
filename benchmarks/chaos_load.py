"""What the chaos benchmark asks of the service, and what must be true of the answers in the end.

Workers finish jobs in any order. So that the end is known all the same, documents come in batches of their own ids, and a batch
is touched again only when what was asked before has ended.
"""

import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

COLLECTION = "notes"
FIXED_DOCUMENTS = 50

_PATIENCE_SECONDS = 60.0  # with a service whose database is away for seconds
_BATCH = 10
_RECIPE = {"epochs": 3, "batch_size": 16}

Text = str | None
"""A document's text; None where there is no document."""


@dataclass
class _Batch:
    """Documents that are written and deleted together. asked: the job that has not ended yet, and what it makes of them."""

    texts: dict[str, Text]
    asked: tuple[str, dict[str, Text]] | None = None


@dataclass
class Load:
    """A client of the service. accepted: job ids; cancelled: those that it cancelled."""

    http: httpx.Client
    rng: random.Random
    accepted: list[str] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    _batches: list[_Batch] = field(default_factory=list)
    _unsure: dict[str, frozenset[Text]] = field(default_factory=dict)

    def upload(self) -> None:
        """The datasets that all trainings use."""
        self._upload("pairs", "pairs", [{"anchor": query, "positive": text} for query, text in _pairs()])
        self._upload("scored", "guard", list(_guard()))
        self._upload("documents", "documents", [{"id": name, "text": text} for name, text in fixed_documents().items()])

    def train(self, seed: int, *, model: str = "main", publish: bool = True, promote: str = "always") -> str:
        """Ask for a training, and with `publish` for its documents in the collection."""
        body: dict[str, Any] = {"model": model, "dataset": "pairs", "guard": "guard", "recipe": {**_RECIPE, "seed": seed}}
        body |= {"promote": promote, "publish": {"collection": COLLECTION, "documents": "documents"} if publish else None}
        return self._submitted("POST", "/v1/jobs", body)

    def write(self, number: int) -> str:
        """Ask for a new batch of documents to be written."""
        texts: dict[str, Text] = dict(batch_documents(number))
        batch = _Batch(dict.fromkeys(texts))
        self._batches.append(batch)
        return self._write(batch, texts)

    def change(self) -> None:
        """Ask for a batch that is at rest to be changed: other texts, or documents deleted by id."""
        resting = [batch for batch in self._batches if batch.asked is None]
        if not resting:
            return
        batch = self.rng.choice(resting)
        chosen = self.rng.sample(sorted(batch.texts), _BATCH // 2)
        if self.rng.random() < 0.5:
            self._write(batch, {name: f"{name} has been told anew" for name in chosen})
        else:
            job = self._submitted("DELETE", f"/v1/collections/{COLLECTION}/documents", {"ids": chosen})
            batch.asked = job, dict.fromkeys(chosen)

    def cancel(self, job_id: str) -> None:
        """Cancel the job, if it has not ended yet."""
        self.cancelled.add(job_id)
        answer = self._answer("POST", f"/v1/jobs/{job_id}/cancel", {})
        if answer.status_code not in (200, 409):
            raise RuntimeError(f"a cancel was answered by {answer.status_code}: {answer.text}")

    def settle(self, states: Mapping[str, str]) -> None:
        """Take note of what has ended. states: of all jobs, by id."""
        for batch in list(self._batches):
            if batch.asked is None:
                continue
            job_id, after = batch.asked
            if states.get(job_id) == "succeeded":
                batch.texts, batch.asked = {**batch.texts, **after}, None
            elif states.get(job_id) in ("failed", "cancelled"):  # perhaps done, perhaps in part: let it be
                self._unsure |= {name: frozenset({text, after.get(name, text)}) for name, text in batch.texts.items()}
                self._batches.remove(batch)

    def expected(self) -> dict[str, frozenset[Text]]:
        """What each document's text may be, when every job has ended and was settled."""
        sure = {name: frozenset({text}) for batch in self._batches for name, text in batch.texts.items()}
        return {**{name: frozenset[Text]({text}) for name, text in fixed_documents().items()}, **self._unsure, **sure}

    def _write(self, batch: _Batch, texts: dict[str, Text]) -> str:
        rows = [{"id": name, "text": text} for name, text in texts.items()]
        job = self._submitted("POST", f"/v1/collections/{COLLECTION}/documents", {"rows": rows})
        batch.asked = job, texts
        return job

    def _upload(self, kind: str, name: str, rows: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(row) + "\n" for row in rows)
        params, headers = {"kind": kind, "name": name}, {"content-type": "application/x-ndjson"}
        self.http.post("/v1/datasets", params=params, content=content, headers=headers).raise_for_status()

    def _submitted(self, method: str, path: str, body: dict[str, Any]) -> str:
        answer = self._answer(method, path, body)
        if answer.status_code != 202:
            raise RuntimeError(f"{method} {path} was answered by {answer.status_code}: {answer.text}")
        job_id: str = answer.json()["id"]
        self.accepted.append(job_id)
        return job_id

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
        """Ask again as long as the service says that this may help. What is asked twice here does no harm."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            answer = self.http.request(method, path, json=body)
            if answer.status_code != 503 or time.monotonic() > deadline:
                return answer
            time.sleep(0.5)


def fixed_documents() -> dict[str, str]:
    """The documents that trainings publish, by id."""
    return {f"fixed-{n}": f"document number {n} tells of {n * n}" for n in range(FIXED_DOCUMENTS)}


def batch_documents(number: int) -> dict[str, str]:
    """The documents of one batch, by id."""
    return {f"batch-{number}-{n}": f"note {n} of round {number} says {number * _BATCH + n}" for n in range(_BATCH)}


def all_texts(rounds: int) -> tuple[list[str], list[str]]:
    """All queries and all documents that this many rounds will ever need base vectors of."""
    pairs, guard = list(_pairs()), list(_guard())
    queries = [query for query, _ in pairs] + [row[side] for row in guard for side in ("sentence1", "sentence2")]
    batches = [batch_documents(number) for number in range(rounds + 1)]
    told = [text for batch in batches for name, first in batch.items() for text in (first, f"{name} has been told anew")]
    return queries, [text for _, text in pairs] + list(fixed_documents().values()) + told


def _pairs() -> Iterator[tuple[str, str]]:
    yield from ((f"how to do thing {n}", f"thing {n} is done like this") for n in range(30))


def _guard() -> Iterator[dict[str, Any]]:
    for n, who in enumerate(["the baby", "my dog", "a nurse", "the pilot", "his aunt", "one of us", "a clerk", "the king"]):
        yield {"sentence1": f"{who} sleeps", "sentence2": f"{who} is asleep" if n % 2 else f"we sold {n} boats", "score": n % 2}
