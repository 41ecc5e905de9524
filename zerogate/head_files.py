"""A head on disk: `head.safetensors` (its numbers) and `manifest.json` (what it is and how it came about).

    form      for                                  tensors, all float32
    folded    shapes that fold                     matrix, and offset where it is not zero
    stacked   shapes with a norm or activation     blocks.N.gate (not for kind linear), blocks.N.weight, blocks.N.bias

Heads of the first format, which held the blocks of a plain skip head, are still read.
No pickle, and no class names from JSON: `format` and `form` choose from the names that this file knows.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from zerogate.errors import InvalidHead, ZerogateError
from zerogate.folded import Block, FoldedHead
from zerogate.head_shapes import HeadShape
from zerogate.stacked import StackedHead

FORMAT = "zerogate-head/2"
FIRST_FORMAT = "zerogate-skip-head/1"
HEAD_FILE = "head.safetensors"
MANIFEST_FILE = "manifest.json"

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class DumpedHead:
    """A head as files (name to content) and as the manifest that one of them holds."""

    files: dict[str, bytes]
    manifest: dict[str, Any]


def dump_head(
    head: FoldedHead | StackedHead, *, shape: HeadShape, strength: float, encoder_fingerprint: str, facts: Mapping[str, Any]
) -> DumpedHead:
    """The two files of a head at full strength. The same head gives the same bytes: no time stands in them.

    shape: what the head was trained as; of several that were averaged, one of them.
    strength: where the dial shall stand when the head is served. The tensors do not depend on it.
    facts: more entries for the manifest (dataset digest, recipe, scores, library versions, ...), JSON values.
    Raises ValueError for a head that is no head of this shape, or whose own dial is turned.
    """
    if isinstance(head, FoldedHead) != shape.folds or (isinstance(head, StackedHead) and head.shape != shape):
        raise ValueError(f"a {type(head).__name__} is no head of the shape {shape}")
    if head.out_dim != shape.out_dim(head.dim):
        raise ValueError(f"the shape makes {shape.out_dim(head.dim)} numbers of {head.dim}, the head {head.out_dim}")
    if isinstance(head, StackedHead) and head.strength != 1.0:
        raise ValueError(f"a head is stored at full strength, found {head.strength}")
    weights = save({name: np.ascontiguousarray(part, dtype=np.float32) for name, part in _tensors(head).items()})
    manifest = {
        **facts,
        "format": FORMAT,
        "form": _form(shape),
        "shape": shape.to_dict(),
        "dim": head.dim,
        "out_dim": head.out_dim,
        "strength": strength,
        "encoder_fingerprint": encoder_fingerprint,
        "head_sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
    return DumpedHead({HEAD_FILE: weights, MANIFEST_FILE: text.encode()}, manifest)


def load_head(weights: bytes, manifest: Mapping[str, Any], *, encoder_fingerprint: str) -> FoldedHead | StackedHead:
    """The head at full strength, checked against its manifest and the encoder that it shall serve.

    Raises InvalidHead for an unknown format, damaged weights, or another encoder.
    """
    named = manifest.get("format")
    if named not in (FORMAT, FIRST_FORMAT):
        raise InvalidHead(f"the manifest names the format {named!r}; this version reads {FORMAT!r} and {FIRST_FORMAT!r}")
    found = hashlib.sha256(weights).hexdigest()
    if found != manifest.get("head_sha256"):
        raise InvalidHead(f"the head's weights are damaged: SHA-256 is {found}, the manifest says {manifest.get('head_sha256')}")
    if manifest.get("encoder_fingerprint") != encoder_fingerprint:
        raise InvalidHead(
            f"the head belongs to the encoder with fingerprint {manifest.get('encoder_fingerprint')}, "
            f"not to {encoder_fingerprint}"
        )
    try:
        tensors: Tensors = load(weights)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidHead(f"the head's weights do not hold what the manifest says: {error}") from error
    if named == FIRST_FORMAT:
        return FoldedHead.fold(_blocks(tensors, _first_shape(manifest), _dimension(manifest, "dim")))
    return _read(tensors, manifest)


def _read(tensors: Tensors, manifest: Mapping[str, Any]) -> FoldedHead | StackedHead:
    shape = _shape(manifest.get("shape"))
    dim, out_dim, form = _dimension(manifest, "dim"), _dimension(manifest, "out_dim"), manifest.get("form")
    if out_dim != shape.out_dim(dim):
        raise InvalidHead(f"the manifest says {out_dim} numbers of {dim}; its shape makes {shape.out_dim(dim)} of them")
    if form != _form(shape):
        raise InvalidHead(f"the manifest names the form {form!r}; a head of its shape is stored as {_form(shape)!r}")
    if not shape.folds:
        return StackedHead(shape, tuple(_blocks(tensors, shape, dim)))
    offset = {"offset": (out_dim,)} if "offset" in tensors else {}
    _check(tensors, {"matrix": (out_dim, dim), **offset})
    return FoldedHead(tensors["matrix"], tensors.get("offset"))


def _blocks(tensors: Tensors, shape: HeadShape, dim: int) -> list[Block]:
    asked: dict[str, tuple[int, ...]] = {}
    for number in range(shape.blocks):
        inputs = dim * (number + 1) if shape.merge == "concat" else dim
        asked[f"blocks.{number}.weight"] = (dim, inputs)
        asked |= {f"blocks.{number}.gate": (dim,)} if shape.kind == "skip" else {}
        asked |= {f"blocks.{number}.bias": (dim,)} if shape.bias else {}
    _check(tensors, asked)
    return [
        Block(tensors.get(f"blocks.{number}.gate"), tensors[f"blocks.{number}.weight"], tensors.get(f"blocks.{number}.bias"))
        for number in range(shape.blocks)
    ]


def _check(tensors: Tensors, asked: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InvalidHead unless the tensors are exactly those that are asked for, float32 and finite."""
    if tensors.keys() != asked.keys():
        raise InvalidHead(
            "the head's weights do not hold what the manifest says: "
            f"found {', '.join(sorted(tensors)) or 'nothing'}; asked for are {', '.join(sorted(asked))}"
        )
    for name, part in tensors.items():
        if part.shape != asked[name] or part.dtype != np.float32:
            raise InvalidHead(f"'{name}' of the head is {part.dtype} {part.shape}; asked for is float32 {asked[name]}")
        if not np.isfinite(part).all():
            raise InvalidHead(f"the head's weights are not all finite numbers: see '{name}'")


