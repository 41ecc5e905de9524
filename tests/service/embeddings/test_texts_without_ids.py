"""Rows of models that read texts, not ids: their texts tell them apart."""

import numpy as np

from service.embeddings.known_vectors import KnownVectors
from zerogate.encoder_reading import TextRow


def test_the_answer_cache_tells_rows_without_ids_apart_by_their_texts() -> None:
    known = KnownVectors(max_bytes=1_000_000)
    cat, dog = TextRow([], "cat"), TextRow([], "dog")
    known.put(("encoder", "query"), [cat], np.ones((1, 4), dtype=np.float32))

    found = known.get(("encoder", "query"), [cat, dog])

    assert found[0] is not None
    assert found[1] is None
