"""Tuning an encoder, on one so small that it trains in a second: what learns, what does not, and what stands in the folder."""

import dataclasses
import random
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast, LlamaConfig, LlamaModel
from transformers.utils import logging

from zerogate import tuning_model, tuning_trainer
from zerogate.encoder import Encoder
from zerogate.encoder_files import EncoderFiles, describe_encoder
from zerogate.errors import TrainingDiverged, ZerogateError
from zerogate.folded import FoldedHead
from zerogate.precision import best_dtype
from zerogate.tuning import TunedEncoder, export_encoder, tune_encoder
from zerogate.tuning_model import load_model, merge_adapters, unfreeze
from zerogate.tuning_recipe import TuningExamples, TuningRecipe

DIM, LAYERS = 32, 2
WORDS = [f"word{number}" for number in range(120)]
STEPS = 15  # 40 pairs in batches of 8, three epochs


class Stop(Exception):
    """What somebody who cancels a job raises."""


def tiny_encoder(folder: Path, *, normalise: bool = True, causal: bool = False) -> EncoderFiles:
    """A random transformer of two layers that reads 120 words, with up to 24 tokens a text.

    causal: a language model, whose texts are padded on the left and whose last token is the vector; else a BERT.
    """
    logging.disable_progress_bar()
    raw = folder.with_name(f"{folder.name}-raw")
    raw.mkdir(parents=True)
    (raw / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    size = {"vocab_size": len(WORDS) + 5, "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    size |= {"intermediate_size": 64, "max_position_embeddings": 24}
    torch.manual_seed(0)
    kind, config = (LlamaModel, LlamaConfig) if causal else (BertModel, BertConfig)
    more = {"num_key_value_heads": 2} if causal else {}
    kind(config(**size, **more, initializer_range=0.2, pad_token_id=0)).save_pretrained(raw)
    BertTokenizerFast(str(raw / "vocab.txt"), padding_side="left" if causal else "right").save_pretrained(raw)
    pooling = Pooling(DIM, pooling_mode="lasttoken" if causal else "mean")
    modules = [Transformer(str(raw)), pooling, *([Normalize()] if normalise else [])]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return describe_encoder(str(folder))


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 20))) for _ in range(count)]


ANCHORS, POSITIVES = texts(40, 1), texts(40, 2)
PAIRS = TuningExamples("pairs", {"anchor": ANCHORS, "positive": POSITIVES})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> EncoderFiles:
    return tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def head() -> FoldedHead:
    draw = np.random.default_rng(0)
    matrix = np.eye(DIM) + 0.1 * draw.normal(size=(DIM, DIM))
    return FoldedHead(matrix.astype(np.float32), (0.1 * draw.normal(size=DIM)).astype(np.float32))


@pytest.fixture
def tuned(files: EncoderFiles, head: FoldedHead, tmp_path: Path) -> Callable[..., TunedEncoder]:
    """Tune the tiny encoder: `tuned("name", mode="lora", on_step=...)`; what is no argument of tune_encoder is the recipe's."""

    def tune(name: str, *, examples: TuningExamples = PAIRS, encoder: EncoderFiles = files, **options: Any) -> TunedEncoder:
        known = {key: options.pop(key) for key in ("on_step", "work") if key in options}
        recipe = TuningRecipe(**{"batch_size": 8, "learning_rate": 1e-3, **options})
        given = {"work": tmp_path / f"{name}-work", **known}
        return tune_encoder(encoder, head, examples, recipe=recipe, folder=tmp_path / name, device="cpu", **given)

    return tune


def stopping_at(step: int) -> Callable[[int, int, float], None]:
    def on_step(done: int, steps: int, loss: float) -> None:
        if done == step:
            raise Stop

    return on_step


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The transformer's weights by name."""
    return load_file(folder / "model.safetensors")


def changed(files: EncoderFiles, result: TunedEncoder) -> set[str]:
    before, after = weights(files.path), weights(result.path)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def vectors(source: EncoderFiles | Path, what: list[str]) -> NDArray[np.float32]:
    files = source if isinstance(source, EncoderFiles) else describe_encoder(str(source))
    return Encoder(files, device="cpu", dtype="float32").encode(what, role="query")


