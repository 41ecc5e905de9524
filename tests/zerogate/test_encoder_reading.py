"""What an encoder reads: the very tensors of sentence-transformers, and passes that hold little padding."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

from zerogate import encoder as encoder_module
from zerogate.encoder import Encoder
from zerogate.encoder_reading import TextReader, TokenReader, passes, reader_of

TEXTS = ["", "a", "größer als 日本 🙂", "  spaces\n\tand tabs  ", "long " * 300, "[CLS] is a special token [SEP]", "A line."]


@pytest.fixture(scope="module")
def model(encoder: Encoder) -> SentenceTransformer:
    """sentence-transformers' own, to be compared with."""
    return SentenceTransformer(str(encoder.files.path), device="cpu", local_files_only=True)


def without_prompt_in_pooling(encoder: Encoder, folder: Path) -> Path:
    """The encoder, saved so that its pooling leaves the prompt's tokens out."""
    model = SentenceTransformer(str(encoder.files.path), device="cpu", local_files_only=True)
    model.set_pooling_include_prompt(include_prompt=False)
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("prompt", ["", "query: "])
def test_the_tensors_of_a_pass_are_those_of_sentence_transformers(model: SentenceTransformer, prompt: str) -> None:
    expected = model.preprocess(TEXTS, prompt=prompt or None)
    reader = reader_of(model, [prompt], 256)

    found = reader.features(reader.rows(TEXTS, prompt), prompt)

    assert isinstance(reader, TokenReader)
    assert {*found, "modality"} == set(expected)
    for name, value in found.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[name])), name


def test_a_tokenizer_that_pads_on_the_left_is_followed(encoder: Encoder) -> None:
    model = SentenceTransformer(str(encoder.files.path), device="cpu", local_files_only=True)
    model.tokenizer.padding_side = "left"
    expected = model.preprocess(TEXTS)["input_ids"]

    reader = reader_of(model, [], 256)

    assert isinstance(reader, TokenReader)
    assert torch.equal(reader.features(reader.rows(TEXTS, ""), "")["input_ids"], expected)
    assert expected[0, 0] == model.tokenizer.pad_token_id


def test_a_pooling_that_leaves_the_prompt_out_gives_what_sentence_transformers_gives(encoder: Encoder, tmp_path: Path) -> None:
    folder = without_prompt_in_pooling(encoder, tmp_path / "instructed")
    prompts = {"query": "Represent the question: "}
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = Encoder(str(folder), prompts={"query": prompts["query"]}, device="cpu", dtype="float32")
    expected = reference.encode(TEXTS[1:], prompt=prompts["query"], show_progress_bar=False)

    np.testing.assert_allclose(ours.encode(TEXTS[1:], role="query"), expected, atol=1e-5)
    np.testing.assert_allclose(
        ours.encode(TEXTS[1:], role="document"), reference.encode(TEXTS[1:], show_progress_bar=False), atol=1e-5
    )
    whole = encoder.encode([prompts["query"] + text for text in TEXTS[1:]], role="document")
    assert np.abs(whole - expected).max() > 0.01  # the prompt's tokens were left out


def test_a_model_that_reads_more_than_ids_is_read_by_its_own_means(encoder: Encoder, model: SentenceTransformer) -> None:
    tokenizer = model.tokenizer.backend_tokenizer
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8), Normalize()], device="cpu")
    reader = reader_of(static, [], 256)
    rows = reader.rows(TEXTS[1:], "")

    features = reader.features(rows, "")

    assert isinstance(reader, TextReader)
    np.testing.assert_array_equal(
        static(features)["sentence_embedding"].detach(), static.encode(TEXTS[1:], show_progress_bar=False)
    )
    assert rows[0] == static.preprocess(["a"])["input_ids"].tolist()


def test_tokens_that_were_read_first_give_what_the_texts_give(encoder: Encoder) -> None:
    rows = encoder.tokenize(TEXTS, role="query")

    found = encoder.encode_tokens(rows, role="query")

    assert found.tobytes() == encoder.encode(TEXTS, role="query").tobytes()
    assert [len(row) for row in rows] == encoder.count_tokens(TEXTS)
    assert encoder.tokenize([], role="query") == []
    assert encoder.encode_tokens([], role="query").shape == (0, 384)


def test_threads_read_at_once_and_get_their_own_rows(encoder: Encoder) -> None:
    expected = encoder.tokenize(TEXTS, role="document")
    together = threading.Barrier(4)

    def read(number: int) -> list[list[int]]:
        together.wait()
        return encoder.tokenize([TEXTS[number]] * 200 + TEXTS, role="document")

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(read, range(4)))

    for number, rows in enumerate(answers):
        assert rows == [expected[number]] * 200 + expected


def test_texts_of_many_chunks_come_in_their_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{'very ' * (number % 5)}short text {number}" for number in range(41)]
    expected = encoder.encode(texts, role="document")
    seen: list[int] = []
    monkeypatch.setattr(encoder_module, "_TEXTS_READ_AHEAD", 10)

    found = encoder.encode(texts, role="document", on_batch=lambda positions, _: seen.extend(positions))

    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sorted(seen) == list(range(41))
    assert all(position < 10 for position in seen[:10])  # the first chunk was told before the second was encoded


def test_a_callback_that_stops_it_stops_the_thread_that_reads_ahead(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "_TEXTS_READ_AHEAD", 10)
    running: list[str] = []

    def on_batch(_positions: Sequence[int], _vectors: NDArray[np.float32]) -> None:
        running.extend(thread.name for thread in threading.enumerate() if thread.name.startswith("tokenize"))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        encoder.encode(["some text"] * 100, role="document", on_batch=on_batch)

    assert len(running) == 1
    assert not any(thread.name.startswith("tokenize") for thread in threading.enumerate())


@given(st.lists(st.integers(0, 256), max_size=300), st.sampled_from([64, 1024, 8192]))
def test_every_row_is_in_one_pass_that_fits_and_holds_little_padding(lengths: list[int], budget: int) -> None:
    found = list(passes(lengths, budget))

    assert sorted(position for batch in found for position in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[position] for position in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
        assert sum(longest - lengths[position] for position in batch) <= budget // 8


def test_rows_of_one_length_fill_their_passes() -> None:
    assert [len(batch) for batch in passes([32] * 100, 1024)] == [32, 32, 32, 4]
