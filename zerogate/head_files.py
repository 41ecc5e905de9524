"""A head on disk: `head.safetensors` (the blocks' weights) and `manifest.json` (what it is and how it came about).

No pickle, and no class names from JSON: `format` chooses from the names that this file knows.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from zerogate.errors import InvalidHead
from zerogate.folded import Block, FoldedHead

FORMAT = "zerogate-skip-head/1"
HEAD_FILE = "head.safetensors"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class DumpedHead:
    """A head as files (name to content) and as the manifest that one of them holds."""

    files: dict[str, bytes]
    manifest: dict[str, Any]


def dump_head(blocks: Sequence[Block], *, strength: float, encoder_fingerprint: str, facts: Mapping[str, Any]) -> DumpedHead:
    """The two files of a head. The same head gives the same bytes: no time stands in them.

    facts: more entries for the manifest (dataset digest, recipe, scores, library versions, ...), JSON values.
    """
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    for number, block in enumerate(blocks):
        tensors[f"blocks.{number}.gate"] = np.ascontiguousarray(block.gate, dtype=np.float32)
        tensors[f"blocks.{number}.weight"] = np.ascontiguousarray(block.weight, dtype=np.float32)
        if block.bias is not None:
            tensors[f"blocks.{number}.bias"] = np.ascontiguousarray(block.bias, dtype=np.float32)
    weights = save(tensors)
    manifest = {
        **facts,
        "format": FORMAT,
        "dim": len(blocks[0].gate),
        "blocks": len(blocks),
        "bias": blocks[0].bias is not None,
        "strength": strength,
        "encoder_fingerprint": encoder_fingerprint,
        "head_sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
    return DumpedHead({HEAD_FILE: weights, MANIFEST_FILE: text.encode()}, manifest)


def load_head(weights: bytes, manifest: Mapping[str, Any], *, encoder_fingerprint: str) -> FoldedHead:
    """The folded head at full strength, checked against its manifest and the encoder that it shall serve.

    Raises InvalidHead for an unknown format, damaged weights, or another encoder.
    """
    if manifest.get("format") != FORMAT:
        raise InvalidHead(f"the manifest names the format {manifest.get('format')!r}; this version reads {FORMAT!r}")
    found = hashlib.sha256(weights).hexdigest()
    if found != manifest.get("head_sha256"):
        raise InvalidHead(f"the head's weights are damaged: SHA-256 is {found}, the manifest says {manifest.get('head_sha256')}")
    if manifest.get("encoder_fingerprint") != encoder_fingerprint:
        raise InvalidHead(
            f"the head belongs to the encoder with fingerprint {manifest.get('encoder_fingerprint')}, "
            f"not to {encoder_fingerprint}"
        )
    return FoldedHead.fold(_read_blocks(weights, manifest))


def _read_blocks(weights: bytes, manifest: Mapping[str, Any]) -> list[Block]:
    try:
        tensors = load(weights)
        blocks = [
            Block(
                gate=tensors[f"blocks.{number}.gate"],
                weight=tensors[f"blocks.{number}.weight"],
                bias=tensors[f"blocks.{number}.bias"] if manifest["bias"] else None,
            )
            for number in range(manifest["blocks"])
        ]
    except (KeyError, SafetensorError, TypeError, ValueError) as error:
        raise InvalidHead(f"the head's weights do not hold what the manifest says: {error}") from error
    parts = [part for block in blocks for part in (block.gate, block.weight, block.bias) if part is not None]
    if not blocks or len(parts) != len(tensors):
        raise InvalidHead(
            f"the head's weights do not hold what the manifest says: {', '.join(tensors)} are not "
            f"{manifest['blocks']} blocks {'with' if manifest['bias'] else 'without'} bias"
        )
    dim = manifest.get("dim")
    for block in blocks:
        wrong = (
            block.gate.shape != (dim,)
            or block.weight.shape != (dim, dim)
            or (block.bias is not None and block.bias.shape != (dim,))
        )
        if wrong:
            raise InvalidHead(f"the head's weights have another shape than dimension {dim} asks for")
    if not all(np.isfinite(part).all() for part in parts):
        raise InvalidHead("the head's weights are not all finite numbers")
    return blocks
