"""`zerogate demo`: the whole way on a real dataset, driven over HTTP as any client would.

The data are the Python standard library's own docstrings: can the first sentence find the function that it describes?
"""

import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cli.docstrings import Pair, docstring_pairs, document_rows, pair_rows
from cli.serve import serving_in_background
from service.errors import Conflict, ServiceError
from service.logging import configure_logging
from service.settings import Settings

MODEL = "stdlib"
COLLECTION = "stdlib-docs"
SHOWN_QUERIES = 5
SHOWN_SCORES = ("mrr@10", "ndcg@10", "recall@10")

_POLL_SECONDS = 0.1
_LOT = 1


@dataclass(frozen=True)
class _Outcome:
    """The ended jobs and what the service then says of the collection."""

    training: dict[str, Any]
    publishing: dict[str, Any]
    collection: dict[str, Any]


def run_demo(
    *, as_json: bool, keep: Path | None, pairs: Sequence[Pair] | None = None, recipe: Mapping[str, Any] | None = None
) -> None:
    """Run the demo; with as_json the last line printed to standard output is one JSON object.

    Embeddings are remembered in the user's cache folder, so that a second run encodes nothing. keep: a new folder for all else.
    pairs: other pairs than all of the standard library's. recipe: numbers of one, in place of a search.
    """
    configure_logging(json=not sys.stderr.isatty())
    logging.getLogger().setLevel(logging.WARNING)  # the bars tell the rest
    console = Console(stderr=as_json)
    console.print("[bold]Zerogate demo[/]: fine-tune a search over the Python standard library, on this machine.\n")
    pairs = docstring_pairs() if pairs is None else pairs
    console.print(f"{len(pairs):,} documented functions, classes and methods; a quarter of them are held out as test queries.")
    with _folder(keep) as folder:
        settings = Settings(data_dir=folder, cache_dir=_cache_dir(), port=0)
        with serving_in_background(settings) as url, httpx.Client(base_url=url, timeout=60.0) as client:
            outcome = _train_and_publish(client, pairs, recipe, console)
            _show_scores(console, outcome)
            _show_searches(console, client, outcome, pairs)
            _show_collection(console, outcome, keep)
    if as_json:
        print(json.dumps(_as_json(outcome)))


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="zerogate-demo-") as folder:
            yield Path(folder)
    elif keep.exists() and any(keep.iterdir()):
        raise Conflict(f"'{keep}' is not empty; --keep takes a new folder")
    else:
        yield keep


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zerogate" / "embeddings"


def _train_and_publish(
    client: httpx.Client, pairs: Sequence[Pair], recipe: Mapping[str, Any] | None, console: Console
) -> _Outcome:
    dataset = _upload(client, pair_rows(pairs), kind="pairs", name="stdlib-pairs")
    documents = _upload(client, document_rows(pairs), kind="documents", name="stdlib-documents")
    indexes = {"module": "keyword", "kind": "keyword"}
    job = _post(
        client,
        "/v1/jobs",
        {
            "model": MODEL,
            "dataset": dataset["id"],
            "recipe": recipe or "auto",
            "publish": {"collection": COLLECTION, "documents": documents["id"], "indexes": indexes},
        },
    )
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        training = _follow(client, job["id"], progress)
        publishing = _follow(client, training["publish_job_id"], progress)
    return _Outcome(training, publishing, _get(client, f"/v1/collections/{COLLECTION}"))


def _upload(client: httpx.Client, rows: Sequence[Mapping[str, Any]], *, kind: str, name: str) -> dict[str, Any]:
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return _answer(
        client.post(
            "/v1/datasets", params={"kind": kind, "name": name}, content=body, headers={"content-type": "application/x-ndjson"}
        )
    )


def _follow(client: httpx.Client, job_id: str, progress: Progress) -> dict[str, Any]:
    """Draw a bar for every stage until the job has ended. Raises ServiceError when it has not succeeded."""
    bars: dict[str, TaskID] = {}
    while True:
        job = _get(client, f"/v1/jobs/{job_id}")
        told = job["progress"]
        if told is not None:
            if told["stage"] not in bars:
                _finish(progress, bars)
                bars[told["stage"]] = progress.add_task(told["stage"])
            progress.update(bars[told["stage"]], completed=told["done"], total=max(told["total"], 1))
        if job["state"] not in ("queued", "running"):
            _finish(progress, bars)
            break
        time.sleep(_POLL_SECONDS)
    if job["state"] != "succeeded":
        raise ServiceError(f"the {job['kind']} job has {job['state']}: {job['error']}")
    return job


def _finish(progress: Progress, bars: Mapping[str, TaskID]) -> None:
    for bar in bars.values():
        total = next(task.total for task in progress.tasks if task.id == bar)
        progress.update(bar, completed=total)