def mrr(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> float:
    similarities = queries @ documents.T
    return float(np.mean(1 / (similarities >= np.diag(similarities)[:, None]).sum(axis=1)))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_belongs_together_comes_together(tuned: Callable[..., TunedEncoder], files: EncoderFiles, mode: str) -> None:
    seen: list[tuple[int, int, float]] = []

    result = tuned("new", mode=mode, epochs=12, learning_rate=5e-3, on_step=lambda *progress: seen.append(progress))

    assert result.losses[-1] < 0.5 * result.losses[0]
    assert mrr(vectors(files, ANCHORS), vectors(files, POSITIVES)) < 0.3
    assert mrr(vectors(result.path, ANCHORS), vectors(result.path, POSITIVES)) > 0.8
    assert [(step, steps) for step, steps, _ in seen] == [(step, 60) for step in range(1, 61)]
    assert (result.steps, result.resumed_from_step, len(result.losses)) == (60, 0, 12)
    np.testing.assert_allclose(np.mean([loss for _, _, loss in seen[:5]]), result.losses[0], rtol=1e-6)
    assert 0 < result.seconds < 60


def test_the_encoder_that_serves_is_not_touched(tuned: Callable[..., TunedEncoder], files: EncoderFiles) -> None:
    served = Encoder(files, device="cpu")
    on_disk, before = contents(files.path), served.encode(ANCHORS, role="query")

    result = tuned("new")

    assert contents(files.path) == on_disk
    assert served.encode(ANCHORS, role="query").tobytes() == before.tobytes()
    assert np.abs(vectors(result.path, ANCHORS) - vectors(files, ANCHORS)).max() > 0.05


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("offset", [True, False])
def test_before_the_first_step_it_is_the_encoder_with_its_head(
    head: FoldedHead, tmp_path: Path, normalise: bool, offset: bool
) -> None:
    encoder = tiny_encoder(tmp_path / "encoder", normalise=normalise)
    head = head if offset else FoldedHead(head.matrix, None)

    export_encoder(encoder, head, tmp_path / "exported")

    expected = head.vectors(vectors(encoder, ANCHORS))
    np.testing.assert_allclose(vectors(tmp_path / "exported", ANCHORS), expected, atol=1e-6)
    assert np.abs(expected - vectors(encoder, ANCHORS)).max() > 0.05
    stock = SentenceTransformer(str(tmp_path / "exported"), device="cpu", local_files_only=True)  # nothing of ours in there
    np.testing.assert_allclose(stock.encode(ANCHORS, show_progress_bar=False), expected, atol=1e-6)


def test_a_head_that_appends_numbers_goes_with_it(files: EncoderFiles, tmp_path: Path) -> None:
    wide = FoldedHead(np.random.default_rng(1).normal(size=(48, DIM)).astype(np.float32), None)

    export_encoder(files, wide, tmp_path / "wide")

    assert describe_encoder(str(tmp_path / "wide")).dim == 48
    np.testing.assert_allclose(vectors(tmp_path / "wide", ANCHORS), wide.vectors(vectors(files, ANCHORS)), atol=1e-6)


def test_the_whole_encoder_learns_and_the_head_too(tuned: Callable[..., TunedEncoder], files: EncoderFiles) -> None:
    result = tuned("new")

    # All but what no text goes through, and the biases of keys, which change no attention.
    still = {name for name in weights(files.path) if name not in changed(files, result)}
    assert all("pooler" in name or name.endswith("key.bias") for name in still)
    assert "embeddings.word_embeddings.weight" in changed(files, result)


def test_the_head_learns_at_its_own_rate(tuned: Callable[..., TunedEncoder], files: EncoderFiles, head: FoldedHead) -> None:
    still, moved = (
        load_file(tuned(name, head_learning_rate=rate).path / "3_Dense" / "model.safetensors")
        for name, rate in (("still", 0.0), ("moved", 1e-2))
    )

    assert still["linear.weight"].numpy().tobytes() == head.matrix.tobytes()
    assert head.offset is not None
    assert still["linear.bias"].numpy().tobytes() == head.offset.tobytes()
    # AdamW's steps have about the size of the rate: 15 of them, with a schedule whose mean is half of it.
    assert 0.01 < np.abs(moved["linear.weight"].numpy() - head.matrix).max() < 0.15


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_layers_that_are_frozen_keep_their_bytes(tuned: Callable[..., TunedEncoder], files: EncoderFiles, mode: str) -> None:
    last, both = (changed(files, tuned(f"new-{layers}", mode=mode, last_layers=layers)) for layers in (1, 2))

    assert last
    assert all(name.startswith("encoder.layer.1.") for name in last)
    assert {name.split(".")[2] for name in both} == {"0", "1"}  # and no embeddings, of whatever mode


def test_layers_are_found_in_another_architecture(tuned: Callable[..., TunedEncoder], tmp_path: Path) -> None:
    causal = tiny_encoder(tmp_path / "causal", causal=True)

    for mode in ("full", "lora"):
        last = changed(causal, tuned(mode, encoder=causal, mode=mode, last_layers=1))
        assert {name.rpartition(".")[0].split(".")[1] for name in last} == {"1"}


def test_more_layers_than_there_are_cannot_be_unfrozen(tuned: Callable[..., TunedEncoder]) -> None:
    with pytest.raises(ZerogateError, match=r"tuning\.last_layers must be at most 2, the encoder's, found 3"):
        tuned("new", last_layers=3)


def test_merged_adapters_give_what_they_gave_beside_the_weights(files: EncoderFiles, head: FoldedHead) -> None:
    model = load_model(files, head, "cpu")
    plain = set(model.state_dict())
    unfreeze(model, TuningRecipe(mode="lora", lora_rank=4))
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "lora_B" in name:  # zero at first: without this the adapters would do nothing
                one.normal_(std=0.05)
    learning = [name for name, one in model.named_parameters() if one.requires_grad]
    before = encoded(model.eval())

    merge_adapters(model)

    assert sum("lora" in name for name in learning) == 2 * 6 * LAYERS
    assert len(learning) == 2 * 6 * LAYERS + 2
    assert set(model.state_dict()) == plain
    np.testing.assert_allclose(encoded(model), before, atol=1e-5)
    assert np.abs(before - encoded(load_model(files, head, "cpu").eval())).max() > 0.05


def encoded(model: SentenceTransformer) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model.encode(ANCHORS, show_progress_bar=False)
    return found


@pytest.mark.parametrize("options", [{}, {"mode": "lora", "lora_dropout": 0.3}], ids=["full", "lora"])
@pytest.mark.parametrize("step", [1, 5, 7, STEPS])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    tuned: Callable[..., TunedEncoder], options: dict[str, Any], step: int
) -> None:
    """In the middle of an epoch, at its end, and after the last step."""
    expected = tuned("whole", **options)
    with pytest.raises(Stop):
        tuned("stopped", on_step=stopping_at(step), **options)
    seen: list[int] = []

    found = tuned("stopped", on_step=lambda done, steps, loss: seen.append(done), **options)

    assert found.resumed_from_step == step
    assert seen == list(range(step + 1, STEPS + 1))
    assert contents(found.path) == contents(expected.path)
    assert found.losses == expected.losses
    assert found.seconds > 0


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tuned: Callable[..., TunedEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tuned("whole")
    monkeypatch.setattr(tuning_trainer, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(tuning_trainer, "_WRITING_SHARE", 1e9)
    work, image = tmp_path / "killed-work", tmp_path / "image"

    def on_step(done: int, steps: int, loss: float) -> None:
        if done == 9:  # what a killed process would leave behind, and a checkpoint that it was just writing
            shutil.copytree(work, image)
            (image / ".unfinished-1234").mkdir()
            (image / ".unfinished-1234" / "weights.safetensors").write_bytes(b"half of")

    tuned("killed", on_step=on_step)
    assert [path.name for path in image.glob("checkpoint-*")] == ["checkpoint-8"]

    found = tuned("again", work=image)

    assert found.resumed_from_step == 8
    assert contents(found.path) == contents(expected.path)
    assert list(image.iterdir()) == []


def test_who_stops_gets_his_own_exception_and_leaves_a_checkpoint(tuned: Callable[..., TunedEncoder], tmp_path: Path) -> None:
    stop = KeyboardInterrupt()

    def on_step(done: int, steps: int, loss: float) -> None:
        if done == 4:
            raise stop

    with pytest.raises(KeyboardInterrupt) as caught:
        tuned("new", on_step=on_step)

    assert caught.value is stop
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")) == ["new-work/checkpoint-4"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", [{"temperature": 0.1}, {"seed": 1}, {"examples": dataclasses.replace(PAIRS)}])
def test_checkpoints_of_other_runs_are_not_taken_up(tuned: Callable[..., TunedEncoder], change: dict[str, Any]) -> None:
    with pytest.raises(Stop):
        tuned("new", on_step=stopping_at(4))
    if "examples" in change:
        change = {"examples": TuningExamples("pairs", {"anchor": POSITIVES, "positive": ANCHORS})}

    assert tuned("new", **change).resumed_from_step == 0


def test_nothing_that_is_written_may_hold_a_pickle(tuned: Callable[..., TunedEncoder], tmp_path: Path) -> None:
    with pytest.raises(Stop):
        tuned("new", on_step=stopping_at(4))
    stopped = [path for path in (tmp_path / "new-work").rglob("*") if path.is_file()]
    result = tuned("new")

    finished = [path for path in result.path.rglob("*") if path.is_file()]
    assert {path.name for path in stopped} == {
        "weights.safetensors",
        "optimizer.safetensors",
        "randomness.safetensors",
        "trainer_state.json",
        "progress.json",
    }
    assert {path.suffix for path in finished} == {".safetensors", ".json"}
    assert list((tmp_path / "new-work").iterdir()) == []


def test_a_folder_that_is_there_already_is_left_alone(tuned: Callable[..., TunedEncoder], tmp_path: Path) -> None:
    result = tuned("new")
    before = contents(result.path)

    with pytest.raises(FileExistsError, match="new exists already"):
        tuned("new", seed=1)

    assert contents(result.path) == before


def test_one_seed_gives_one_result_and_another_seed_another(tuned: Callable[..., TunedEncoder]) -> None:
    once, again, other = tuned("once"), tuned("again"), tuned("other", seed=1)

    assert contents(once.path) == contents(again.path)
    assert contents(once.path) != contents(other.path)


def test_the_result_is_an_encoder_of_its_own(tuned: Callable[..., TunedEncoder], files: EncoderFiles) -> None:
    given = dataclasses.replace(files, prompts={"query": "word1 word2 "}, max_length=12)

    found = describe_encoder(str(tuned("new", encoder=given).path))

    assert found.fingerprint not in (files.fingerprint, given.fingerprint)
    assert (found.prompts, found.max_length, found.dim) == (given.prompts, 12, DIM)


def test_it_serves_in_bf16_what_was_trained(tuned: Callable[..., TunedEncoder]) -> None:
    result = tuned("new")
    expected = vectors(result.path, ANCHORS)

    served = Encoder(str(result.path), device="cpu", dtype="bfloat16").encode(ANCHORS, role="query")

    assert (served * expected).sum(axis=1).min() > 0.999
    assert np.abs(served - expected).max() > 1e-6  # it was bf16
    np.testing.assert_allclose(np.linalg.norm(served.astype(np.float64), axis=1), 1, atol=1e-6)


def test_prompts_stand_before_the_texts_of_their_role(
    tuned: Callable[..., TunedEncoder], files: EncoderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_model, "best_dtype", lambda device: "float32")  # in bf16 a vector depends on its batch
    prompted = dataclasses.replace(files, prompts={"query": "word1 ", "document": "word2 word3 "})
    written = {"anchor": [f"word1 {text}" for text in ANCHORS], "positive": [f"word2 word3 {text}" for text in POSITIVES]}

    by_role, by_hand = tuned("role", encoder=prompted), tuned("hand", examples=TuningExamples("pairs", written))

    np.testing.assert_allclose(by_role.losses, by_hand.losses, rtol=1e-3)
    assert abs(tuned("plain").losses[0] / by_hand.losses[0] - 1) > 0.01


def test_triplets_push_their_negatives_away(tuned: Callable[..., TunedEncoder]) -> None:
    negatives = [texts(1 + row % 3, 100 + row) for row in range(40)]
    columns = {"anchor": ANCHORS, "positive": POSITIVES, "negatives": negatives}

    with_them = tuned("with", examples=TuningExamples("triplets", columns), learning_rate=5e-3, epochs=12)
    without = tuned("without", learning_rate=5e-3, epochs=12)

    first = [row[0] for row in negatives]
    similar = [float((vectors(one.path, ANCHORS) * vectors(one.path, first)).sum(axis=1).mean()) for one in (with_them, without)]
    assert similar[0] < similar[1] - 0.1
    assert mrr(vectors(with_them.path, ANCHORS), vectors(with_them.path, POSITIVES)) > 0.8


def test_scores_are_followed_in_their_order(tuned: Callable[..., TunedEncoder], files: EncoderFiles) -> None:
    scores = [number / 39 for number in range(40)]
    examples = TuningExamples("scored", {"sentence1": ANCHORS, "sentence2": POSITIVES, "score": scores})

    result = tuned("new", examples=examples, learning_rate=5e-3, epochs=12)

    def agreement(source: EncoderFiles | Path) -> float:
        return float(spearmanr((vectors(source, ANCHORS) * vectors(source, POSITIVES)).sum(axis=1), scores)[0])

    assert agreement(files) < 0.4
    assert agreement(result.path) > 0.9


def test_texts_of_one_label_come_together(tuned: Callable[..., TunedEncoder], files: EncoderFiles) -> None:
    labels = [number % 4 for number in range(40)]
    examples = TuningExamples("groups", {"text": ANCHORS, "label": [f"label {label}" for label in labels]})

    result = tuned("new", examples=examples, learning_rate=5e-3, epochs=20)

    def nearest_shares_label(source: EncoderFiles | Path) -> float:
        found = vectors(source, ANCHORS)
        similarities = found @ found.T - 2 * np.eye(40)
        return float(np.mean([labels[nearest] == label for nearest, label in zip(similarities.argmax(1), labels, strict=True)]))

    assert nearest_shares_label(files) < 0.5
    assert nearest_shares_label(result.path) > 0.9


def test_a_loss_that_is_no_number_is_told(files: EncoderFiles, tmp_path: Path) -> None:
    broken = FoldedHead(np.full((DIM, DIM), np.nan, dtype=np.float32), None)

    with pytest.raises(TrainingDiverged, match="the loss became nan at step 1"):
        tune_encoder(files, broken, PAIRS, folder=tmp_path / "new", work=tmp_path / "work", device="cpu")


def test_it_is_quiet_and_leaves_the_process_as_it_was(
    tuned: Callable[..., TunedEncoder],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", None)  # whoever looks something up fails
    state, threads, verbosity = torch.get_rng_state(), torch.get_num_threads(), logging.get_verbosity()

    tuned("full")
    tuned("lora", mode="lora")

    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), logging.get_verbosity()) == (threads, verbosity)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("allowed", [0, 40, 10**9])
