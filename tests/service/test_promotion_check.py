"""What goes live by itself: better on the task, little forgotten, and not behind what is live."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Client, Start

CUES = ["anchor", "basket", "copper", "drum", "eagle", "flour", "glove", "hammer", "ivory", "jungle", "kite", "lemon"]
ANSWERS = [f"{who} {what}" for who in ("the clerk", "a sailor", "my cousin") for what in ("hums", "waits", "left", "knits")]


def learnable(shift: int = 0) -> list[dict[str, Any]]:
    """Cue and answer have nothing to do with each other: only a head that has learned them finds the answer."""
    return [
        {"anchor": wording.format(cue), "positive": ANSWERS[(n + shift) % 12], "split": split}
        for wording, split in (("the {}", "train"), ("a {}, please", "train"), ("my {}", "test"))
        for n, cue in enumerate(CUES)
    ]


# What the training turns upside down: cues are like cues, as the encoder finds, and unlike what they shall mean.
OPPOSED = [
    {"sentence1": f"the {cue}", "sentence2": other, "score": score}
    for n, cue in enumerate(CUES)
    for other, score in ((f"a {cue}, please", 1.0), (ANSWERS[n], 0.0), (ANSWERS[n - 3], 0.5))
]


@pytest.fixture(scope="module")
def service(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with start(tmp_path_factory.mktemp("check")) as client:
        client.upload(learnable(), kind="pairs", name="learnable")
        client.upload(learnable(5), kind="pairs", name="otherwise")
        client.upload(OPPOSED, kind="scored", name="opposed")
        yield client


def train(service: Client, model: str, dataset: str = "learnable", **fields: Any) -> Any:
    body = {"model": model, "dataset": dataset, "recipe": {"epochs": 40, "learning_rate": 0.02}, "guard": service.small_guard()}
    job = service.wait(service.post("/v1/jobs", {**body, **fields})["id"])
    assert job["state"] == "succeeded", job["error"]
    return job["result"]


def live(service: Client, model: str) -> int:
    found: int = service.get(f"/v1/models/{model}")["live_version"]
    return found


def test_a_version_that_forgets_too_much_is_kept_back_however_good_it_is(service: Client) -> None:
    result = train(service, "forgetful", guard="opposed", forgetting_budget=0.0)

    assert result["verdict"]["outcome"] == "better"
    lost = result["forgetting"]["value"]
    assert lost > 0
    assert (result["promoted"], live(service, "forgetful")) == (False, 0)
    assert f"forgot {lost:+.4f} of the guard's spearman (at most 0.0000 is allowed)" in result["not_promoted_because"]

    refused = service.http.post("/v1/models/forgetful/promote", json={"version": 1})

    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["code"] == "promotion_check_failed"
    for words in ("'better'", f"{result['verdict']['difference']:+.4f}", f"{lost:+.4f}", "0.0000"):
        assert words in error["message"]
    assert service.post("/v1/models/forgetful/promote", {"version": 1, "force": True})["live_version"] == 1


def test_the_same_version_goes_live_within_a_larger_budget(service: Client) -> None:
    result = train(service, "generous", guard="opposed", forgetting_budget=1.0)

    assert (result["promoted"], result["not_promoted_because"], live(service, "generous")) == (True, None, 1)
    assert result["live"] == {"version": "generous@0", "score": result["base"]["mrr@10"]}


def test_a_smaller_budget_chooses_a_smaller_strength(service: Client) -> None:
    strict, generous = (train(service, f"b{n}", guard="opposed", forgetting_budget=budget) for n, budget in enumerate((0.0, 1.0)))

    assert strict["strength"] < generous["strength"]
    assert strict["forgetting"]["value"] < generous["forgetting"]["value"]


def test_a_version_behind_the_live_one_is_kept_back(service: Client) -> None:
    good = train(service, "line", forgetting_budget=1.0)
    assert good["promoted"] is True

    worse = train(service, "line", forgetting_budget=1.0, recipe={"epochs": 12, "learning_rate": 0.01})

    assert worse["base"]["mrr@10"] < worse["tuned"]["mrr@10"] < good["tuned"]["mrr@10"]
    assert worse["verdict"]["outcome"] == "better"
    assert worse["live"] == {"version": "line@1", "score": pytest.approx(good["tuned"]["mrr@10"], abs=1e-9)}
    assert (worse["promoted"], live(service, "line")) == (False, 1)
    for words in ("line@1, which is live, is better", f"{good['tuned']['mrr@10']:.4f}", f"{worse['tuned']['mrr@10']:.4f}"):
        assert words in worse["not_promoted_because"]
    again = train(service, "line", forgetting_budget=1.0)  # as good as the live one is good enough
    assert (again["promoted"], live(service, "line")) == (True, 3)


def test_the_live_version_is_weighed_on_the_test_of_the_new_job(service: Client) -> None:
    first = train(service, "moving", forgetting_budget=1.0)

    second = train(service, "moving", "otherwise", forgetting_budget=1.0)

    assert second["live"]["version"] == "moving@1"
    assert second["live"]["score"] < first["tuned"]["mrr@10"]  # it learned other answers
    assert (second["promoted"], live(service, "moving")) == (True, 2)


def test_always_and_never_ask_nobody(service: Client) -> None:
    never = train(service, "plain", promote="never")
    assert (never["promoted"], never["live"], live(service, "plain")) == (False, None, 0)
    assert "promote: never" in never["not_promoted_because"]

    always = train(service, "plain", promote="always", guard="opposed", forgetting_budget=0.0)
    assert (always["promoted"], always["not_promoted_because"], live(service, "plain")) == (True, None, 2)
