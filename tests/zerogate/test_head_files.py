"""Heads on disk: what is written comes back to the bit, and what does not fit is refused.

That heads of every shape come back stands in test_head_shapes.py.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import safe_open

from zerogate.errors import InvalidHead
from zerogate.folded import Block, FoldedHead
from zerogate.head_files import HEAD_FILE, MANIFEST_FILE, DumpedHead, dump_head, load_head
from zerogate.head_shapes import HeadShape
from zerogate.stacked import StackedHead

DIM = 12
ENCODER = "e" * 64
FACTS = {"recipe": {"epochs": 60}, "scores": {"ndcg@10": 0.61}, "dataset_sha256": "d" * 64}
PLAIN = HeadShape(blocks=2, bias=True)
BENT = HeadShape(blocks=2, merge="concat", norm="pre", activation="gelu", bias=True)

Stored = FoldedHead | StackedHead


def some_blocks(shape: HeadShape, *, seed: int = 0) -> list[Block]:
    draw = np.random.default_rng(seed)
    return [
        Block(
            gate=draw.normal(size=DIM).astype(np.float32),
            weight=draw.normal(size=(DIM, DIM * (number + 1) if shape.merge == "concat" else DIM)).astype(np.float32),
            bias=draw.normal(size=DIM).astype(np.float32) if shape.bias else None,
        )
        for number in range(shape.blocks)
    ]


def some_head(shape: HeadShape, *, seed: int = 0) -> Stored:
    blocks = some_blocks(shape, seed=seed)
    return FoldedHead.fold(blocks, merge=shape.merge) if shape.folds else StackedHead(shape, tuple(blocks))


def dump(shape: HeadShape = PLAIN, *, seed: int = 0, head: Stored | None = None, **facts: Any) -> DumpedHead:
    head = head or some_head(shape, seed=seed)
    return dump_head(head, shape=shape, strength=0.8, encoder_fingerprint=ENCODER, facts={**FACTS, **facts})


def dump_first(blocks: list[Block]) -> tuple[bytes, dict[str, Any]]:
    """Weights and manifest in the first format, as heads were written before there were shapes."""
    named = [(f"blocks.{number}.{part}", getattr(block, part)) for number, block in enumerate(blocks) for part in vars(block)]
    facts = {"format": "zerogate-skip-head/1", "dim": DIM, "blocks": len(blocks), "bias": blocks[0].bias is not None}
    manifest = {**facts, "strength": 0.8, "encoder_fingerprint": ENCODER}
    return forged({name: part for name, part in named if part is not None}, manifest)


def forged(tensors: dict[str, NDArray[Any]], manifest: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Weights of one's own with a manifest whose digest is right."""
    weights = safetensors.numpy.save(tensors)
    return weights, {**manifest, "head_sha256": hashlib.sha256(weights).hexdigest()}


def tensors_of(dumped: DumpedHead) -> dict[str, NDArray[Any]]:
    return dict(safetensors.numpy.load(dumped.files[HEAD_FILE]))


def refusal(weights: bytes, manifest: dict[str, Any], *, encoder: str = ENCODER) -> str:
    with pytest.raises(InvalidHead) as caught:
        load_head(weights, manifest, encoder_fingerprint=encoder)
    return str(caught.value)


@pytest.mark.parametrize("shape", [PLAIN, HeadShape(blocks=3), HeadShape(merge="concat", bias=True)])
def test_a_folded_head_comes_back_from_its_files_to_the_bit(shape: HeadShape) -> None:
    head = some_head(shape)
    files = dump(shape, head=head).files

    found = load_head(files[HEAD_FILE], json.loads(files[MANIFEST_FILE]), encoder_fingerprint=ENCODER)

    assert isinstance(found, FoldedHead)
    assert isinstance(head, FoldedHead)
    assert found.matrix.tobytes() == head.matrix.tobytes()
    assert (found.offset is None) == (head.offset is None) == (not shape.bias)
    if found.offset is not None and head.offset is not None:
        assert found.offset.tobytes() == head.offset.tobytes()


@pytest.mark.parametrize("shape", [BENT, HeadShape(norm="post"), HeadShape(kind="linear", activation="relu", bias=True)])
def test_a_stacked_head_comes_back_from_its_files_to_the_bit(shape: HeadShape) -> None:
    blocks = [block if shape.kind == "skip" else Block(None, block.weight, block.bias) for block in some_blocks(shape)]
    files = dump(shape, head=StackedHead(shape, tuple(blocks))).files

    found = load_head(files[HEAD_FILE], json.loads(files[MANIFEST_FILE]), encoder_fingerprint=ENCODER)

    assert isinstance(found, StackedHead)
    assert (found.shape, found.strength, len(found.blocks)) == (shape, 1.0, shape.blocks)
    for one, other in zip(found.blocks, blocks, strict=True):
        assert {part: value.tobytes() for part, value in vars(one).items() if value is not None} == {
            part: value.tobytes() for part, value in vars(other).items() if value is not None
        }