def _form(shape: HeadShape) -> str:
    return "folded" if shape.folds else "stacked"


def _tensors(head: FoldedHead | StackedHead) -> Tensors:
    if isinstance(head, FoldedHead):
        return {"matrix": head.matrix} | ({} if head.offset is None else {"offset": head.offset})
    parts = {
        f"blocks.{number}.{name}": part
        for number, block in enumerate(head.blocks)
        for name, part in (("gate", block.gate), ("weight", block.weight), ("bias", block.bias))
    }
    return {name: part for name, part in parts.items() if part is not None}


def _shape(named: Any) -> HeadShape:
    try:
        shape = HeadShape.from_dict(named)
    except ZerogateError as error:
        raise InvalidHead(f"the manifest names no shape of a head: {error}") from error
    if set(named) != set(shape.to_dict()):  # a default in place of a lost entry would be another head
        raise InvalidHead(f"the manifest's shape names only {', '.join(named) or 'nothing'} of {', '.join(shape.to_dict())}")
    return shape


def _first_shape(manifest: Mapping[str, Any]) -> HeadShape:
    return _shape({**HeadShape().to_dict(), "blocks": manifest.get("blocks"), "bias": manifest.get("bias")})


def _dimension(manifest: Mapping[str, Any], name: str) -> int:
    found = manifest.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise InvalidHead(f"the manifest's {name} must be a whole number above 0, found {found!r}")
    return found
