"""Modes full and lora over HTTP, with an encoder so small that it trains in a second: a new encoder and a new model over it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.settings import EncoderSpec
from tests.conftest import Client, Start
from tests.workers.test_stop_and_resume import told, wait_for
from tests.zerogate.test_tuning import WORDS, texts, tiny_encoder
from zerogate import Encoder

ANCHORS, POSITIVES = texts(120, seed=1), texts(120, seed=2)
PAIRS = [{"anchor": a, "positive": b} for a, b in zip(ANCHORS, POSITIVES, strict=True)]
GROUPS = [{"text": f"{text} {WORDS[n % 4]}", "label": f"kind-{n % 4}"} for n, text in enumerate(ANCHORS)]
SCORED = [{"sentence1": a, "sentence2": b, "score": (n % 5) / 4} for n, (a, b) in enumerate(zip(ANCHORS, POSITIVES, strict=True))]
GUARD = [{"sentence1": a, "sentence2": b, "score": float(a[:5] < b[:5])} for a, b in zip(texts(20, 3), texts(20, 4), strict=True)]
SHORT = {"epochs": 2, "batch_size": 16}


def tune(client: Client, model: str, mode: str, **fields: Any) -> str:
    body = {"model": model, "dataset": "pairs", "guard": "guard", "recipe": {"epochs": 5}, "mode": mode, "tuning": SHORT}
    job_id: str = client.post("/v1/jobs", {**body, **fields})["id"]
    return job_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> EncoderSpec:
    return EncoderSpec(name="tiny", source=str(tiny_encoder(folder / "tiny").path))


@pytest.fixture(scope="module")
def service(start: Start, folder: Path, tiny: EncoderSpec) -> Iterator[Client]:
    with start(folder / "data", encoders=(tiny,)) as client:
        upload(client)
        yield client


def upload(client: Client) -> None:
    for name, kind, rows in (("pairs", "pairs", PAIRS), ("groups", "groups", GROUPS), ("scored", "scored", SCORED)):
        client.upload(rows, kind=kind, name=name)
    client.upload(GUARD, kind="scored", name="guard")


def embedded(client: Client, model: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray([one["embedding"] for one in client.post("/v1/embeddings", {"model": model, "input": ANCHORS[:5]})["data"]])


def stored(folder: Path, job_id: str) -> Path:
    (found,) = [path.parent for path in (folder / "data" / "files" / "encoders" / job_id).rglob("modules.json")]
    return found


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_tuned_encoder_is_an_encoder_and_a_model_of_its_own(service: Client, folder: Path, mode: str) -> None:
    job = service.wait(tune(service, f"by-{mode}", mode))
    assert job["state"] == "succeeded", job["error"]

    tuned = job["result"]["tuned_encoder"]
    assert (tuned["model"], tuned["encoder"]) == (f"by-{mode}-1-{mode}", f"by-{mode}-1-{mode}-encoder")
    assert job["result"]["tuned"]["mrr@10"] == service.get(f"/v1/models/by-{mode}@1")["scores"]["tuned"]["mrr@10"]
    assert (tuned["examples"], tuned["resumed_from_step"]) == (job["result"]["examples"], 0)
    assert tuned["steps"] == 2 * -(-tuned["examples"] // 16)
    encoder = next(one for one in service.get("/v1/encoders")["data"] if one["name"] == tuned["encoder"])
    assert encoder["parent_version"] == f"by-{mode}@1"
    assert service.get(f"/v1/models/{tuned['model']}")["encoder"] == tuned["encoder"]
    by_hand = Encoder(str(stored(folder, job["id"])), dtype="float32", device="cpu")
    assert by_hand.fingerprint == encoder["fingerprint"]
    assert np.abs(embedded(service, tuned["model"]) - by_hand.encode(ANCHORS[:5], role="query")).max() < 1e-5
    assert np.abs(embedded(service, tuned["model"]) - embedded(service, "tiny")).max() > 0.01
    assert not (folder / "data" / "files" / "work" / job["id"]).exists()


def test_its_version_0_tells_how_it_compares_with_the_original(service: Client) -> None:
    job = service.wait(tune(service, "compared", "full", tuning={"epochs": 8, "batch_size": 16}))
    zero = service.get(f"/v1/models/{job['result']['tuned_encoder']['model']}@0")

    assert zero["scores"]["base"] == pytest.approx(job["result"]["base"])
    assert zero["scores"]["tuned"]["mrr@10"] == pytest.approx(job["result"]["tuned_encoder"]["tuned"]["mrr@10"])
    gain = zero["scores"]["tuned"]["mrr@10"] - zero["scores"]["base"]["mrr@10"]
    assert zero["verdict"]["difference"] == pytest.approx(gain)
    assert zero["scores"]["forgetting"]["score"] == "spearman"
    assert zero["manifest"]["tuning"]["epochs"] == 8
    assert zero["manifest"]["mode"] == "full"


@pytest.mark.parametrize("dataset", ["groups", "scored"])
def test_other_kinds_tune_too(service: Client, dataset: str) -> None:
    job = service.wait(tune(service, f"of-{dataset}", "full", dataset=dataset))

    assert job["state"] == "succeeded", job["error"]
    assert job["result"]["tuned_encoder"]["verdict"]["score"] == {"groups": "accuracy@centroid", "scored": "spearman"}[dataset]


def test_deleting_the_parent_keeps_the_encoder_and_deleting_its_last_model_does_not(service: Client, folder: Path) -> None:
    job = service.wait(tune(service, "parent", "full"))
    tuned = job["result"]["tuned_encoder"]
    before = embedded(service, tuned["model"])

    service.http.delete("/v1/models/parent").raise_for_status()

    encoder = next(one for one in service.get("/v1/encoders")["data"] if one["name"] == tuned["encoder"])
    assert encoder["parent_version"] is None
    assert np.array_equal(embedded(service, tuned["model"]), before)
    again = service.wait(tune(service, "parent", "full"))["result"]["tuned_encoder"]
    assert again["model"] == "parent-1-full-2"  # the numbers began anew, and the name was taken

    files = stored(folder, job["id"])
    service.http.delete(f"/v1/models/{tuned['model']}").raise_for_status()
    assert tuned["encoder"] not in [one["name"] for one in service.get("/v1/encoders")["data"]]
    assert not files.exists()
    assert service.get(f"/v1/models/{again['model']}")["encoder"] == again["encoder"]


def test_a_model_name_that_leaves_no_room_is_refused(service: Client) -> None:
    answer = service.http.post("/v1/jobs", json={"model": "m" * 41, "dataset": "pairs", "mode": "lora"})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


def test_a_stopped_tuning_goes_on_after_the_next_start_and_the_result_lasts(
    start: Start, tiny: EncoderSpec, tmp_path: Path
) -> None:
    long = {"epochs": 60, "batch_size": 8}
    with start(tmp_path / "data", encoders=(tiny,)) as client:
        upload(client)
        job_id = tune(client, "long", "full", tuning=long)
        wait_for(client, job_id, lambda progress: progress["stage"] == "tune the encoder" and progress["done"] > 5)

    with start(tmp_path / "data", encoders=(tiny,)) as client:
        job = client.wait(job_id, seconds=120)

        assert job["state"] == "succeeded", job["error"]
        tuned = job["result"]["tuned_encoder"]
        assert tuned["resumed_from_step"] > 5
        assert "put back: the worker is being stopped" in told(client, job_id)
        before = embedded(client, tuned["model"])

    (tmp_path / "data").rename(tmp_path / "moved")
    with start(tmp_path / "moved", encoders=(tiny,)) as client:
        assert np.abs(embedded(client, tuned["model"]) - before).max() < 1e-6
        child = client.wait(client.post("/v1/jobs", {
            "model": "child", "encoder": tuned["encoder"], "dataset": "pairs", "guard": "guard", "recipe": {"epochs": 2}
        })["id"])  # fmt: skip
        assert child["state"] == "succeeded", child["error"]