@pytest.mark.parametrize("shape", [PLAIN, BENT])
def test_the_same_head_gives_the_same_bytes_and_another_head_others(shape: HeadShape) -> None:
    first, second, other = dump(shape), dump(shape), dump(shape, seed=1)

    assert first.files == second.files
    assert first.files[HEAD_FILE] != other.files[HEAD_FILE]
    assert first.manifest["head_sha256"] != other.manifest["head_sha256"]


def test_neither_the_order_of_the_facts_nor_the_layout_in_memory_changes_the_bytes() -> None:
    head = some_head(BENT)
    assert isinstance(head, StackedHead)
    strided = [Block(np.repeat(one.gate, 2)[::2], np.asfortranarray(one.weight), one.bias) for one in head.blocks]  # type: ignore[arg-type]
    turned = dict(reversed(FACTS.items()))

    found = dump_head(StackedHead(BENT, tuple(strided)), shape=BENT, strength=0.8, encoder_fingerprint=ENCODER, facts=turned)

    assert found.files == dump(BENT).files


@pytest.mark.parametrize(("shape", "form", "out_dim"), [(PLAIN, "folded", DIM), (BENT, "stacked", 3 * DIM)])
def test_the_manifest_says_what_the_head_is_and_holds_no_time(shape: HeadShape, form: str, out_dim: int) -> None:
    dumped = dump(shape)

    assert json.loads(dumped.files[MANIFEST_FILE]) == dumped.manifest
    assert dumped.manifest == {
        **FACTS,
        "format": "zerogate-head/2",
        "form": form,
        "shape": shape.to_dict(),
        "dim": DIM,
        "out_dim": out_dim,
        "strength": 0.8,
        "encoder_fingerprint": ENCODER,
        "head_sha256": hashlib.sha256(dumped.files[HEAD_FILE]).hexdigest(),
    }


def test_facts_cannot_change_what_the_head_is() -> None:
    lie = {"format": "pickle", "form": "stacked", "shape": BENT.to_dict(), "dim": 1, "out_dim": 1, "head_sha256": "0"}

    found = dump_head(some_head(PLAIN), shape=PLAIN, strength=0.8, encoder_fingerprint=ENCODER, facts={**FACTS, **lie})

    assert found.files == dump().files


def test_a_fact_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump(loss=math.nan)


