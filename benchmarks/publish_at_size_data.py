"""The documents of `benchmarks.publish_at_size`, and an encoder that costs next to nothing. Always the same ones."""

import hashlib
import itertools
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray

import zerogate
from service.artifacts import Artifacts
from service.embeddings.loaded_models import EncoderFacts, LoadedModels
from service.settings import Settings
from zerogate.encoder_files import Role

DIM: Final = 384
_TABLE_ROWS: Final = 4096


def documents(rows: int) -> Iterator[dict[str, Any]]:
    """Documents of eight words and one field of metadata."""
    drawn = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfklmnprstv" for vowel in "aeiou"]
    words = ["".join(pair) for pair in itertools.product(syllables, syllables)]
    for number in range(rows):
        yield {"id": f"document-{number}", "text": " ".join(drawn.choices(words, k=8)), "year": 1900 + number % 100}


def as_jsonl(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """The rows as the body of an upload, some 100 kB at a time."""
    while some := list(itertools.islice(rows, 1000)):
        yield b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in some)


class SeededEncoder:
    """Unit vectors out of nothing but the text's checksum."""

    fingerprint = hashlib.sha256(b"seeded").hexdigest()
    dtype = "float32"

    def __init__(self, dim: int = DIM) -> None:
        self.dim = dim
        self._table = np.random.default_rng(0).standard_normal((_TABLE_ROWS, dim), dtype=np.float32)

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,  # noqa: ARG002 (an encoder's signature)
        on_batch: Callable[[Sequence[int], NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        """(n, dim) float32: the sum of two rows of a random table, normalised; the text chooses which."""
        chosen = np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.uint32)
        vectors = self._table[chosen % _TABLE_ROWS] + self._table[chosen // 2**20]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if on_batch is not None:
            on_batch(range(len(texts)), vectors)
        return vectors


class SeededModels(LoadedModels):
    """The loaded models of a process in which every encoder is the seeded one, behind the real cache."""

    def __init__(self, settings: Settings, artifacts: Artifacts) -> None:
        super().__init__(settings, artifacts)
        self._seeded = zerogate.CachedEncoder(cast("zerogate.Encoder", SeededEncoder()), self._cache)

    def encoder(self, facts: EncoderFacts) -> zerogate.CachedEncoder:  # noqa: ARG002 (there is one)
        """See `LoadedModels`."""
        return self._seeded
