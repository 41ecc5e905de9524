"""The encoders and folded heads that this process holds in memory. The only place in `service/` that reaches torch."""

import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import zerogate
from service.artifacts import Artifacts
from service.errors import ServiceError, Unavailable
from service.settings import Settings
from zerogate.encoder_files import Role, describe_encoder
from zerogate.errors import InvalidHead
from zerogate.folded import FoldedHead
from zerogate.head_files import HEAD_FILE, load_head


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


class LoadedModels:
    """Encoders by fingerprint and heads by version, each loaded once. Safe to share between threads."""

    def __init__(self, settings: Settings, artifacts: Artifacts) -> None:
        self._dtype: Literal["float32", "bfloat16"] | None = None if settings.encoder_dtype == "auto" else settings.encoder_dtype
        self._cpu_threads = settings.cpu_threads
        self._cache = zerogate.EmbeddingCache(settings.embedding_cache_dir)
        self._artifacts = artifacts
        self._encoders: dict[str, zerogate.CachedEncoder] = {}
        self._heads: dict[str, FoldedHead] = {}  # at full strength, by version id
        self._served: dict[str, FoldedHead] = {}  # at the version's own strength
        self._loading = threading.Lock()

    def encoder(self, facts: EncoderFacts) -> "zerogate.CachedEncoder":
        """The encoder with its cache. Raises Unavailable when its files are no longer those that were registered."""
        with self._loading:
            if facts.fingerprint not in self._encoders:
                self._encoders[facts.fingerprint] = zerogate.CachedEncoder(self._load(facts), self._cache)
            return self._encoders[facts.fingerprint]

    def head(self, version: VersionFacts) -> FoldedHead:
        """The version's folded head at full strength, checked against its manifest."""
        if version.artifact_key is None:
            return FoldedHead.identity(version.encoder.dim)
        if version.version_id not in self._heads:
            weights = self._artifacts.read(f"{version.artifact_key}/{HEAD_FILE}")
            try:
                self._heads[version.version_id] = load_head(
                    weights, version.manifest, encoder_fingerprint=version.encoder.fingerprint
                )
            except InvalidHead as error:  # our file, so not the caller's fault
                raise ServiceError(f"{version.model}@{version.number} cannot be served: {error}", code="head_damaged") from error
        return self._heads[version.version_id]

    def vectors(self, version: VersionFacts, base: NDArray[np.float32], *, strength: float | None = None) -> NDArray[np.float32]:
        """The version's vectors of base vectors: (n, dim) float32, unit rows. Version 0 and strength 0 give the base untouched.

        strength: the dial in place of the version's own.
        """
        dial = version.strength if strength is None else strength
        if version.number == 0 or dial == 0.0:
            return base
        if dial != version.strength:
            return self.head(version).at_strength(dial).vectors(base)
        if version.version_id not in self._served:
            self._served[version.version_id] = self.head(version).at_strength(dial)
        return self._served[version.version_id].vectors(base)

    def close(self) -> None:
        """Forget everything and close the cache."""
        self._encoders.clear()
        self._heads.clear()
        self._served.clear()
        self._cache.close()

    def _load(self, facts: EncoderFacts) -> "zerogate.Encoder":
        files = describe_encoder(facts.source, prompts=facts.prompts, max_length=facts.max_length, revision=facts.revision)
        if files.fingerprint != facts.fingerprint:
            raise Unavailable(
                f"the files of encoder '{facts.name}' have changed: fingerprint {files.fingerprint[:12]}, registered was "
                f"{facts.fingerprint[:12]}; put the old files back or register the new ones under another name",
                code="encoder_changed",
            )
        if self._cpu_threads is not None and not self._encoders:
            import torch  # here, because only a process that encodes pays for it

            torch.set_num_threads(self._cpu_threads)  # once, before the first product; never inside a job
        return zerogate.Encoder(files, dtype=self._dtype)