@pytest.mark.parametrize(
    ("shape", "head", "problem"),
    [
        (BENT, some_head(PLAIN), "FoldedHead is no head of the shape"),
        (PLAIN, some_head(BENT), "StackedHead is no head of the shape"),
        (HeadShape(norm="post"), some_head(BENT), "StackedHead is no head of the shape"),
        (HeadShape(merge="concat"), some_head(PLAIN), "makes 24 numbers of 12, the head 12"),
        (BENT, some_head(BENT).at_strength(0.5), "full strength, found 0.5"),
    ],
)
def test_a_head_that_is_not_of_its_shape_is_not_written(shape: HeadShape, head: Stored, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        dump(shape, head=head)


def test_the_files_open_with_safetensors_and_json_alone(tmp_path: Path) -> None:
    for name, content in dump(BENT).files.items():
        (tmp_path / name).write_bytes(content)

    with safe_open(tmp_path / "head.safetensors", framework="np") as opened:
        weight = opened.get_tensor("blocks.1.weight")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.safetensors", "manifest.json"]
    assert weight.tolist() == some_blocks(BENT)[1].weight.tolist()
    assert json.loads((tmp_path / "manifest.json").read_text())["shape"]["blocks"] == 2


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_of_the_first_format_is_still_read(blocks: int, bias: bool) -> None:
    parts = some_blocks(HeadShape(blocks=blocks, bias=bias))

    found = load_head(*dump_first(parts), encoder_fingerprint=ENCODER)

    expected = FoldedHead.fold(parts)
    assert isinstance(found, FoldedHead)
    assert found.matrix.tobytes() == expected.matrix.tobytes()
    assert (found.offset is None) == (not bias)
    if found.offset is not None and expected.offset is not None:
        assert found.offset.tobytes() == expected.offset.tobytes()


def test_the_bytes_of_a_head_that_was_stored_in_the_first_format_are_read() -> None:
    header = (
        b'{"blocks.0.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"blocks.0.gate":{"dtype":"F32","shape":[2],'
        b'"data_offsets":[8,16]},"blocks.0.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]}}     '
    )
    numbers = "0000803f000000400000003f000080be0000803f000000400000404000008040"
    manifest = {
        "bias": True,
        "blocks": 1,
        "dim": 2,
        "encoder_fingerprint": ENCODER,
        "format": "zerogate-skip-head/1",
        "head_sha256": "65c5d72ae998a6eb28daa996638754629e7913369c3e26d8fa1b9e4acb93c310",
        "strength": 0.75,
    }

    found = load_head(len(header).to_bytes(8, "little") + header + bytes.fromhex(numbers), manifest, encoder_fingerprint=ENCODER)

    # Its gate is 0.5 and -0.25, its W has the rows 1, 2 and 3, 4, its bias is 1 and 2.
    assert isinstance(found, FoldedHead)
    assert found.matrix.tolist() == [[1.5, 1.0], [-0.75, 0.0]]
    assert found.offset is not None
    assert found.offset.tolist() == [0.5, -0.5]


@pytest.mark.parametrize("place", [0, 8, 200, -1])
def test_a_flipped_bit_in_the_weights_is_noticed(place: int) -> None:
    dumped = dump()
    damaged = bytearray(dumped.files[HEAD_FILE])
    damaged[place] ^= 1

    message = refusal(bytes(damaged), dumped.manifest)

    assert "damaged" in message
    assert dumped.manifest["head_sha256"] in message
    assert hashlib.sha256(damaged).hexdigest() in message


def test_weights_that_are_cut_short_are_noticed() -> None:
    dumped = dump()

    assert "damaged" in refusal(dumped.files[HEAD_FILE][:-1], dumped.manifest)


@pytest.mark.parametrize("first", [False, True])
def test_a_head_of_another_encoder_is_refused(first: bool) -> None:
    dumped = dump()
    files = dump_first(some_blocks(PLAIN)) if first else (dumped.files[HEAD_FILE], dumped.manifest)

    message = refusal(*files, encoder="f" * 64)

    assert "e" * 64 in message
    assert "f" * 64 in message


@pytest.mark.parametrize("named", ["zerogate-head/3", "pickle", None, ["zerogate-head/2"]])
def test_an_unknown_format_is_refused_with_those_that_are_known(named: object) -> None:
    dumped = dump()

    message = refusal(dumped.files[HEAD_FILE], {**dumped.manifest, "format": named})

    assert repr(named) in message
    assert "zerogate-head/2" in message
    assert "zerogate-skip-head/1" in message


@pytest.mark.parametrize("shape", [PLAIN, BENT])
@pytest.mark.parametrize("missing", ["format", "form", "shape", "dim", "out_dim", "encoder_fingerprint", "head_sha256"])
def test_a_manifest_that_lacks_an_entry_is_refused(shape: HeadShape, missing: str) -> None:
    dumped = dump(shape)

    refusal(dumped.files[HEAD_FILE], {name: value for name, value in dumped.manifest.items() if name != missing})


@pytest.mark.parametrize("missing", ["format", "dim", "blocks", "bias", "encoder_fingerprint", "head_sha256"])
def test_a_manifest_of_the_first_format_that_lacks_an_entry_is_refused(missing: str) -> None:
    weights, manifest = dump_first(some_blocks(PLAIN))

    refusal(weights, {name: value for name, value in manifest.items() if name != missing})


@pytest.mark.parametrize("missing", list(HeadShape().to_dict()))
def test_a_shape_that_lacks_an_entry_is_refused(missing: str) -> None:
    dumped = dump(BENT)
    shape = {name: value for name, value in BENT.to_dict().items() if name != missing}

    refusal(dumped.files[HEAD_FILE], {**dumped.manifest, "shape": shape})


@pytest.mark.parametrize(
    ("shape", "lie", "telling"),
    [
        (PLAIN, {"form": "stacked"}, "'stacked'; a head of its shape is stored as 'folded'"),
        (BENT, {"form": "folded"}, "'folded'; a head of its shape is stored as 'stacked'"),
        (PLAIN, {"form": "pickle"}, "'pickle'"),
        (PLAIN, {"dim": 13, "out_dim": 13}, "float32 (13,"),
        (PLAIN, {"dim": 13}, "12 numbers of 13"),
        (PLAIN, {"out_dim": 24}, "24 numbers of 12"),
        (PLAIN, {"dim": "12"}, "dim must be a whole number above 0, found '12'"),
        (PLAIN, {"dim": None}, "found None"),
        (PLAIN, {"dim": True}, "found True"),
        (PLAIN, {"out_dim": 0}, "out_dim must be a whole number above 0, found 0"),
        (PLAIN, {"shape": BENT.to_dict()}, "12 numbers of 12"),
        (PLAIN, {"shape": "skip"}, "'skip'"),
        (PLAIN, {"shape": {**PLAIN.to_dict(), "blocks": 9}}, "1 to 8"),
        (PLAIN, {"shape": {**PLAIN.to_dict(), "kind": "__import__"}}, "'__import__'"),
        (BENT, {"shape": {**BENT.to_dict(), "bias": False}}, "blocks.0.bias"),
        (BENT, {"shape": {**BENT.to_dict(), "merge": "add"}, "out_dim": 12}, "asked for is float32 (12, 12)"),
        (BENT, {"shape": {**BENT.to_dict(), "blocks": 1}, "out_dim": 24}, "blocks.1.weight"),
        (BENT, {"shape": {**BENT.to_dict(), "blocks": 3}, "out_dim": 48}, "blocks.2.weight"),
        (BENT, {"shape": {**BENT.to_dict(), "norm": "none", "activation": "none"}, "form": "folded"}, "asked for are matrix"),
    ],
)
def test_a_manifest_that_lies_about_the_weights_is_refused(shape: HeadShape, lie: dict[str, object], telling: str) -> None:
    dumped = dump(shape)

    assert telling in refusal(dumped.files[HEAD_FILE], {**dumped.manifest, **lie})


@pytest.mark.parametrize(
    ("lie", "telling"),
    [
        ({"blocks": 1}, "blocks.1.gate"),
        ({"blocks": 3}, "blocks.2.gate"),
        ({"blocks": 0}, "found 0"),
        ({"blocks": -1}, "found -1"),
        ({"blocks": "2"}, "'2'"),
        ({"blocks": 2.5}, "2.5"),
        ({"bias": False}, "blocks.0.bias"),
        ({"dim": 13}, "(13,"),
        ({"dim": "12"}, "'12'"),
        ({"dim": None}, "None"),
    ],
)
def test_a_manifest_of_the_first_format_that_lies_is_refused(lie: dict[str, object], telling: str) -> None:
    weights, manifest = dump_first(some_blocks(PLAIN))

    assert telling in refusal(weights, {**manifest, **lie})


EVERY_PART = [(PLAIN, "matrix"), (PLAIN, "offset"), *((BENT, f"blocks.1.{part}") for part in ("gate", "weight", "bias"))]


@pytest.mark.parametrize(("shape", "part"), EVERY_PART)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_finite_numbers_are_refused(shape: HeadShape, part: str, number: float) -> None:
    dumped = dump(shape)
    tensors = tensors_of(dumped)
    tensors[part] = tensors[part].copy()
    tensors[part][..., 3] = number

    assert f"finite numbers: see '{part}'" in refusal(*forged(tensors, dumped.manifest))


@pytest.mark.parametrize(("shape", "part"), EVERY_PART)
@pytest.mark.parametrize("kind", ["float64", "float16", "int32", "complex64"])
def test_a_part_of_another_type_is_refused(shape: HeadShape, part: str, kind: str) -> None:
    dumped = dump(shape)
    tensors = tensors_of(dumped)
    tensors[part] = tensors[part].astype(kind)

    assert f"'{part}' of the head is {kind}" in refusal(*forged(tensors, dumped.manifest))


def test_a_type_that_numpy_does_not_know_is_refused() -> None:
    header = json.dumps({"matrix": {"dtype": "BF16", "shape": [DIM, DIM], "data_offsets": [0, 2 * DIM * DIM]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(2 * DIM * DIM)

    assert "BF16" in refusal(content, {**dump().manifest, "head_sha256": hashlib.sha256(content).hexdigest()})


@pytest.mark.parametrize(("shape", "part"), EVERY_PART)
def test_a_part_of_another_shape_is_refused(shape: HeadShape, part: str) -> None:
    dumped = dump(shape)
    tensors = tensors_of(dumped)
    tensors[part] = tensors[part][..., :-1].copy()

    assert f"'{part}' of the head is float32" in refusal(*forged(tensors, dumped.manifest))


@pytest.mark.parametrize(("shape", "part"), [one for one in EVERY_PART if one[1] != "offset"])
def test_a_part_that_is_missing_is_refused(shape: HeadShape, part: str) -> None:
    dumped = dump(shape)
    tensors = tensors_of(dumped)
    del tensors[part]

    assert part in refusal(*forged(tensors, dumped.manifest))


@pytest.mark.parametrize("shape", [PLAIN, BENT])
def test_a_tensor_that_nobody_asked_for_is_refused(shape: HeadShape) -> None:
    dumped = dump(shape)

    assert "extra" in refusal(*forged({**tensors_of(dumped), "extra": np.zeros(3, np.float32)}, dumped.manifest))


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04\x95 a pickle", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(content: bytes) -> None:
    for manifest in (dump().manifest, dump_first(some_blocks(PLAIN))[1]):
        forgery = {**manifest, "head_sha256": hashlib.sha256(content).hexdigest()}
        assert "do not hold what the manifest says" in refusal(content, forgery)
