"""The real encoder: what sentence-transformers gives, whatever the batch, the thread, the dtype and the role."""

import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from tokenizers import Tokenizer

from zerogate.encoder import Encoder
from zerogate.encoder_files import EncoderFiles
from zerogate.errors import EncoderMismatch
from zerogate.folded import FoldedHead
from zerogate.precision import Dtype, best_dtype

LONG = "The connection pool keeps idle sockets open until the server closes them. " * 40  # 600 tokens
TEXTS = [
    "a",
    LONG,
    "Wie kündige ich meinen Vertrag, wenn er erst übermorgen beginnt?",
    "日本語の文章も読めます。",
    "🙂🙃 emoji and\ttabs\nand\n\nnewlines   and   spaces",
    "UPPER CASE IS READ LIKE lower case",
    LONG[:400],
    *(f"Document {number}: " + "it returns the value for the given key. " * (number % 7) for number in range(33)),
]


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    found: NDArray[np.float64] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


def lengths(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return found


@pytest.fixture(scope="module")
def vectors(encoder: Encoder) -> NDArray[np.float32]:
    """The base vectors of TEXTS."""
    return encoder.encode(TEXTS, role="document")


@pytest.fixture(scope="module")
def prompted() -> Encoder:
    """The same encoder with a prompt for queries, and a limit of 16 tokens."""
    return Encoder("all-MiniLM-L6-v2", prompts={"query": "query: "}, max_length=16, dtype="float32", device="cpu")


def without_normalize(files: EncoderFiles, folder: Path) -> Path:
    """The built-in encoder less its last module."""
    folder.mkdir()
    for path in files.path.iterdir():
        if path.name != "modules.json":
            (folder / path.name).symlink_to(path)
    modules = json.loads((files.path / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([one for one in modules if not one["type"].endswith("Normalize")]))
    return folder


def with_head(files: EncoderFiles, head: FoldedHead, folder: Path) -> Path:
    """The built-in encoder with a head behind it, as sentence-transformers saves such: Dense without activation, Normalize."""
    folder.mkdir()
    for path in files.path.iterdir():
        if path.name != "modules.json":
            (folder / path.name).symlink_to(path)
    dense = Dense(head.dim, head.out_dim, bias=head.offset is not None, activation_function=torch.nn.Identity())
    dense.load_state_dict(
        {
            f"linear.{name}": torch.from_numpy(part)
            for name, part in (("weight", head.matrix), ("bias", head.offset))
            if part is not None
        }
    )
    modules = json.loads((files.path / "modules.json").read_text())
    for number, module in ((3, dense), (4, Normalize())):
        name = f"{number}_{type(module).__name__}"
        (folder / name).mkdir()
        module.save(str(folder / name))
        kind = f"sentence_transformers.models.{type(module).__name__}"
        modules.append({"idx": number, "name": str(number), "path": name, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_vectors_are_those_of_sentence_transformers_in_the_order_of_the_texts(
    encoder: Encoder, vectors: NDArray[np.float32]
) -> None:
    reference = SentenceTransformer(str(encoder.files.path), device="cpu", local_files_only=True)

    expected = reference.encode(TEXTS, batch_size=8, show_progress_bar=False)

    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.abs(expected[1:] - expected[:-1]).max(axis=1).min() > 0.01  # another order would be noticed


def test_rows_have_unit_length(vectors: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(lengths(vectors), 1, atol=1e-6)


def test_a_text_alone_gives_what_it_gives_among_others(encoder: Encoder, vectors: NDArray[np.float32]) -> None:
    for position in (0, 1, 4, 20):
        alone = encoder.encode([TEXTS[position]], role="document")[0]

        assert np.abs(alone - vectors[position]).max() < 1e-6


def test_an_encoder_that_does_not_normalise_gives_unit_rows_all_the_same(
    encoder: Encoder, vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    raw = Encoder(str(without_normalize(encoder.files, tmp_path / "raw")), dtype="float32", device="cpu")

    found = raw.encode(TEXTS[2:12], role="document")

    np.testing.assert_allclose(lengths(found), 1, atol=1e-6)
    np.testing.assert_allclose(found, vectors[2:12], atol=1e-6)
    assert raw.fingerprint != encoder.fingerprint


@pytest.mark.skipif(best_dtype(torch.device("cpu")) != "bfloat16", reason="this processor does not multiply bf16 natively")
def test_bf16_stays_close_to_fp32_and_gives_fp32_unit_rows(vectors: NDArray[np.float32]) -> None:
    half = Encoder("all-MiniLM-L6-v2", device="cpu")

    found = half.encode(TEXTS, role="document")

    assert half.dtype == "bfloat16"
    assert found.dtype == np.float32
    assert cosines(found, vectors).min() >= 0.9999
    assert np.abs(found - vectors).max() > 1e-6  # it was bf16
    np.testing.assert_allclose(lengths(found), 1, atol=1e-6)  # bf16 pooling would leave 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("out_dim", [384, 400])
def test_a_head_that_became_part_of_the_encoder_runs_in_fp32(
    encoder: Encoder, tmp_path: Path, dtype: Dtype, out_dim: int
) -> None:
    draw = np.random.default_rng(out_dim)
    matrix = np.eye(out_dim, 384) + 0.05 * draw.normal(size=(out_dim, 384))
    head = FoldedHead(matrix.astype(np.float32), (0.05 * draw.normal(size=out_dim)).astype(np.float32))
    base = Encoder("all-MiniLM-L6-v2", device="cpu", dtype=dtype)
    whole = Encoder(str(with_head(encoder.files, head, tmp_path / "whole")), device="cpu", dtype=dtype)

    found = whole.encode(TEXTS[2:12], role="document")

    assert (whole.dim, found.shape) == (out_dim, (10, out_dim))
    # The transformer gives the same in both; a Dense in bf16 would leave 1e-3.
    np.testing.assert_allclose(found, head.vectors(base.encode(TEXTS[2:12], role="document")), atol=1e-6)
    np.testing.assert_allclose(lengths(found), 1, atol=1e-6)
    assert whole.fingerprint != base.fingerprint


def test_a_prompt_is_read_before_the_texts_of_its_role_only(encoder: Encoder, prompted: Encoder) -> None:
    texts = ["How do I reset it?", "x", "größer als"]
    plain = encoder.encode(texts, role="query")

    queries, documents = prompted.encode(texts, role="query"), prompted.encode(texts, role="document")

    np.testing.assert_allclose(queries, encoder.encode([f"query: {text}" for text in texts], role="document"), atol=1e-6)
    np.testing.assert_allclose(documents, plain, atol=1e-6)
    assert cosines(queries, plain).max() < 0.99


def test_without_prompts_the_role_changes_nothing(encoder: Encoder) -> None:
    queries, documents = (encoder.encode(TEXTS[2:6], role=role) for role in ("query", "document"))

    assert queries.tobytes() == documents.tobytes()


def test_what_stands_behind_the_limit_is_not_read(prompted: Encoder) -> None:
    start = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"  # 14 tokens and 2 special ones

    whole, cut, shorter = prompted.encode([f"{start} and much more of it", start, start[:-9]], role="document")

    np.testing.assert_allclose(whole, cut, atol=1e-6)
    assert np.abs(cut - shorter).max() > 0.01


def test_tokens_are_counted_as_the_tokenizer_counts_them_and_cut_at_the_limit(encoder: Encoder, prompted: Encoder) -> None:
    tokenizer = Tokenizer.from_file(str(encoder.files.path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    expected = [len(tokenizer.encode(text).ids) for text in TEXTS]

    assert encoder.count_tokens(TEXTS) == [min(count, 256) for count in expected]
    assert prompted.count_tokens(TEXTS) == [min(count, 16) for count in expected]
    assert expected[0] == 3
    assert expected[1] > 256
    assert encoder.count_tokens([]) == []


def test_the_callback_sees_every_text_once_with_its_vector(encoder: Encoder) -> None:
    texts = [*TEXTS[7:14], *(f"Question {number}: does it return None when nothing is found?" for number in range(90))]
    seen: list[int] = []
    sizes: list[int] = []
    collected = np.zeros((len(texts), 384), dtype=np.float32)

    def on_batch(positions: Sequence[int], made: NDArray[np.float32]) -> None:
        seen.extend(positions)
        sizes.append(len(positions))
        collected[positions] = made

    found = encoder.encode(texts, role="document", on_batch=on_batch)

    assert sorted(seen) == list(range(len(texts)))
    assert len(sizes) > 1
    assert collected.tobytes() == found.tobytes()


def test_the_callback_may_stop_the_encoding(encoder: Encoder) -> None:
    stop = KeyboardInterrupt()
    calls = []

    def on_batch(positions: Sequence[int], made: NDArray[np.float32]) -> None:
        calls.append(positions)
        if len(calls) == 2:
            raise stop

    with pytest.raises(KeyboardInterrupt) as caught:
        encoder.encode(TEXTS[7:], role="document", on_batch=on_batch)

    assert caught.value is stop
    assert len(calls) == 2
    assert len(encoder.encode(["still there"], role="query")) == 1


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """An encoder whose passes run side by side, three at once."""
    encoder = Encoder("all-MiniLM-L6-v2", device="cpu")
    if encoder._packed is None:
        pytest.skip("this processor does not multiply bf16 natively")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    return encoder


MANY = [f"{'word ' * (number % 60)} number {number}" for number in range(300)]  # some ten passes


def test_passes_side_by_side_give_every_text_its_own_vector(
    encoder: Encoder, three_threads: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran_in: list[str] = []

    def one_pass(*args: Any, **kwargs: Any) -> NDArray[np.float32]:
        ran_in.append(threading.current_thread().name)
        return Encoder._pass(three_threads, *args, **kwargs)

    monkeypatch.setattr(three_threads, "_pass", one_pass)
    found = three_threads.encode(MANY, role="document")

    assert len(ran_in) >= 5
    assert 1 < len(set(ran_in)) <= 3
    assert threading.current_thread().name not in ran_in
    assert (found * encoder.encode(MANY, role="document")).sum(axis=1).min() > 0.999


def test_a_stop_drops_the_passes_that_wait_and_leaves_no_thread(three_threads: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []

    def one_pass(rows: Sequence[Any], *args: Any, **kwargs: Any) -> NDArray[np.float32]:
        passes.append(len(rows))
        time.sleep(0.05)
        return np.zeros((len(rows), three_threads.dim), dtype=np.float32)

    def on_batch(positions: Sequence[int], made: NDArray[np.float32]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(three_threads, "_pass", one_pass)
    with pytest.raises(KeyboardInterrupt):
        three_threads.encode(MANY, role="document", on_batch=on_batch)

    assert sum(passes) < len(MANY)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_an_error_in_a_pass_beside_others_reaches_the_caller(three_threads: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_pass(*args: Any, **kwargs: Any) -> NDArray[np.float32]:
        raise MemoryError

    monkeypatch.setattr(three_threads, "_pass", one_pass)
    with pytest.raises(MemoryError):
        three_threads.encode(MANY, role="document")


def test_threads_encode_and_count_at_once_and_get_their_own_answers(encoder: Encoder, vectors: NDArray[np.float32]) -> None:
    halves = [TEXTS[2:26:2], TEXTS[3:26:2]]
    counts = encoder.count_tokens(TEXTS)

    with ThreadPoolExecutor(4) as pool:
        answers = [
            (pool.submit(encoder.encode, texts, role="document"), pool.submit(encoder.count_tokens, TEXTS * 10))
            for texts in halves * 4
        ]

    for number, (made, counted) in enumerate(answers):
        np.testing.assert_allclose(made.result(), vectors[2 + number % 2 : 26 : 2], atol=1e-6)
        assert counted.result() == counts * 10


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode([], role="query").shape == (0, 384)


def test_files_that_declare_another_dimension_are_refused(encoder: Encoder) -> None:
    lie = dataclasses.replace(encoder.files, dim=100)

    with pytest.raises(EncoderMismatch, match="gives vectors of 384 numbers, its configuration declares 100"):
        Encoder(lie, device="cpu")
