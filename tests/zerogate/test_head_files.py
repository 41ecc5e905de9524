"""Heads on disk: what is written comes back to the bit, and what does not fit is refused."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from zerogate.errors import InvalidHead
from zerogate.folded import Block
from zerogate.head_files import HEAD_FILE, MANIFEST_FILE, DumpedHead, dump_head, load_head

DIM = 12
ENCODER = "e" * 64
FACTS = {"recipe": {"epochs": 60}, "scores": {"ndcg@10": 0.61}, "dataset_sha256": "d" * 64}


def some_blocks(count: int = 2, *, bias: bool = True, seed: int = 0) -> list[Block]:
    draw = np.random.default_rng(seed)
    return [
        Block(
            gate=draw.normal(size=DIM).astype(np.float32),
            weight=draw.normal(size=(DIM, DIM)).astype(np.float32),
            bias=draw.normal(size=DIM).astype(np.float32) if bias else None,
        )
        for _ in range(count)
    ]


def dump(blocks: list[Block]) -> DumpedHead:
    return dump_head(blocks, strength=0.8, encoder_fingerprint=ENCODER, facts=FACTS)


def forged(tensors: dict[str, np.ndarray[Any, Any]], manifest: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Weights of one's own with a manifest whose digest is right."""
    weights = safetensors.numpy.save(tensors)
    return weights, {**manifest, "head_sha256": hashlib.sha256(weights).hexdigest()}


def refusal(weights: bytes, manifest: dict[str, Any], *, encoder: str = ENCODER) -> str:
    with pytest.raises(InvalidHead) as caught:
        load_head(weights, manifest, encoder_fingerprint=encoder)
    return str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_comes_back_from_its_files_to_the_bit(count: int, bias: bool) -> None:
    blocks = some_blocks(count, bias=bias)
    files = dump(blocks).files

    found = load_head(files[HEAD_FILE], json.loads(files[MANIFEST_FILE]), encoder_fingerprint=ENCODER)

    draw = np.random.default_rng(5).normal(size=(3, DIM))
    expected = draw.copy()
    for block in blocks:
        expected = expected + block.gate * (
            expected @ block.weight.T.astype(np.float64) + (0 if block.bias is None else block.bias)
        )
    np.testing.assert_allclose(found.raw(draw.astype(np.float32)), expected, rtol=1e-4, atol=1e-3)
    kept = type(found).fold(blocks)
    assert found.matrix.tobytes() == kept.matrix.tobytes()
    assert (found.offset is None) == (not bias)
    if found.offset is not None and kept.offset is not None:
        assert found.offset.tobytes() == kept.offset.tobytes()


def test_the_same_head_gives_the_same_bytes_and_another_head_others() -> None:
    first, second, other = dump(some_blocks()), dump(some_blocks()), dump(some_blocks(seed=1))

    assert first.files == second.files
    assert first.files[HEAD_FILE] != other.files[HEAD_FILE]
    assert first.manifest["head_sha256"] != other.manifest["head_sha256"]


def test_the_order_of_the_facts_does_not_change_the_bytes() -> None:
    turned = dict(reversed(FACTS.items()))

    found = dump_head(some_blocks(), strength=0.8, encoder_fingerprint=ENCODER, facts=turned)

    assert found.files == dump(some_blocks()).files


def test_the_layout_of_the_arrays_in_memory_does_not_change_the_bytes() -> None:
    plain = some_blocks(1)
    strided = [Block(np.repeat(block.gate, 2)[::2], np.asfortranarray(block.weight), block.bias) for block in plain]

    assert dump(strided).files == dump(plain).files


def test_the_manifest_says_what_the_head_is_and_holds_no_time() -> None:
    dumped = dump(some_blocks(2, bias=False))

    assert json.loads(dumped.files[MANIFEST_FILE]) == dumped.manifest
    assert dumped.manifest == {
        **FACTS,
        "format": "zerogate-skip-head/1",
        "dim": DIM,
        "blocks": 2,
        "bias": False,
        "strength": 0.8,
        "encoder_fingerprint": ENCODER,
        "head_sha256": hashlib.sha256(dumped.files[HEAD_FILE]).hexdigest(),
    }


def test_facts_cannot_change_what_the_head_is() -> None:
    lie = {"format": "pickle", "dim": 1, "head_sha256": "0"}

    found = dump_head(some_blocks(), strength=0.8, encoder_fingerprint=ENCODER, facts={**FACTS, **lie})

    assert found.files == dump(some_blocks()).files


def test_a_fact_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_head(some_blocks(), strength=0.8, encoder_fingerprint=ENCODER, facts={"loss": math.nan})


def test_the_weights_are_plain_safetensors_and_nothing_besides() -> None:
    """The whole file, read by hand: eight bytes of length, a JSON header, and the numbers. There is no room for a pickle."""
    blocks = some_blocks(1)
    weights = dump(blocks).files[HEAD_FILE]

    header_length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + header_length])
    body = weights[8 + header_length :]
    found = {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"]) for name, entry in header.items()
    }

    assert found.keys() == {"blocks.0.gate", "blocks.0.weight", "blocks.0.bias"}
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert found["blocks.0.weight"].tolist() == blocks[0].weight.tolist()
    assert found["blocks.0.gate"].tolist() == blocks[0].gate.tolist()
    assert sum(part.nbytes for part in found.values()) == len(body)


