"""What is wrong is refused with its place and its reason, and leaves nothing behind: no row, no file.

And the uploads that are right, in every form that is taken.
"""

import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Client, Start

PAIRS = [{"anchor": f"question {n} of the day", "positive": f"answer {n} to it"} for n in range(30)]
DOCUMENTS = [{"id": f"d{n}", "text": f"the text of document {n}", "n": n} for n in range(5)]
ENCODER = "all-MiniLM-L6-v2"
JSONL = {"content-type": "application/x-ndjson"}


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@dataclass(frozen=True)
class Prepared:
    """A service with one of everything, and no work going on."""

    client: Client
    folder: Path
    job: str

    def everything(self) -> dict[str, Any]:
        """All that is kept: the number of rows of every table, every file, and every collection's folder."""
        with closing(sqlite3.connect(self.folder / "zerogate.db")) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
        files = sorted(str(path) for path in (self.folder / "files").rglob("*"))
        return {"rows": rows, "files": files, "collections": sorted(path.name for path in (self.folder / "vectors").iterdir())}

    def files(self, dataset_id: str) -> list[str]:
        return [path.name for path in (self.folder / "files" / "datasets").glob(f"{dataset_id}*")]


@pytest.fixture(scope="module")
def service(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp("refusals")
    with start(folder) as client:
        client.upload(PAIRS, kind="pairs", name="pairs")
        client.upload(DOCUMENTS, kind="documents", name="docs")
        publish = {"collection": "shelf", "documents": "docs"}
        job = client.post(
            "/v1/jobs",
            {
                "model": "m",
                "dataset": "pairs",
                "recipe": {"epochs": 1},
                "promote": "never",
                "publish": publish,
                "guard": client.small_guard(),
            },
        )
        client.wait(client.wait(job["id"])["publish_job_id"])
        yield Prepared(client, folder, job["id"])


def refused(answer: httpx.Response, *, status: int, param: str | None, saying: tuple[str, ...]) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    for words in saying:
        assert words in error["message"]
    assert answer.headers["x-request-id"]
    if status == 409:
        assert answer.headers["x-should-retry"] == "false"


# --- uploads ------------------------------------------------------------------------------------------------------------------

_BROKEN = jsonl(PAIRS[:16]) + b'{"anchor": "a", "positive": \n' + jsonl(PAIRS[17:])
_WITHOUT = jsonl([*PAIRS[:4], {"anchor": "only an anchor"}])
_BLANK = jsonl([*PAIRS[:2], {"anchor": "a", "positive": "  "}])
_TWICE = jsonl([*DOCUMENTS, {"id": "d1", "text": "again"}])

# what is uploaded, its content type, further parameters: param and words of the error
UPLOADS: dict[str, tuple[bytes, str, dict[str, str], int, str | None, tuple[str, ...]]] = {
    "broken JSON": (_BROKEN, "application/x-ndjson", {}, 400, None, ("line 17", "broken JSON")),
    "a missing field": (_WITHOUT, "application/x-ndjson", {}, 400, "positive", ("line 5", "'positive'", "missing")),
    "a blank text": (_BLANK, "application/x-ndjson", {}, 400, "positive", ("line 3", "'positive'", "not blank")),
    "an unknown field": (jsonl([{**PAIRS[0], "mood": "x"}]), "application/x-ndjson", {}, 400, "mood", ("line 1", "'mood'")),
    "half a surrogate pair": (b'{"anchor": "\\ud800", "positive": "a"}', "application/x-ndjson", {}, 400, None, ("line 1",)),
    "a CSV without the column": (b"anchor,answer\na,b\n", "text/csv", {}, 400, "positive", ("no column 'positive'", "'answer'")),
    "a CSV with a short row": (b"anchor,positive\na,b\nc\n", "text/csv", {}, 400, None, ("line 3", "1 cells")),
    "a damaged Parquet": (b"PAR1 and no more", "application/vnd.apache.parquet", {}, 400, None, ("Parquet",)),
    "gzip": (b"\x1f\x8b\x08 and so on", "application/x-ndjson", {}, 400, None, ("gzip",)),
    "an empty body": (b"", "application/x-ndjson", {}, 400, None, ("no rows",)),
    "an id that comes twice": (_TWICE, "application/x-ndjson", {"kind": "documents"}, 400, "id", ("line 6", "'d1'")),
    "an unknown kind": (jsonl(PAIRS), "application/x-ndjson", {"kind": "couples"}, 400, "kind", ("'couples'", "'pairs'")),
    "a name with a slash": (jsonl(PAIRS[1:]), "application/x-ndjson", {"name": "a/b"}, 400, "name", ("'a/b' is no name",)),
    "a name that is taken": (jsonl(PAIRS[1:]), "application/x-ndjson", {"name": "pairs"}, 409, "name", ("'pairs' already",)),
    "columns that are no JSON": (jsonl(PAIRS), "application/x-ndjson", {"columns": "anchor"}, 400, "columns", ("no JSON",)),
    "columns of other things": (jsonl(PAIRS), "application/x-ndjson", {"columns": '{"anchor": 1}'}, 400, "columns", ("names",)),
    "a column of ours that is none": (jsonl(PAIRS), "application/x-ndjson", {"columns": '{"ancor": "x"}'}, 400, "ancor", ()),
    "a column of theirs that is none": (
        jsonl(PAIRS), "application/x-ndjson", {"columns": '{"anchor": "frage"}'}, 400, "anchor", ("'frage'",)
    ),
    "queries without their documents": (
        jsonl([{"query": "q", "documents": ["d1"]}]), "application/x-ndjson", {"kind": "queries"}, 400, "documents", ("needs",)
    ),
    "queries over an unknown dataset": (
        jsonl([{"query": "q", "documents": ["d1"]}]), "application/x-ndjson", {"kind": "queries", "documents": "none"}, 404,
        "documents", ("no dataset 'none'",),
    ),
    "documents beside pairs": (jsonl(PAIRS), "application/x-ndjson", {"documents": "docs"}, 400, "documents", ("kind queries",)),
    "multipart that is none": (b"nothing", "multipart/form-data; boundary=x", {}, 400, None, ()),
    "multipart without a boundary": (b"nothing", "multipart/form-data", {}, 400, None, ("boundary",)),
}  # fmt: skip


@pytest.mark.parametrize("case", UPLOADS)
def test_a_wrong_upload_is_refused_with_its_place_and_leaves_nothing(service: Prepared, case: str) -> None:
    body, content_type, params, status, param, saying = UPLOADS[case]
    before = service.everything()

    answer = service.client.http.post(
        "/v1/datasets", params={"kind": "pairs", **params}, content=body, headers={"content-type": content_type}
    )

    refused(answer, status=status, param=param, saying=saying)
    assert service.everything() == before


def test_a_multipart_upload_without_the_file_is_refused(service: Prepared) -> None:
    before = service.everything()

    answer = service.client.http.post("/v1/datasets", params={"kind": "pairs"}, files={"data": ("a.jsonl", jsonl(PAIRS))})

    refused(answer, status=400, param="file", saying=("'file'",))
    assert service.everything() == before


# --- every other request ------------------------------------------------------------------------------------------------------

_TRAIN = {"model": "m", "dataset": "pairs"}
_EMBED = {"model": "m", "input": "a text"}
_HALF = "\ud800"

# method and path, body: status, param and words of the error
REQUESTS: dict[str, tuple[str, str, dict[str, Any] | None, int, str | None, tuple[str, ...]]] = {
    # training
    "an unknown dataset": ("POST", "/v1/jobs", {**_TRAIN, "dataset": "none"}, 400, "dataset", ("no dataset 'none'",)),
    "training on documents": ("POST", "/v1/jobs", {**_TRAIN, "dataset": "docs"}, 400, "dataset", ("kind documents", "pairs")),
    "judging by documents": ("POST", "/v1/jobs", {**_TRAIN, "evaluation": "docs"}, 400, "evaluation", ("kind documents",)),
    "a wrong encoder": (
        "POST", "/v1/jobs", {**_TRAIN, "model": "new", "encoder": "bert"}, 400, "encoder", ("no encoder 'bert'", ENCODER)
    ),
    "a wrong encoder for a model": ("POST", "/v1/jobs", {**_TRAIN, "encoder": "bert"}, 400, "encoder", ("no encoder 'bert'",)),
    "a model with a slash": ("POST", "/v1/jobs", {**_TRAIN, "model": "a/b"}, 400, "model", ("'a/b' is no name",)),
    "a model with a version": ("POST", "/v1/jobs", {**_TRAIN, "model": "m@1"}, 400, "model", ("no '@'",)),
    "a model with a line break": ("POST", "/v1/jobs", {**_TRAIN, "model": "m\n"}, 400, "model", ("is no name",)),
    "the name of an encoder": ("POST", "/v1/jobs", {**_TRAIN, "model": ENCODER}, 400, "model", ("name of an encoder",)),
    "no epochs": ("POST", "/v1/jobs", {**_TRAIN, "recipe": {"epochs": 0}}, 400, "recipe", ("recipe.epochs", "1 to 10,000", "0")),
    "half an epoch": ("POST", "/v1/jobs", {**_TRAIN, "recipe": {"epochs": 1.5}}, 400, "recipe", ("recipe.epochs", "1.5")),
    "dropout of all": ("POST", "/v1/jobs", {**_TRAIN, "recipe": {"skip_dropout": 1}}, 400, "recipe", ("skip_dropout", "below 1")),
    "a text for a number": ("POST", "/v1/jobs", {**_TRAIN, "recipe": {"seed": "7"}}, 400, "recipe", ("recipe.seed", "'7'")),
    "an unknown number": ("POST", "/v1/jobs", {**_TRAIN, "recipe": {"layers": 3}}, 400, "recipe", ("'layers'", "blocks")),
    "an unknown recipe": ("POST", "/v1/jobs", {**_TRAIN, "recipe": "fast"}, 400, "recipe", ("'fast'", "'auto'")),
    "an unknown way to promote": ("POST", "/v1/jobs", {**_TRAIN, "promote": "maybe"}, 400, "promote", ("'if_better'",)),
    "an unknown field": ("POST", "/v1/jobs", {**_TRAIN, "epochs": 3}, 400, "epochs", ("is no field",)),
    "no dataset": ("POST", "/v1/jobs", {"model": "m"}, 400, "dataset", ("is missing",)),
    "no characters in a name": ("POST", "/v1/jobs", {**_TRAIN, "dataset": _HALF}, 400, "dataset", ("surrogate",)),
    "publishing an unknown dataset": (
        "POST", "/v1/jobs", {**_TRAIN, "model": "new", "publish": {"collection": "new", "documents": "none"}}, 400,
        "publish.documents", ("no dataset 'none'",),
    ),
    "publishing pairs": (
        "POST", "/v1/jobs", {**_TRAIN, "model": "new", "publish": {"collection": "new", "documents": "pairs"}}, 400,
        "publish.documents", ("of kind pairs",),
    ),
    "publishing into a slash": (
        "POST", "/v1/jobs", {**_TRAIN, "model": "new", "publish": {"collection": "a/b", "documents": "docs"}}, 400,
        "publish.collection", ("'a/b' is no name",),
    ),
    "publishing into another model's collection": (
        "POST", "/v1/jobs", {**_TRAIN, "model": "new", "publish": {"collection": "shelf", "documents": "docs"}}, 400,
        "publish.collection", ("bound to model 'm'",),
    ),
    "publishing with other indexes": (
        "POST", "/v1/jobs", {**_TRAIN, "publish": {"collection": "shelf", "documents": "docs", "indexes": {"n": "integer"}}}, 400,
        "publish.indexes", ("cannot be changed",),
    ),
    "publishing with an index that cannot be": (
        "POST", "/v1/jobs", {**_TRAIN, "publish": {"collection": "new", "documents": "docs", "indexes": {"a[": "keyword"}}}, 400,
        "indexes", ("'a['",),
    ),
    "publishing with a field of its own": (
        "POST", "/v1/jobs", {**_TRAIN, "publish": {"collection": "new", "documents": "docs", "wait": True}}, 400,
        "publish.wait", ("is no field",),
    ),
    # jobs
    "a job that is not there": ("GET", "/v1/jobs/job_0", None, 404, None, ("no job 'job_0'",)),
    "cancelling what is not there": ("POST", "/v1/jobs/job_0/cancel", {}, 404, None, ("no job 'job_0'",)),
    "a page after nothing": ("GET", "/v1/jobs?after=job_0", None, 400, "after", ("'job_0'",)),
    "datasets after nothing": ("GET", "/v1/datasets?after=ds_0", None, 400, "after", ("'ds_0'",)),
    "a page of nothing": ("GET", "/v1/jobs?limit=0", None, 400, "limit", ("greater than or equal to 1",)),
    "a page of too much": ("GET", "/v1/jobs?limit=101", None, 400, "limit", ("less than or equal to 100",)),
    "an unknown state": ("GET", "/v1/jobs?state=done", None, 400, "state", ("'succeeded'",)),
    # embeddings
    "no input": ("POST", "/v1/embeddings", {"model": "m"}, 400, "input", ("missing",)),
    "an empty input": ("POST", "/v1/embeddings", {**_EMBED, "input": ""}, 400, "input", ("not blank",)),
    "an empty list": ("POST", "/v1/embeddings", {**_EMBED, "input": []}, 400, "input", ("1 to 2048",)),
    "one empty text": ("POST", "/v1/embeddings", {**_EMBED, "input": ["a", "\n"]}, 400, "input", ("input[1]", "not blank")),
    "token ids": ("POST", "/v1/embeddings", {**_EMBED, "input": [101, 102]}, 400, "input", ("token ids", "LangChain")),
    "lists of token ids": ("POST", "/v1/embeddings", {**_EMBED, "input": [[101], [102]]}, 400, "input", ("token ids",)),
    "an object": ("POST", "/v1/embeddings", {**_EMBED, "input": {"text": "a"}}, 400, "input", ("a text or a list",)),
    "2,049 texts": ("POST", "/v1/embeddings", {**_EMBED, "input": ["a"] * 2049}, 400, "input", ("2049", "2048")),
    "no character": ("POST", "/v1/embeddings", {**_EMBED, "input": ["a", _HALF]}, 400, "input", ("input[1]", "surrogate")),
    "other dimensions": ("POST", "/v1/embeddings", {**_EMBED, "dimensions": 128}, 400, "dimensions", ("128", "384")),
    "an unknown model": ("POST", "/v1/embeddings", {**_EMBED, "model": "faq"}, 404, "model", ("'faq'", ENCODER)),
    "an unknown version": ("POST", "/v1/embeddings", {**_EMBED, "model": "m@9"}, 404, "model", ("'m@9'",)),
    "a version that is no number": ("POST", "/v1/embeddings", {**_EMBED, "model": "m@last"}, 400, "model", ("'m@3'",)),
    "a version of an encoder": ("POST", "/v1/embeddings", {**_EMBED, "model": f"{ENCODER}@1"}, 404, "model", ("no version",)),
    "too much strength": ("POST", "/v1/embeddings", {**_EMBED, "strength": 2.5}, 400, "strength", ("2.5",)),
    "negative strength": ("POST", "/v1/embeddings", {**_EMBED, "strength": -0.1}, 400, "strength", ("-0.1",)),
    "strength in words": ("POST", "/v1/embeddings", {**_EMBED, "strength": "full"}, 400, "strength", ("'full'",)),
    "an unknown role": ("POST", "/v1/embeddings", {**_EMBED, "input_type": "passage"}, 400, "input_type", ("'document'",)),
    "an unknown format": ("POST", "/v1/embeddings", {**_EMBED, "encoding_format": "hex"}, 400, "encoding_format", ("'base64'",)),
    "an unknown collection": ("POST", "/v1/embeddings", {**_EMBED, "collection": "none"}, 404, "collection", ("'none'",)),
    "a collection in no characters": ("POST", "/v1/embeddings", {**_EMBED, "collection": _HALF}, 400, "collection", ()),
    "another model's collection": (
        "POST", "/v1/embeddings", {**_EMBED, "model": ENCODER, "collection": "shelf"}, 400, "model", ("serves 'm@0'",)
    ),
    "embeddings without input": ("GET", "/v1/embeddings?model=m", None, 400, "input", ("missing",)),
    "a field that GET has not": ("GET", "/v1/embeddings?model=m&input=a&q=1", None, 400, "q", ("is no field",)),
    # search
    "a filter with a wrong clause": (
        "POST", "/v1/collections/shelf/search", {"query": "a", "filter": {"most": []}}, 400, "filter", ("must_not", "most")
    ),
    "a filter with a wrong condition": (
        "POST", "/v1/collections/shelf/search", {"query": "a", "filter": {"must": [{"key": "metadata.n"}]}}, 400,
        "filter.must[0]", ("match",),
    ),
    "a filter that the engine lacks": (
        "POST", "/v1/collections/shelf/search", {"query": "a", "filter": {"must": [{"slice": {"index": 0, "total": 2}}]}}, 400,
        "filter", ("slice",),
    ),
    "a vector that is too short": ("POST", "/v1/collections/shelf/search", {"vector": [1.0, 2.0]}, 400, "vector", ("384", "2")),
    "a vector of zeros": ("POST", "/v1/collections/shelf/search", {"vector": [0.0] * 384}, 400, "vector", ("not all 0",)),
    "a query and a vector": (
        "POST", "/v1/collections/shelf/search", {"query": "a", "vector": [1.0]}, 400, None, ("either 'query' or 'vector'",)
    ),
    "neither query nor vector": ("POST", "/v1/collections/shelf/search", {}, 400, None, ("either 'query' or 'vector'",)),
    "a blank query": ("POST", "/v1/collections/shelf/search", {"query": " "}, 400, "query", ("'query'", "not blank")),
    "no hits": ("POST", "/v1/collections/shelf/search", {"query": "a", "limit": 0}, 400, "limit", ()),
    "a quantization that the embedded engine has not": (
        "POST", "/v1/collections", {"name": "new", "model": "m", "quantization": "scalar"}, 400, None, ("exact",)
    ),
    "an unknown quantization": (
        "POST", "/v1/collections", {"name": "new", "model": "m", "quantization": "half"}, 400,
        "quantization", ("'half'", "'turbo'"),
    ),
    "a search in nothing": ("POST", "/v1/collections/none/search", {"query": "a"}, 404, "collection", ("'none'",)),
    "a version that is not here": (
        "POST", "/v1/collections/shelf/search", {"query": "a", "version": 9}, 400, "version", ("no version 9", "it has 0")
    ),
    "a version that cannot be": ("POST", "/v1/collections/shelf/search", {"query": "a", "version": 10**30}, 400, "version", ()),
    "a strength that no head has": (
        "POST", "/v1/collections/shelf/search", {"query": "a", "strength": 2.5}, 400, "strength", ("2.5",)
    ),
    "a comparison with a version that is not here": (
        "POST", "/v1/collections/shelf/compare", {"version": 9}, 400, "version", ("no version 9", "it has 0")
    ),
    "a comparison of nothing": ("POST", "/v1/collections/shelf/compare", {}, 400, "version", ("missing",)),
    "a comparison in nothing": ("POST", "/v1/collections/none/compare", {"version": 0}, 404, "collection", ("'none'",)),
    "a comparison on no queries": (
        "POST", "/v1/collections/shelf/compare", {"version": 0, "queries": []}, 400, "queries", ("at least 1",)
    ),
    # collections
    "a collection of no model": ("POST", "/v1/collections", {"name": "new", "model": "none"}, 400, "model", ("'none'",)),
    "a collection with a slash": ("POST", "/v1/collections", {"name": "a/b", "model": "m"}, 400, "name", ("'a/b' is no name",)),
    "a collection that is there": ("POST", "/v1/collections", {"name": "shelf", "model": "m"}, 409, "name", ("'shelf'",)),
    "an unknown index type": (
        "POST", "/v1/collections", {"name": "new", "model": "m", "indexes": {"n": "number"}}, 400, "indexes.n", ("'integer'",)
    ),
    "an index that cannot be": (
        "POST", "/v1/collections", {"name": "new", "model": "m", "indexes": {"a[": "keyword"}}, 400, "indexes", ("'a['",)
    ),
    "an index without a name": (
        "POST", "/v1/collections", {"name": "new", "model": "m", "indexes": {"": "keyword"}}, 400, "indexes", ("''",)
    ),
    "an index on the payload's field": (
        "POST", "/v1/collections", {"name": "new", "model": "m", "indexes": {"metadata.n": "keyword"}}, 400, "indexes", ("'n'",)
    ),
    "an index in no characters": (
        "POST", "/v1/collections", {"name": "new", "model": "m", "indexes": {_HALF: "keyword"}}, 400, "indexes", ("surrogate",)
    ),
    # documents
    "documents for nobody": ("POST", "/v1/collections/none/documents", {"rows": DOCUMENTS}, 404, "collection", ("'none'",)),
    "an unknown documents dataset": ("POST", "/v1/collections/shelf/documents", {"dataset": "none"}, 400, "dataset", ("'none'",)),
    "pairs for documents": ("POST", "/v1/collections/shelf/documents", {"dataset": "pairs"}, 400, "dataset", ("kind pairs",)),
    "no documents": ("POST", "/v1/collections/shelf/documents", {"rows": []}, 400, "rows", ("at least 1",)),
    "neither dataset nor rows": ("POST", "/v1/collections/shelf/documents", {}, 400, None, ("either 'dataset' or 'rows'",)),
    "a row without a text": (
        "POST", "/v1/collections/shelf/documents", {"rows": [{"id": "a", "text": "t"}, {"id": "b"}]}, 400, "text", ("line 2",)
    ),
    "two rows of one id": (
        "POST", "/v1/collections/shelf/documents", {"rows": [{"id": "a", "text": "t"}, {"id": "a", "text": "u"}]}, 400, "id",
        ("line 2", "'a'"),
    ),
    "a row in no characters": (
        "POST", "/v1/collections/shelf/documents", {"rows": [{"id": "a", "text": _HALF}]}, 400, "rows", ("surrogate",)
    ),
    "a row that is too deep": (
        "POST", "/v1/collections/shelf/documents", {"rows": [{"id": "a", "text": "t", "n": json.loads("[" * 300 + "]" * 300)}]},
        400, "n", ("line 1", "levels deep"),
    ),
    "deleting by nothing": ("DELETE", "/v1/collections/shelf/documents", {}, 400, None, ("either 'ids' or 'filter'",)),
    "deleting no ids": ("DELETE", "/v1/collections/shelf/documents", {"ids": []}, 400, "ids", ()),
    "deleting ids in no characters": ("DELETE", "/v1/collections/shelf/documents", {"ids": [_HALF]}, 400, "ids", ("surrogate",)),
    "deleting by a wrong filter": (
        "DELETE", "/v1/collections/shelf/documents", {"filter": {"must": [{"key": "n"}]}}, 400, "filter.must[0]", ("match",)
    ),
    "deleting in nothing": ("DELETE", "/v1/collections/none/documents", {"ids": ["a"]}, 404, "collection", ("'none'",)),
    # models
    "promoting an unknown version": ("POST", "/v1/models/m/promote", {"version": 7}, 404, "version", ("no version 7", "0, 1")),
    "promoting an impossible version": ("POST", "/v1/models/m/promote", {"version": 10**30}, 404, "version", ("no version",)),
    "promoting a negative version": ("POST", "/v1/models/m/promote", {"version": -1}, 400, "version", ("-1",)),
    "promoting of no model": ("POST", "/v1/models/none/promote", {"version": 0}, 404, "model", ("no model 'none'",)),
    "rolling back of no model": ("POST", "/v1/models/none/rollback", {}, 404, "model", ("no model 'none'",)),
    "rolling back what never moved": ("POST", "/v1/models/m/rollback", {}, 409, None, ("nothing to roll back to",)),
    "an impossible version": ("GET", f"/v1/models/m/versions/{10**30}", None, 404, "version", ("no version",)),
    "a version in words": ("GET", "/v1/models/m/versions/last", None, 400, "number", ("'last'",)),
    "deleting an encoder": ("DELETE", f"/v1/models/{ENCODER}", None, 400, "ref", ("is an encoder",)),
    "deleting version 0": ("DELETE", "/v1/models/m@0", None, 409, None, ("the encoder itself",)),
    "deleting a bound model": ("DELETE", "/v1/models/m", None, 409, None, ("collections shelf",)),
    "deleting no dataset": ("DELETE", "/v1/datasets/none", None, 404, "dataset", ("no dataset 'none'",)),
    "deleting no collection": ("DELETE", "/v1/collections/none", None, 404, None, ("no collection 'none'",)),
    "an unknown route": ("GET", "/v1/modells", None, 404, None, ("GET", "/docs")),
    "a wrong method": ("PUT", "/v1/models/m", {}, 405, None, ("GET, DELETE",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_a_wrong_request_is_refused_with_its_field_and_leaves_nothing(service: Prepared, case: str) -> None:
    method, path, body, status, param, saying = REQUESTS[case]
    before = service.everything()

    # json.dumps escapes what is no character, as JSON may; httpx would refuse to send it.
    content = None if body is None else json.dumps(body)
    answer = service.client.http.request(method, path, content=content, headers={"content-type": "application/json"})

    refused(answer, status=status, param=param, saying=saying)
    assert service.everything() == before


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        (b'{"vector": [NaN, 1.0]}', "384 finite numbers"),
        (b'{"query": "a", "limit": ', "no JSON"),
        (b"[" * 100_000, "body"),
    ],
)
def test_a_body_that_is_no_json_is_refused(service: Prepared, content: bytes, saying: str) -> None:
    answer = service.client.http.post(
        "/v1/collections/shelf/search", content=content, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400
    assert saying in answer.json()["error"]["message"]


def test_numbers_that_json_lacks_are_refused_in_documents_and_kept_nowhere(service: Prepared) -> None:
    before = service.everything()

    answer = service.client.http.post(
        "/v1/collections/shelf/documents",
        content=b'{"rows": [{"id": "a", "text": "t"}, {"id": "b", "text": "t", "n": NaN}]}',
        headers={"content-type": "application/json"},
    )

    refused(answer, status=400, param=None, saying=("line 2", "broken JSON"))
    assert service.everything() == before


def test_a_finished_job_cannot_be_cancelled(service: Prepared) -> None:
    before = service.client.get(f"/v1/jobs/{service.job}")

    answer = service.client.http.post(f"/v1/jobs/{service.job}/cancel")

    refused(answer, status=409, param=None, saying=("is succeeded", "queued or running"))
    assert answer.json()["error"]["code"] == "job_not_cancellable"
    assert service.client.get(f"/v1/jobs/{service.job}") == before


def test_a_name_with_a_slash_in_the_path_names_nothing(service: Prepared) -> None:
    for path in ("/v1/models/a%2Fb", "/v1/datasets/a%2Fb", "/v1/collections/a%2Fb"):
        assert service.client.http.get(path).status_code in (400, 404)


# --- uploads that are right ---------------------------------------------------------------------------------------------------


def upload(service: Prepared, body: bytes, content_type: str = "application/x-ndjson", **params: str) -> httpx.Response:
    return service.client.http.post(
        "/v1/datasets", params={"kind": "pairs", **params}, content=body, headers={"content-type": content_type}
    )


def kept_rows(service: Prepared, dataset: Any) -> list[dict[str, Any]]:
    (file,) = service.files(dataset["id"])
    return [json.loads(line) for line in (service.folder / "files" / "datasets" / file).read_text().splitlines()]


def test_the_same_bytes_again_are_the_same_dataset(service: Prepared) -> None:
    body = jsonl(PAIRS[:12])

    first, again = upload(service, body), upload(service, body)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert service.files(first.json()["id"]) == [f"{first.json()['id']}.jsonl"]


def test_a_name_that_comes_with_a_second_upload_names_what_had_none(service: Prepared) -> None:
    body = jsonl(PAIRS[2:13])
    nameless = upload(service, body).json()

    named = upload(service, body, name="named-later")

    assert (named.status_code, named.json()) == (200, {**nameless, "name": "named-later"})
    assert service.client.get("/v1/datasets/named-later")["id"] == nameless["id"]
    other = jsonl(PAIRS[2:14])
    upload(service, other)
    refused(upload(service, other, name="named-later"), status=409, param="name", saying=("'named-later' already",))


def test_the_same_bytes_read_with_other_columns_are_another_dataset(service: Prepared) -> None:
    rows = [{"anchor": f"left {n}", "positive": f"right {n}"} for n in range(9)]
    swapped = json.dumps({"anchor": "positive", "positive": "anchor"})

    first = upload(service, jsonl(rows)).json()
    second = upload(service, jsonl(rows), columns=swapped).json()

    assert first["sha256"] == second["sha256"]
    assert first["id"] != second["id"]
    assert kept_rows(service, first)[0] == {"anchor": "left 0", "positive": "right 0"}
    assert kept_rows(service, second)[0] == {"anchor": "right 0", "positive": "left 0"}
    assert second["columns"] == {"anchor": "positive", "positive": "anchor"}


def test_csv_jsonl_parquet_and_multipart_give_the_same_rows(service: Prepared) -> None:
    rows = [{"anchor": f"Frage, {n}", "positive": f'"Antwort" {n}'} for n in range(9)]
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    csv = "anchor,positive\n" + "".join(f'"Frage, {n}","""Antwort"" {n}"\n' for n in range(9))
    mapped = "frage,antwort\n" + csv.partition("\n")[2]

    as_jsonl = upload(service, jsonl(rows))
    answers = [
        as_jsonl,
        upload(service, csv.encode(), "text/csv"),
        upload(service, mapped.encode(), "text/csv", columns='{"anchor": "frage", "positive": "antwort"}'),
        upload(service, table.getvalue(), "application/vnd.apache.parquet"),
        upload(service, table.getvalue(), "application/octet-stream"),
        service.client.http.post("/v1/datasets", params={"kind": "pairs"}, files={"file": ("pairs.csv", csv.encode() + b"\n")}),
    ]

    assert [answer.status_code for answer in answers] == [201, 201, 201, 201, 200, 201]
    assert [kept_rows(service, answer.json()) for answer in answers] == [rows] * 6


def test_a_multipart_upload_of_the_same_bytes_is_known_again(service: Prepared) -> None:
    body = jsonl(PAIRS[5:16])
    plain = upload(service, body)

    again = service.client.http.post("/v1/datasets", params={"kind": "pairs"}, files={"file": ("rows.jsonl", body)})

    assert (again.status_code, again.json()["id"]) == (200, plain.json()["id"])


def test_an_unused_dataset_is_deleted_with_its_file(service: Prepared) -> None:
    before = service.everything()
    made = upload(service, jsonl(PAIRS[3:20]), name="short-lived").json()

    answer = service.client.http.delete("/v1/datasets/short-lived")

    assert answer.json() == {"id": made["id"], "object": "dataset", "deleted": True}
    assert service.client.http.get(f"/v1/datasets/{made['id']}").status_code == 404
    assert service.everything() == before
    again = upload(service, jsonl(PAIRS[3:20]), name="short-lived")
    assert again.status_code == 201
    assert again.json()["id"] != made["id"]


def test_a_used_dataset_is_hidden_and_comes_back_when_it_is_uploaded_again(service: Prepared) -> None:
    rows = [{"anchor": f"used {n} of many", "positive": f"and its answer {n}"} for n in range(30)]
    made = upload(service, jsonl(rows), name="used").json()
    recipe = {"epochs": 1}
    job = service.client.post(
        "/v1/jobs", {"model": "m", "dataset": "used", "recipe": recipe, "promote": "never", "guard": service.client.small_guard()}
    )
    job = service.client.wait(job["id"])

    service.client.http.delete("/v1/datasets/used").raise_for_status()

    for ref in ("used", made["id"]):
        assert service.client.http.get(f"/v1/datasets/{ref}").status_code == 404
        assert service.client.http.post("/v1/jobs", json={"model": "m", "dataset": ref}).status_code == 400
    assert made["id"] not in [one["id"] for one in service.client.get("/v1/datasets", limit=100)["data"]]
    assert service.client.get(f"/v1/jobs/{job['id']}")["dataset"] == made["id"]  # what the version came from is still told
    assert len(kept_rows(service, made)) == 30
    back = upload(service, jsonl(rows), name="used-again")
    assert back.status_code == 200
    assert back.json() == {**made, "name": "used-again"}
    assert service.client.get("/v1/datasets/used-again")["id"] == made["id"]


def test_a_dataset_is_in_use_for_judging_for_publishing_and_for_queries(service: Prepared) -> None:
    judge = upload(service, jsonl(PAIRS[:8]), name="judge").json()
    papers = upload(service, jsonl([{"id": "p", "text": "a paper"}]), kind="documents", name="papers").json()
    asked = upload(
        service, jsonl([{"query": "which paper", "documents": ["p"]}]), kind="queries", name="asked", documents="papers"
    ).json()
    assert asked["documents"] == papers["id"]
    posters = upload(service, jsonl([{"id": "p", "text": "a poster"}]), kind="documents", name="posters").json()
    job = service.client.post(
        "/v1/jobs",
        {
            "model": "m",
            "dataset": "pairs",
            "evaluation": "judge",
            "recipe": {"epochs": 300},
            "guard": service.client.small_guard(),
            "promote": "never",
            "publish": {"collection": "shelf", "documents": "posters"},
        },
    )

    for name in ("judge", "papers", "posters"):  # while the training that will publish the posters still runs
        service.client.http.delete(f"/v1/datasets/{name}").raise_for_status()

    assert service.client.get(f"/v1/jobs/{job['id']}")["state"] in ("queued", "running")
    for kept in (judge, papers, posters):
        assert service.files(kept["id"]) == [f"{kept['id']}.jsonl"]
    ended = service.client.wait(job["id"])
    assert (ended["state"], ended["error"]) == ("succeeded", None)
    assert service.client.wait(ended["publish_job_id"])["result"]["written"] == 1


def test_an_id_wins_over_a_name_that_looks_like_it(service: Prepared) -> None:
    first = upload(service, jsonl(PAIRS[:10])).json()
    second = upload(service, jsonl(PAIRS[10:20]), name=first["id"]).json()

    assert service.client.get(f"/v1/datasets/{first['id']}")["id"] == first["id"]
    assert service.client.get(f"/v1/datasets/{second['id']}")["name"] == first["id"]


def test_lists_page_through_everything_newest_first(service: Prepared) -> None:
    for n in range(3):
        upload(service, jsonl(PAIRS[n : n + 9]), name=f"page-{n}")
    whole = service.client.get("/v1/datasets", limit=100)

    pages, after = [], None
    while True:
        page = service.client.get("/v1/datasets", limit=2, **({} if after is None else {"after": after}))
        pages += page["data"]
        if not page["has_more"]:
            break
        after = page["data"][-1]["id"]

    assert whole["has_more"] is False
    assert pages == whole["data"]
    assert [one["name"] for one in pages[:3]] == ["page-2", "page-1", "page-0"]
