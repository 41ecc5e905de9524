"""A training of every kind of dataset over HTTP: what it is judged by, what its version tells, and what is refused."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.conftest import SMALL_GUARD, Client, Start
from zerogate.learning import DEFAULT_BUDGET

THINGS = ["apple", "bridge", "candle", "desert", "engine", "feather", "guitar", "harbor", "island", "jacket", "kettle", "ladder"]
ANSWERS = [f"{who} {what}" for who in ("the clerk", "a sailor", "my cousin") for what in ("hums", "waits", "left", "knits")]
WORDINGS = ("the {}", "a {}, please", "some {} or other", "my {}")
SPLITS = ("train", "train", "train", "test")


def asked() -> list[tuple[str, int, str]]:
    """(text, number of its answer, split) for every wording of every thing."""
    return [
        (wording.format(thing), number, split)
        for wording, split in zip(WORDINGS, SPLITS, strict=True)
        for number, thing in enumerate(THINGS)
    ]


ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [{"anchor": text, "positive": ANSWERS[n], "split": split} for text, n, split in asked()],
    "triplets": [
        {"anchor": text, "positive": ANSWERS[n], "negatives": [ANSWERS[n - 1], ANSWERS[n - 5]], "split": split}
        for text, n, split in asked()
    ],
    "scored": [
        {"sentence1": text, "sentence2": ANSWERS[m], "score": float(m == n), "split": split}
        for text, n, split in asked()
        for m in (n, (n + 5) % 12)
    ],
    "groups": [{"text": text, "label": f"kind-{n % 2}", "split": split} for text, n, split in asked()],
    "queries": [{"query": text, "documents": [f"d{n}"], "split": split} for text, n, split in asked()],
}
METRICS = {"pairs": "mrr@10", "triplets": "mrr@10", "queries": "ndcg@10", "scored": "spearman", "groups": "accuracy@centroid"}
ITEMS = {"pairs": 12, "triplets": 12, "queries": 12, "scored": 24, "groups": 12}
TEXT_FIELDS = {
    "pairs": {"query"}, "triplets": {"query"}, "queries": {"query"}, "groups": {"text"},
    "scored": {"sentence1", "sentence2", "score"},
}  # fmt: skip


@pytest.fixture(scope="module")
def service(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with start(tmp_path_factory.mktemp("kinds")) as client:
        client.upload([{"id": f"d{n}", "text": text} for n, text in enumerate(ANSWERS)], kind="documents", name="answers")
        for kind, rows in ROWS.items():
            client.upload(rows, kind=kind, name=kind, **({"documents": "answers"} if kind == "queries" else {}))
        client.upload(SMALL_GUARD, kind="scored", name="guard")
        yield client


def train(service: Client, model: str, dataset: str, **fields: Any) -> Any:
    body = {"model": model, "dataset": dataset, "guard": "guard", "recipe": {"epochs": 30}, "forgetting_budget": 1, **fields}
    job = service.wait(service.post("/v1/jobs", body)["id"])
    assert job["state"] == "succeeded", job["error"]
    return job


@pytest.fixture(scope="module", params=list(METRICS))
def trained(service: Client, request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """kind, job, version"""
    kind: str = request.param
    return kind, (job := train(service, f"m-{kind}", kind)), service.get(f"/v1/models/{job['result']['version']}")


def test_every_kind_trains_and_is_judged_by_the_score_of_its_kind(trained: tuple[str, Any, Any]) -> None:
    kind, job, _ = trained
    result = job["result"]

    assert (result["metric"], result["test_queries"]) == (METRICS[kind], ITEMS[kind])
    assert result["verdict"]["score"] == METRICS[kind]
    gain = result["tuned"][METRICS[kind]] - result["base"][METRICS[kind]]
    assert result["verdict"]["difference"] == pytest.approx(gain, abs=1e-9)
    if kind == "groups":
        assert result["tuned"]["accuracy@centroid"] == 1.0  # other wordings of the same things: the encoder knows that already
    else:
        assert gain > 0.1  # what belongs together is arbitrary: the encoder cannot know it, a head learns it
    assert result["identity_at_start"] is True
    assert ("pairs" in result) == (kind in ("pairs", "triplets", "queries"))
    assert result["examples"] == {"scored": 72}.get(kind, 36)


def test_the_version_tells_what_it_was_made_of(service: Client, trained: tuple[str, Any, Any]) -> None:
    kind, job, version = trained
    manifest = version["manifest"]

    assert manifest["dataset_sha256"] == service.get(f"/v1/datasets/{kind}")["sha256"]
    assert manifest["guard"] == {"kind": "scored", "sha256": service.get("/v1/datasets/guard")["sha256"]}
    assert (manifest["mode"], manifest["seed"], manifest["forgetting_budget"]) == ("head", 0, 1.0)
    assert manifest["way"]["name"] == "head"
    assert [recipe["epochs"] for recipe in manifest["way"]["recipes"]] == [30]
    assert manifest["strength"] == version["strength"] == job["result"]["strength"]
    assert version["scores"]["base"] == job["result"]["base"]
    assert version["scores"]["tuned"] == job["result"]["tuned"]
    assert version["scores"]["forgetting"] == job["result"]["forgetting"] == manifest["forgetting"]
    assert -1 <= version["scores"]["drift"]["rank_correlation"] < 1
    assert {"torch", "numpy", "zerogate"} <= set(manifest["libraries"])
    assert all(len(manifest[name]) == 64 for name in ("training_matrix_sha256", "guard_matrix_sha256", "head_sha256"))


def test_the_verdict_shows_the_texts_that_won_and_lost_most(trained: tuple[str, Any, Any]) -> None:
    kind, _, version = trained
    shown = version["verdict"]["examples"]
    tests = {text for text, _, split in asked() if split == "test"}

    assert bool(shown["won"]) == (version["scores"]["tuned"] != version["scores"]["base"])
    for one in shown["won"]:
        assert set(one) == TEXT_FIELDS[kind] | {"before", "after"}
        assert one["after"] > one["before"]
        assert one[min(TEXT_FIELDS[kind] - {"score"})] in tests
    assert all(one["after"] < one["before"] for one in shown["lost"])
    assert len(shown["won"]) <= 5


# --- the guard, and evaluations of another kind ------------------------------------------------------------------------------


def test_the_built_in_guard_is_the_default(service: Client) -> None:
    import importlib.resources

    job = train(service, "default-guard", "pairs", guard=None, recipe={"epochs": 3})
    manifest = service.get(f"/v1/models/{job['result']['version']}")["manifest"]

    content = importlib.resources.files("zerogate").joinpath("guard_pairs.jsonl").read_bytes()
    assert manifest["guard"] == {"kind": "builtin", "sha256": hashlib.sha256(content).hexdigest()}
    assert job["result"]["forgetting"]["score"] == "spearman"
    assert job["result"]["forgetting"]["items"] == 487


def test_the_default_budget_is_that_of_the_library(service: Client) -> None:
    job = service.post("/v1/jobs", {"model": "budget", "dataset": "pairs", "recipe": {"epochs": 1}, "guard": "guard"})

    assert job["request"]["forgetting_budget"] == DEFAULT_BUDGET
    assert service.wait(job["id"])["result"]["forgetting_budget"] == DEFAULT_BUDGET


@pytest.mark.parametrize("kind", list(METRICS))
def test_a_guard_may_be_of_any_kind_but_documents(service: Client, kind: str) -> None:
    trained_on = "pairs" if kind == "groups" else "groups"
    result = train(service, f"guarded-{kind}", trained_on, guard=kind, recipe={"epochs": 3})["result"]

    expected = {"groups": "accuracy@centroid", "scored": "spearman"}.get(kind, "ndcg@10")
    assert result["forgetting"]["score"] == expected
    assert result["forgetting"]["low"] <= result["forgetting"]["value"] <= result["forgetting"]["high"]


@pytest.mark.parametrize(("dataset", "evaluation"), [("groups", "scored"), ("triplets", "queries"), ("queries", "pairs")])
def test_an_evaluation_may_be_of_another_kind_that_can_judge(service: Client, dataset: str, evaluation: str) -> None:
    result = train(service, f"{dataset}-by-{evaluation}", dataset, evaluation=evaluation, recipe={"epochs": 3})["result"]

    assert (result["metric"], result["test_queries"]) == (METRICS[evaluation], ITEMS[evaluation])


def test_a_dataset_that_guards_is_hidden_when_it_is_deleted_and_not_destroyed(service: Client) -> None:
    rows = [{**row, "sentence1": f"{row['sentence1']}!"} for row in SMALL_GUARD]
    guard = service.upload(rows, kind="scored")["id"]
    train(service, "hidden-guard", "groups", guard=guard, recipe={"epochs": 1})

    assert service.http.delete(f"/v1/datasets/{guard}").status_code == 200

    assert service.http.get(f"/v1/datasets/{guard}").status_code == 404
    assert service.upload(rows, kind="scored")["id"] == guard  # it is still there


REFUSED: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "documents as dataset": ({"dataset": "answers"}, "dataset", ("documents", "scored or groups or queries")),
    "documents as guard": ({"guard": "answers"}, "guard", ("documents", "groups")),
    "guard that is the dataset": ({"dataset": "pairs", "guard": "pairs"}, "guard", ("trained on", "other texts")),
    "unknown guard": ({"guard": "nobody"}, "guard", ("nobody",)),
    "groups cannot judge pairs": ({"evaluation": "groups"}, "evaluation", ("kind groups", "scored or queries")),
    "pairs cannot judge groups": ({"dataset": "groups", "evaluation": "pairs"}, "evaluation", ("kind pairs", "scored or groups")),
    "a loss of another kind": ({"recipe": {"loss": "cosent"}}, "recipe", ("recipe.loss", "contrastive", "cosent")),
    "query only without documents": (
        {"dataset": "groups", "recipe": {"query_only": True}}, "recipe", ("query_only", "groups")
    ),
    "a budget above 1": ({"forgetting_budget": 1.5}, "forgetting_budget", ("1",)),
    "a budget below 0": ({"forgetting_budget": -0.1}, "forgetting_budget", ("0",)),
    "unknown mode": ({"mode": "half"}, "mode", ("'head', 'lora' or 'full'",)),
    "tuning without a mode": ({"tuning": {"epochs": 1}}, "tuning", ("lora and full",)),
    "tuning with a wrong number": ({"mode": "full", "tuning": {"epochs": 0}}, "tuning", ("tuning.epochs", "1 to 1,000")),
    "tuning of another mode": ({"mode": "full", "tuning": {"mode": "lora"}}, "tuning", ("lora", "full")),
    "no matrix, with mode full": ({"mode": "full", "recipe": {"norm": "pre"}}, "recipe", ("mode full", "norm 'none'")),
    "concat with mode lora": ({"mode": "lora", "recipe": {"merge": "concat"}}, "recipe", ("mode lora", "merge 'add'")),
    "query only with mode full": ({"mode": "full", "recipe": {"query_only": True}}, "recipe", ("query_only false",)),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused_when_it_is_submitted(
    service: Client, fields: dict[str, Any], param: str, words: tuple[str, ...]
) -> None:
    jobs = service.get("/v1/jobs", limit=100)["data"]

    answer = service.http.post("/v1/jobs", json={"model": "never", "dataset": "pairs", **fields})

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert all(word in error["message"] for word in words), error["message"]
    assert service.get("/v1/jobs", limit=100)["data"] == jobs
    assert service.http.get("/v1/models/never").status_code == 404


# --- the search ---------------------------------------------------------------------------------------------------------------


def test_auto_searches_and_says_what_it_weighed(service: Client) -> None:
    job = train(service, "searched", "pairs", recipe="auto")
    result = job["result"]
    manifest = service.get(f"/v1/models/{result['version']}")["manifest"]

    assert manifest["recipe"] == "auto"
    assert result["trials"]["finished"] == result["trials"]["planned"] == manifest["planned"]
    assert {trial["number"] for trial in manifest["trials"]} == set(range(manifest["planned"]))
    assert {"identity", "procrustes", "ridge", "head"} <= set(manifest["candidates"])
    assert manifest["curve"][0] == {"strength": 0.0, "score": manifest["candidates"]["identity"]["score"], "forgetting": 0.0}
    assert result["sweep_seconds"] > result["fit_seconds"]
    told = [event["message"] for event in service.get(f"/v1/jobs/{job['id']}/events", limit=100)["data"]]
    for words in ("encoded ", f"tried {manifest['planned']} of {manifest['planned']} recipes", "fitted ", "forgot "):
        assert any(message.startswith(words) or words in message for message in told), told
    again = train(service, "searched", "pairs", recipe="auto")
    second = service.get(f"/v1/models/{again['result']['version']}")["manifest"]
    assert second["head_sha256"] == manifest["head_sha256"]
    assert np.isclose(second["strength"], manifest["strength"])
