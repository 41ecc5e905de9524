"""The lazy encoder: it is the encoder of its files, and nobody pays for it before a text must be read."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zerogate.cache import CachedEncoder, EmbeddingCache
from zerogate.encoder import Encoder
from zerogate.encoder_files import EncoderFiles, describe_encoder
from zerogate.errors import EncoderMismatch
from zerogate.lazy_encoder import LazyEncoder
from zerogate.precision import best_dtype

TEXTS = ["How do I reset it?", "Where is the manual?", "It is in the box."]
FILES = describe_encoder("all-MiniLM-L6-v2")


class Finding:
    """Gives the files, and counts how often; the first calls fail where there are errors left."""

    def __init__(self, *errors: Exception) -> None:
        self.calls = 0
        self._errors = list(errors)

    def __call__(self) -> EncoderFiles:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return FILES


def lazy(find: Finding) -> LazyEncoder:
    return LazyEncoder(find, fingerprint=FILES.fingerprint, dim=FILES.dim, dtype="float32")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[EmbeddingCache]:
    opened = EmbeddingCache(tmp_path / "cache")
    yield opened
    opened.close()


def test_it_gives_what_the_encoder_gives_and_loads_it_once(encoder: Encoder, cache: EmbeddingCache) -> None:
    find = Finding()
    cached = CachedEncoder(lazy(find), cache)
    expected = Encoder(FILES, dtype="float32")

    found = cached.encode(TEXTS, role="query")

    assert found.tobytes() == expected.encode(TEXTS, role="query").tobytes()
    assert cached.encode(["Another one"], role="document").shape == (1, 384)
    assert cached.encoder.count_tokens(TEXTS) == encoder.count_tokens(TEXTS)
    assert (cached.encoder.dtype, cached.encoder.device) == (expected.dtype, expected.device)
    assert find.calls == 1


def test_what_is_in_the_cache_needs_no_encoder(cache: EmbeddingCache) -> None:
    first = CachedEncoder(lazy(Finding()), cache).encode(TEXTS, role="query")
    find = Finding()
    cached = CachedEncoder(lazy(find), cache)

    assert cached.encode(TEXTS, role="query").tobytes() == first.tobytes()
    assert cached.lookup(TEXTS, role="query")[0].tobytes() == first.tobytes()
    assert find.calls == 0

    assert cached.encoder.files == FILES
    assert isinstance(cached.encoder, LazyEncoder)
    assert not cached.encoder.is_loaded


def test_without_a_dtype_it_takes_the_one_that_the_encoder_would() -> None:
    unsaid = LazyEncoder(Finding(), fingerprint=FILES.fingerprint, dim=FILES.dim)

    assert unsaid.dtype == best_dtype(unsaid.device)


def test_files_that_were_not_found_are_looked_for_again() -> None:
    find = Finding(EncoderMismatch("other files stand there"))
    found = lazy(find)

    with pytest.raises(EncoderMismatch, match="other files"):
        found.count_tokens(TEXTS)

    assert len(found.count_tokens(TEXTS)) == 3
    assert find.calls == 2


def test_threads_that_need_it_at_once_load_it_once() -> None:
    find = Finding()
    found = lazy(find)

    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: found.loaded(), range(4)))

    assert find.calls == 1
    assert len({id(one) for one in loaded}) == 1


TRAINING = """
import sys
from pathlib import Path
import numpy as np
from zerogate import CachedEncoder, EmbeddingCache, LazyEncoder, Recipe, Rows, Vectors, make_guard, make_task

def find():
    raise AssertionError("nothing is missing")

cached = CachedEncoder(LazyEncoder(find, fingerprint="f", dim=8, dtype="float32"), EmbeddingCache(Path(sys.argv[1])))
task = make_task(Rows("pairs", [{"anchor": f"q{n}", "positive": f"d{n}"} for n in range(120)], {}))
guard = make_guard("scored", [{"sentence1": f"q{n}", "sentence2": f"q{n + 1}", "score": n / 40} for n in range(40)])
texts = {"query": [*task.queries, *guard.queries], "document": task.documents}
if sys.argv[2] == "fill":
    for role, some in texts.items():
        keys = cached._keys(some, role)
        cached._cache.put(keys, np.random.default_rng(1).normal(size=(len(some), 8)).astype(np.float32))
else:
    vectors, guarded = (
        Vectors(cached.encode(one.queries, role="query"), cached.encode(one.documents, role="document")) for one in (task, guard)
    )
    loaded = {"torch", "sentence_transformers", "transformers"} & set(sys.modules)
    assert loaded == set(), loaded
    from zerogate import assess, learn

    found = learn(task, vectors, guard, guarded, recipe=Recipe(epochs=2), device=cached.encoder.device)
    assess(task, vectors, guard, guarded, found.head, query_only=False)
    loaded = {"torch", "sentence_transformers", "transformers"} & set(sys.modules)
    assert loaded == {"torch"}, loaded
"""


def test_a_training_whose_texts_are_all_cached_never_imports_sentence_transformers(tmp_path: Path) -> None:
    for what in ("fill", "train"):
        run = [sys.executable, "-c", TRAINING, str(tmp_path), what]
        found = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
        assert found.stderr == ""
        assert found.returncode == 0
