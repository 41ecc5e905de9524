"""The encoders and heads that this process holds in memory. The only place in `service/` that reaches torch."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import zerogate
from service.artifacts import Artifacts
from service.errors import NotFound, ServiceError, Unavailable
from service.settings import Settings
from zerogate.encoder_files import EncoderFiles, Role, describe_encoder
from zerogate.errors import EncoderMismatch, EncoderNotFound, InvalidHead
from zerogate.folded import ServedHead
from zerogate.head_files import HEAD_FILE, load_head

# Before the key of an encoder's files, in its row's `source`, where they stand among the artifacts.
STORED = "artifacts:"

# A head of 384 dimensions that is folded takes 0.6 MB, one of 1,024 takes 4 MB.
_HEADS_KEPT = 128


@dataclass(frozen=True)
class EncoderFacts:
    """What must be known of an encoder's row to load it; plain values, usable after the session has ended."""

    name: str
    source: str
    revision: str | None
    prompts: dict[Role, str]
    max_length: int
    fingerprint: str
    dim: int


@dataclass(frozen=True)
class VersionFacts:
    """What must be known of a version's row to serve it; plain values. Number 0 is the encoder: it has no files."""

    model: str
    number: int
    version_id: str
    artifact_key: str | None
    manifest: dict[str, Any]
    strength: float
    encoder: EncoderFacts

    @property
    def dim(self) -> int:
        """How many numbers its vectors have. A head may append some to the encoder's."""
        return int(self.manifest.get("out_dim", self.encoder.dim))

    @property
    def query_only(self) -> bool:
        """Whether the head maps queries only, and documents keep their base vectors."""
        return bool(self.manifest.get("query_only", False))


class LoadedModels:
    """Encoders by fingerprint and heads by version and strength, each loaded once. Safe to share between threads."""

    def __init__(self, settings: Settings, artifacts: Artifacts) -> None:
        self._dtype: Literal["float32", "bfloat16"] | None = None if settings.encoder_dtype == "auto" else settings.encoder_dtype
        self._cpu_threads = settings.cpu_threads
        self._cache = zerogate.EmbeddingCache(settings.embedding_cache_dir)
        self._artifacts = artifacts
        self._encoders: dict[str, zerogate.CachedEncoder] = {}
        self._heads: OrderedDict[tuple[str, float], ServedHead] = OrderedDict()  # the last used stands last
        self._loading = threading.Lock()
        self._heads_lock = threading.Lock()

    def encoder(self, facts: EncoderFacts) -> "zerogate.CachedEncoder":
        """The encoder with its cache. It is loaded when a text must be read that the cache lacks, or tokens must be counted.

        Loading raises Unavailable when the files are gone or no longer those that were registered.
        """
        found = self._encoders.get(facts.fingerprint)
        if found is not None:
            return found
        with self._loading:
            if facts.fingerprint not in self._encoders:
                self._encoders[facts.fingerprint] = zerogate.CachedEncoder(self._prepared(facts), self._cache)
            return self._encoders[facts.fingerprint]

    def head(self, version: VersionFacts, strength: float) -> ServedHead:
        """The version's head with its dial at `strength`. Raises ServiceError when its file is damaged."""
        key = (version.version_id, strength)
        with self._heads_lock:
            if key in self._heads:
                self._heads.move_to_end(key)
                return self._heads[key]
        loaded = self._load_head(version).at_strength(strength)
        with self._heads_lock:
            self._heads[key] = loaded
            while len(self._heads) > _HEADS_KEPT:
                self._heads.popitem(last=False)
        return loaded

    def vectors(
        self, version: VersionFacts, base: NDArray[np.float32], *, role: Role, strength: float | None = None
    ) -> NDArray[np.float32]:
        """The version's vectors of base vectors: (n, version.dim) float32, unit rows.

        Version 0 and strength 0 give the base untouched (with zeros behind it where the head appends numbers), and so do the
        documents of a version that maps queries only. strength: the dial in place of the version's own.
        """
        dial = version.strength if strength is None else strength
        if version.number == 0 or (version.query_only and role == "document"):
            return base
        if dial == 0.0:
            return np.pad(base, ((0, 0), (0, version.dim - base.shape[1])))
        return self.head(version, dial).vectors(base)

    def forget(self, fingerprint: str) -> None:
        """Let go of an encoder, whose files are about to move; whoever needs it next loads it again."""
        with self._loading:
            self._encoders.pop(fingerprint, None)

    def close(self) -> None:
        """Forget everything and close the cache."""
        self._encoders.clear()
        self._heads.clear()
        self._cache.close()

    def _load_head(self, version: VersionFacts) -> ServedHead:
        try:
            weights = self._artifacts.read(f"{version.artifact_key}/{HEAD_FILE}")
        except NotFound as error:  # the operator's files, so not the caller's fault
            raise Unavailable(
                f"{version.model}@{version.number} cannot be served: {error.message}", code="head_missing"
            ) from error
        try:
            return load_head(weights, version.manifest, encoder_fingerprint=version.encoder.fingerprint)
        except InvalidHead as error:  # our file, so not the caller's fault
            raise ServiceError(f"{version.model}@{version.number} cannot be served: {error}", code="head_damaged") from error

    def _prepared(self, facts: EncoderFacts) -> "zerogate.LazyEncoder":
        if self._cpu_threads is not None and not self._encoders:
            import torch  # here, because only a process that works with vectors pays for it

            torch.set_num_threads(self._cpu_threads)  # once, before the first product; never inside a job
        return zerogate.LazyEncoder(
            lambda: self._unchanged_files(facts), fingerprint=facts.fingerprint, dim=facts.dim, dtype=self._dtype
        )

    def _unchanged_files(self, facts: EncoderFacts) -> EncoderFiles:
        source = facts.source
        try:
            if source.startswith(STORED):  # tuned here: its files are ours, wherever the data folder stands
                source = str(self._artifacts.local_folder(source.removeprefix(STORED)))
            files = describe_encoder(source, prompts=facts.prompts, max_length=facts.max_length, revision=facts.revision)
        except (EncoderNotFound, EncoderMismatch, NotFound) as error:  # the operator's files, so not the caller's fault
            raise Unavailable(f"encoder '{facts.name}' cannot be loaded: {error}", code="encoder_changed") from error
        if files.fingerprint != facts.fingerprint:
            raise Unavailable(
                f"the files of encoder '{facts.name}' have changed: fingerprint {files.fingerprint[:12]}, registered was "
                f"{facts.fingerprint[:12]}; put the old files back or register the new ones under another name",
                code="encoder_changed",
            )
        return files