def _show_scores(console: Console, outcome: _Outcome) -> None:
    result = outcome.training["result"]
    table = Table(title=f"\n{result['test_queries']} held-out queries over {result['documents']:,} documents")
    for heading in ("", "encoder", result["version"], "change"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for name in SHOWN_SCORES:
        base, tuned = result["base"][name], result["tuned"][name]
        table.add_row(name, f"{base:.3f}", f"{tuned:.3f}", f"{(tuned / base - 1) * 100:+.0f} %")
    console.print(table)
    trials, forgetting = result["trials"], result["forgetting"]
    console.print(
        f"{trials['finished']} of {trials['planned']} recipes tried in {result['sweep_seconds']:.1f} s; "
        f"the best: {result['way']}, at strength {result['strength']:g}."
    )
    verdict = result["verdict"]
    console.print(
        f"{verdict['score']} {verdict['difference']:+.3f}, 95 % interval {verdict['low']:+.3f} to {verdict['high']:+.3f}: "
        f"[bold]{verdict['outcome']}[/] ({verdict['wins']} queries won, {verdict['losses']} lost)."
    )
    console.print(
        f"Forgotten of general English: {forgetting['value']:+.4f} of the guard's {forgetting['score']} (95 % interval "
        f"{forgetting['low']:+.4f} to {forgetting['high']:+.4f}; {result['forgetting_budget']:g} is allowed)."
    )
    if result["not_promoted_because"] is not None:
        console.print(f"[bold]Not promoted.[/] {result['not_promoted_because']}")
    console.print(
        f"Encoding took {_encode_seconds(outcome):.1f} s (remembered for the next run), fitting {result['fit_seconds']:.1f} s on "
        f"{result['pairs']:,} pairs, publishing {outcome.publishing['result']['publish_seconds']:.1f} s."
    )


def _show_searches(console: Console, client: httpx.Client, outcome: _Outcome, pairs: Sequence[Pair]) -> None:
    held_out = [pair for pair in pairs if pair.split == "test"]
    console.print(f"\n[bold]{SHOWN_QUERIES} held-out queries, drawn by lot[/] (✓ marks the document that the query describes)")
    for pair in random.Random(_LOT).sample(held_out, SHOWN_QUERIES):
        base, tuned = (_search(client, pair.anchor, version) for version in (0, None))
        # No rank column and no borders: full names of documents are long, and a terminal may have 80 columns.
        table = Table("encoder: top 3", f"{outcome.training['result']['version']}: top 3", box=None, expand=True, padding=(0, 2))
        for left, right in zip_longest(base, tuned, fillvalue=""):
            table.add_row(_marked(left, pair), _marked(right, pair))
        console.print(Text(f"\n{pair.anchor}", style="italic"))
        console.print(table)
    serving = outcome.collection["serving"]
    console.print(f"\nBoth columns come from one collection: its vectors [bold]base[/] and [bold]{serving}[/].")


def _search(client: httpx.Client, query: str, version: int | None) -> list[str]:
    body = {"query": query, "limit": 3, "version": version}
    return [hit["document_id"] for hit in _post(client, f"/v1/collections/{COLLECTION}/search", body)["data"]]


def _marked(name: str, pair: Pair) -> Text:
    found = name == pair.document_id
    return Text(f"{'✓' if found else ' '} {name}", style="green" if found else "", overflow="fold")


def _show_collection(console: Console, outcome: _Outcome, keep: Path | None) -> None:
    collection = outcome.collection
    names = ", ".join(outcome.publishing["result"]["vector_names"])
    console.print(
        f"Qdrant collection [bold]{collection['qdrant_collection']}[/]: {collection['points']:,} points, vectors {names}."
    )
    if keep is not None:
        console.print(f"To go on with it: [bold]zerogate serve --data-dir {keep}[/]")


def _encode_seconds(outcome: _Outcome) -> float:
    return float(outcome.training["result"]["encode_seconds"] + outcome.publishing["result"]["encode_seconds"])


def _as_json(outcome: _Outcome) -> dict[str, Any]:
    result, published = outcome.training["result"], outcome.publishing["result"]
    return {
        "pairs": result["pairs"],
        "test_queries": result["test_queries"],
        "documents": result["documents"],
        "base": {name: result["base"][name] for name in SHOWN_SCORES},
        "tuned": {name: result["tuned"][name] for name in SHOWN_SCORES},
        "strength": result["strength"],
        "forgetting": result["forgetting"]["value"],
        "verdict": result["verdict"]["outcome"],
        "sweep_seconds": result["sweep_seconds"],
        "fit_seconds": result["fit_seconds"],
        "encode_seconds": _encode_seconds(outcome),
        "publish_seconds": published["publish_seconds"],
        "identity_at_start": result["identity_at_start"],
        "version": result["version"],
        "vector_names": published["vector_names"],
    }


def _get(client: httpx.Client, path: str) -> dict[str, Any]:
    return _answer(client.get(path))


def _post(client: httpx.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return _answer(client.post(path, json=body))


def _answer(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()
    if response.is_error:
        raise ServiceError(found["error"]["message"])
    return found
