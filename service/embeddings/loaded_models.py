"""The encoders and heads that this process holds in memory. The only place in `service/` that reaches torch."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import zerogate
from service.artifacts import Artifacts
from service.embeddings.batcher import Batcher, Map, Row, Vectors
from service.embeddings.known_vectors import KnownVectors
from service.embeddings.resident_heads import ResidentHeads
from service.errors import NotFound, ServiceError, Unavailable
from service.settings import Settings
from zerogate.encoder_files import EncoderFiles, Role, describe_encoder
from zerogate.errors import EncoderMismatch, EncoderNotFound, InvalidHead
from zerogate.folded import ServedHead
from zerogate.head_files import HEAD_FILE, load_head

# Before the key of an encoder's files, in its row's `source`, where they stand among the artifacts.
STORED = "artifacts:"


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
    """Encoders by fingerprint, each with the passes that requests share, and heads by version and strength; loaded once.

    Safe to share between threads.
    """

    def __init__(self, settings: Settings, artifacts: Artifacts) -> None:
        self._dtype: Literal["float32", "bfloat16"] | None = None if settings.encoder_dtype == "auto" else settings.encoder_dtype
        self._cpu_threads = settings.cpu_threads
        self._cache = zerogate.EmbeddingCache(settings.embedding_cache_dir, max_bytes=settings.embedding_cache_bytes)
        self._artifacts = artifacts
        self._encoders: dict[str, zerogate.CachedEncoder] = {}
        self._batchers: dict[tuple[str, Role], Batcher] = {}
        self._max_waiting_tokens = settings.queue_tokens
        self._heads = ResidentHeads(settings.head_cache_bytes)
        self._known = KnownVectors(settings.answer_cache_bytes) if settings.answer_cache_bytes else None
        self._loading = threading.Lock()

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

    def batcher(self, facts: EncoderFacts, role: Role) -> Batcher:
        """What runs the encoder's passes for requests of this role."""
        key = facts.fingerprint, _lane(facts, role)
        found = self._batchers.get(key)
        if found is not None:
            return found
        encoder = self.encoder(facts).encoder

        def encode(rows: Sequence[Row]) -> Vectors:
            made = encoder.encode_tokens(rows, role=role)
            if self._known is not None:
                self._known.put(key, rows, made)
            return made

        with self._loading:
            if key not in self._batchers:
                self._batchers[key] = Batcher(encode, max_waiting_tokens=self._max_waiting_tokens)
            return self._batchers[key]

    def batchers(self) -> list[Batcher]:
        """Those that there are by now."""
        return list(self._batchers.values())

    def lookup(
        self, facts: EncoderFacts, texts: Sequence[str], rows: Sequence[Row], *, role: Role
    ) -> tuple[Vectors, NDArray[np.bool_]]:
        """Base vectors that need no pass, (n, dim) float32, and, (n,) bool, which these are; the others are undefined.

        rows: the texts' tokens.
        """
        vectors, found = self.encoder(facts).lookup(texts, role=role)
        if self._known is not None:
            for place, vector in enumerate(self._known.get((facts.fingerprint, _lane(facts, role)), rows)):
                if vector is not None:
                    vectors[place], found[place] = vector, True
        return vectors, found

    def is_loaded(self, version: VersionFacts, *, role: Role, strength: float | None = None) -> bool:
        """Whether requests like this one came before, and need no files now."""
        if (version.encoder.fingerprint, _lane(version.encoder, role)) not in self._batchers:
            return False
        dial = version.strength if strength is None else strength
        return _keeps_base(version, role) or dial == 0.0 or self._heads.holds((version.version_id, dial))

    def head(self, version: VersionFacts, strength: float) -> ServedHead:
        """The version's head with its dial at `strength`. Raises ServiceError when its file is damaged."""

        def load() -> tuple[ServedHead, int]:
            weights = self._read_head(version)
            try:
                head = load_head(weights, version.manifest, encoder_fingerprint=version.encoder.fingerprint)
            except InvalidHead as error:  # our file, so not the caller's fault
                raise ServiceError(f"{version.model}@{version.number} cannot be served: {error}", code="head_damaged") from error
            return head.at_strength(strength), len(weights)

        return self._heads.get((version.version_id, strength), load)

    def map_of(self, version: VersionFacts, *, role: Role, strength: float | None = None) -> Map | None:
        """What makes the version's vectors of base vectors, (n, dim) to (n, version.dim) float32, unit rows; None: nothing to do.

        Version 0 and strength 0 give the base untouched (with zeros behind it where the head appends numbers), and so do the
        documents of a version that maps queries only. strength: the dial in place of the version's own.
        """
        if _keeps_base(version, role):
            return None
        dial = version.strength if strength is None else strength
        if dial == 0.0:
            return None if version.dim == version.encoder.dim else partial(_padded, dim=version.dim)
        return self.head(version, dial).vectors

    def vectors(self, version: VersionFacts, base: Vectors, *, role: Role, strength: float | None = None) -> Vectors:
        """The version's vectors of base vectors: (n, version.dim) float32, unit rows. See `map_of`."""
        then = self.map_of(version, role=role, strength=strength)
        return base if then is None else then(base)

    def forget(self, fingerprint: str) -> None:
        """Let go of an encoder, whose files are about to move; whoever needs it next loads it again."""
        with self._loading:
            self._encoders.pop(fingerprint, None)
            closed = [self._batchers.pop(key) for key in list(self._batchers) if key[0] == fingerprint]
        for batcher in closed:
            batcher.close()

    def close(self) -> None:
        """Forget everything and close the cache."""
        for fingerprint in {fingerprint for fingerprint, _ in self._batchers} | set(self._encoders):
            self.forget(fingerprint)
        self._heads.clear()
        self._cache.close()

    def _read_head(self, version: VersionFacts) -> bytes:
        try:
            return self._artifacts.read(f"{version.artifact_key}/{HEAD_FILE}")
        except NotFound as error:  # the operator's files, so not the caller's fault
            raise Unavailable(
                f"{version.model}@{version.number} cannot be served: {error.message}", code="head_missing"
            ) from error

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


def _lane(facts: EncoderFacts, role: Role) -> Role:
    """Roles that read the same tokens share their passes."""
    return role if facts.prompts.get("query") != facts.prompts.get("document") else "document"


def _keeps_base(version: VersionFacts, role: Role) -> bool:
    return version.number == 0 or (version.query_only and role == "document")


def _padded(base: Vectors, *, dim: int) -> Vectors:
    """The base vectors with zeros behind them: (n, dim)."""
    return np.pad(base, ((0, 0), (0, dim - base.shape[1])))