def test_batches_in_parts_give_what_whole_batches_give(
    head: FoldedHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, allowed: int
) -> None:
    """Two columns of 20 texts, from 1 to 20 words, with prompts of their own or without."""
    monkeypatch.setitem(tuning_model._PADDING_ALLOWED, "cpu", allowed)
    monkeypatch.setattr(tuning_model, "best_dtype", lambda device: "float32")
    model = load_model(tiny_encoder(tmp_path / side, causal=side == "left"), head, "cpu").eval()
    columns = [ANCHORS[:20], [text.split()[0] for text in POSITIVES[:20]]]

    found = model.vectors([model.preprocess(column) for column in columns])

    for column, made in zip(columns, found, strict=True):
        np.testing.assert_allclose(made.detach(), model.encode(column, show_progress_bar=False), atol=1e-5)
    assert bool((model.preprocess(columns[0])["attention_mask"][:, 0] == 0).any()) == (side == "left")


def test_dropout_is_off_except_for_the_adapters(files: EncoderFiles, head: FoldedHead) -> None:
    plain, adapted = (load_model(files, head, "cpu").train() for _ in range(2))
    unfreeze(adapted, TuningRecipe(mode="lora", lora_dropout=0.5))
    with torch.no_grad():
        for name, one in adapted.named_parameters():
            if "lora_B" in name:
                one.normal_(std=0.05)
    adapted.train()

    for model, varies in ((plain, False), (adapted, True)):
        once, again = (model.vectors([model.preprocess(ANCHORS)])[0] for _ in range(2))
        assert torch.equal(once, again) != varies
    adapted.eval()
    assert torch.equal(*(adapted.vectors([adapted.preprocess(ANCHORS)])[0] for _ in range(2)))


@pytest.mark.skipif(best_dtype(torch.device("cpu")) != "bfloat16", reason="this processor does not multiply bf16 natively")
def test_the_transformer_trains_in_bf16_and_the_head_in_fp32(files: EncoderFiles, head: FoldedHead) -> None:
    model = load_model(files, head, "cpu").train()
    seen: Mapping[str, list[torch.dtype]] = {"transformer": [], "head": []}
    model[0].auto_model.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda module, given, made: seen["transformer"].append(made.dtype)
    )
    model[3].linear.register_forward_hook(lambda module, given, made: seen["head"].append(made.dtype))

    made = model.vectors([model.preprocess(ANCHORS)])[0]

    assert set(seen["transformer"]) == {torch.bfloat16}
    assert set(seen["head"]) == {torch.float32}
    assert made.dtype == torch.float32