def test_the_files_open_with_safetensors_and_json_alone(tmp_path: Path) -> None:
    blocks = some_blocks(2)
    for name, content in dump(blocks).files.items():
        (tmp_path / name).write_bytes(content)

    with safe_open(tmp_path / "head.safetensors", framework="np") as opened:
        weight = opened.get_tensor("blocks.1.weight")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.safetensors", "manifest.json"]
    assert weight.tolist() == blocks[1].weight.tolist()
    assert json.loads((tmp_path / "manifest.json").read_text())["blocks"] == 2


@pytest.mark.parametrize("place", [0, 8, 200, -1])
def test_a_flipped_bit_in_the_weights_is_noticed(place: int) -> None:
    dumped = dump(some_blocks())
    damaged = bytearray(dumped.files[HEAD_FILE])
    damaged[place] ^= 1

    message = refusal(bytes(damaged), dumped.manifest)

    assert "damaged" in message
    assert dumped.manifest["head_sha256"] in message
    assert hashlib.sha256(damaged).hexdigest() in message


def test_weights_that_are_cut_short_are_noticed() -> None:
    dumped = dump(some_blocks())

    assert "damaged" in refusal(dumped.files[HEAD_FILE][:-1], dumped.manifest)


def test_a_head_of_another_encoder_is_refused() -> None:
    dumped = dump(some_blocks())

    message = refusal(dumped.files[HEAD_FILE], dumped.manifest, encoder="f" * 64)

    assert "e" * 64 in message
    assert "f" * 64 in message


@pytest.mark.parametrize("named", ["zerogate-skip-head/2", "pickle", None, ["zerogate-skip-head/1"]])
def test_an_unknown_format_is_refused_with_the_one_that_is_known(named: object) -> None:
    dumped = dump(some_blocks())

    message = refusal(dumped.files[HEAD_FILE], {**dumped.manifest, "format": named})

    assert repr(named) in message
    assert "zerogate-skip-head/1" in message


@pytest.mark.parametrize("missing", ["format", "dim", "blocks", "bias", "encoder_fingerprint", "head_sha256"])
def test_a_manifest_that_lacks_an_entry_is_refused(missing: str) -> None:
    dumped = dump(some_blocks())

    refusal(dumped.files[HEAD_FILE], {name: value for name, value in dumped.manifest.items() if name != missing})


@pytest.mark.parametrize(
    ("lie", "telling"),
    [
        ({"blocks": 1}, "1 blocks with bias"),
        ({"blocks": 3}, "blocks.2"),
        ({"blocks": 0}, "0 blocks"),
        ({"blocks": -1}, "-1 blocks"),
        ({"blocks": "2"}, "'str'"),
        ({"blocks": 2.5}, "'float'"),
        ({"bias": False}, "2 blocks without bias"),
        ({"dim": DIM + 1}, "dimension 13"),
        ({"dim": 1}, "dimension 1"),
        ({"dim": "12"}, "dimension 12"),
        ({"dim": None}, "dimension None"),
    ],
)
def test_a_manifest_that_lies_about_the_weights_is_refused(lie: dict[str, object], telling: str) -> None:
    dumped = dump(some_blocks(2, bias=True))

    assert telling in refusal(dumped.files[HEAD_FILE], {**dumped.manifest, **lie})


def test_a_manifest_that_claims_a_bias_is_refused() -> None:
    dumped = dump(some_blocks(2, bias=False))

    assert "blocks.0.bias" in refusal(dumped.files[HEAD_FILE], {**dumped.manifest, "bias": True})


@pytest.mark.parametrize("part", ["gate", "weight", "bias"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_finite_numbers_are_refused(part: str, number: float) -> None:
    blocks = some_blocks(2)
    getattr(blocks[1], part)[..., 3] = number
    dumped = dump(blocks)

    assert "finite" in refusal(dumped.files[HEAD_FILE], dumped.manifest)


@pytest.mark.parametrize("part", ["gate", "weight", "bias"])
def test_a_part_of_another_shape_is_refused(part: str) -> None:
    dumped = dump(some_blocks(1))
    tensors = dict(safetensors.numpy.load(dumped.files[HEAD_FILE]))
    tensors[f"blocks.0.{part}"] = tensors[f"blocks.0.{part}"][..., :-1].copy()

    assert "dimension 12" in refusal(*forged(tensors, dumped.manifest))


def test_a_tensor_that_nobody_asked_for_is_refused() -> None:
    dumped = dump(some_blocks(1))
    tensors = dict(safetensors.numpy.load(dumped.files[HEAD_FILE])) | {"extra": np.zeros(3, np.float32)}

    assert "extra" in refusal(*forged(tensors, dumped.manifest))


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04\x95 a pickle", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(content: bytes) -> None:
    manifest = {**dump(some_blocks(1)).manifest, "head_sha256": hashlib.sha256(content).hexdigest()}

    assert "do not hold what the manifest says" in refusal(content, manifest)
