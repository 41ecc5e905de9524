"""The benchmark of the instant search: its datasets, its measure of what was found, and one tiny run."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.instant import Trained, measure, tables
from benchmarks.instant_data import by_name, first_by_digest, package_pairs, words
from benchmarks.instant_service import same, spread
from cli.docstrings import Pair
from zerogate import Encoder
from zerogate.folded import FoldedHead

TEXTS = [
    f"{who} {what}" for who in ("a sailor", "the clerk", "my cousin") for what in ("hums", "waits", "left", "knits", "sold it")
]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("scipy.stats.KstestResult", "scipy stats kstest result"),
        ("sklearn.svm.LinearSVC.fit_transform", "sklearn svm linear svc fit transform"),
        ("a.HTTPServer2", "a http server 2"),
    ],
)
def test_a_name_is_told_as_words(name: str, told: str) -> None:
    assert words(name) == told


def test_a_name_finds_the_description_without_the_signature() -> None:
    pair = Pair("Give it back.", "lib.take_back(what)\nAll of it.", document_id="lib.take_back", module="lib", kind="function")

    assert by_name(pair) == ("lib take back", "Give it back. All of it.")


def test_the_same_pairs_are_chosen_from_everywhere_and_no_anchor_twice() -> None:
    pairs = package_pairs(("torch",), 50)

    assert pairs == package_pairs(("torch",), 50)
    assert len({pair.anchor for pair in pairs}) == 50
    assert len({pair.module.split(".")[1] for pair in pairs}) > 5
    assert first_by_digest(pairs[::-1], 10) == first_by_digest(pairs, 10)


def test_a_document_counts_when_its_score_reaches_the_last_of_the_best() -> None:
    scores = np.array([0.9, 0.2, 0.7, 0.7, 0.1])

    assert same(["0", "2"], scores, limit=2) == 1.0
    assert same(["0", "3"], scores, limit=2) == 1.0  # as good as the other with 0.7
    assert same(["0", "1"], scores, limit=2) == 0.5
    assert same(["0"], scores, limit=2) == 0.5


def test_neighbours_fill_up_what_is_missing() -> None:
    base = np.eye(50, dtype=np.float32)

    many = spread(base, 400)

    assert np.array_equal(many[:50], base)
    assert np.abs(np.linalg.norm(many, axis=1) - 1).max() < 1e-6
    assert np.quantile(np.sort(many[50:] @ base.T, axis=1)[:, -1], [0.01, 0.99]) == pytest.approx([0.86, 0.93], abs=0.05)
    assert np.array_equal(spread(base, 30), base[:30])


def test_a_tiny_run_finds_what_a_full_index_finds(encoder: Encoder, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    base = encoder.encode(TEXTS, role="document")
    matrix = np.eye(384) + 0.4 * draw.standard_normal((384, 384)) / 384**0.5
    plain = FoldedHead(matrix.astype(np.float32), None)
    biased = FoldedHead(matrix.astype(np.float32), (0.5 * draw.standard_normal(384) / 384**0.5).astype(np.float32))
    trained = {name: Trained({False: plain, True: biased}, base[part], base) for name, part in (("a", slice(3)), ("b", slice(5)))}

    found = measure(trained, tmp_path, sizes=[200])

    assert found["documents"] == 30
    assert found["recall_at_10"] == {"a": 1.0, "b": 1.0}  # fewer documents than candidates: none is missed
    assert found["queries"] == {"a": 3, "b": 5}
    assert set(found["added_ms"]) == {"200"}
    assert found["cost"]["200"]["equal_hits"] >= 0.9
    assert 0 < found["live_seconds"] < 60
    assert [table.row_count for table in tables(found)] == [2, 1]
