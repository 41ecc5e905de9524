"""BERT in its packed form gives what transformers' own gives, and is left alone where it would not."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from zerogate import encoder_bert
from zerogate.encoder import Encoder
from zerogate.encoder_bert import _rounded, packed
from zerogate.precision import best_dtype

TEXTS = ["a", "b", "one and the same length", "two and the same length", "Wie kündige ich meinen Vertrag?", "longest " * 60]

native = pytest.mark.skipif(
    best_dtype(torch.device("cpu")) != "bfloat16", reason="this processor does not multiply bf16 natively"
)


@pytest.fixture
def half(encoder: Encoder) -> SentenceTransformer:
    """The encoder in bf16, as sentence-transformers runs it."""
    kwargs = {"dtype": torch.bfloat16}
    model = SentenceTransformer(str(encoder.files.path), device="cpu", local_files_only=True, model_kwargs=kwargs)
    return model.eval().requires_grad_(requires_grad=False)


@native
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_token_is_nearly_that_of_transformers_and_padding_is_zero(half: SentenceTransformer, side: str) -> None:
    half.tokenizer.padding_side = side
    features = half.preprocess(TEXTS)
    ids, mask = features["input_ids"], features["attention_mask"]
    exact = SentenceTransformer(half[0].config.name_or_path, device="cpu", local_files_only=True)[0].auto_model
    form = packed(half[0])
    assert form is not None

    with torch.inference_mode():
        found = form(ids, mask)
        expected = exact(input_ids=ids, attention_mask=mask).last_hidden_state
        theirs = half[0].auto_model(input_ids=ids, attention_mask=mask).last_hidden_state.float()

    there = mask.bool()
    assert found.dtype == torch.float32
    assert found[~there].abs().sum() == 0
    error, their_error = ((one - expected)[there].square().mean().sqrt() for one in (found, theirs))
    assert 0 < error < 1.2 * their_error  # no further from fp32 than bf16 is anyway


@native
def test_the_encoder_uses_it_where_the_processor_has_bf16() -> None:
    assert Encoder("all-MiniLM-L6-v2", device="cpu")._packed is not None


def test_fp32_other_activations_and_adapters_are_left_to_transformers(encoder: Encoder, half: SentenceTransformer) -> None:
    assert packed(encoder._model[0]) is None
    assert packed(torch.nn.Linear(2, 2)) is None

    half[0].auto_model.config.hidden_act = "relu"
    assert packed(half[0]) is None
    half[0].auto_model.config.hidden_act = "gelu"

    class Adapted(torch.nn.Linear):
        pass

    half[0].auto_model.encoder.layer[0].output.dense = Adapted(1536, 384, dtype=torch.bfloat16)
    assert packed(half[0]) is None


@native
def test_a_torch_that_declares_the_operators_otherwise_is_left_alone(
    half: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packed(half[0]) is not None
    monkeypatch.setattr(encoder_bert, "_SCHEMAS", {"mkldnn::_linear_pointwise(Tensor X) -> Tensor Y"})

    assert packed(half[0]) is None


@native
def test_a_torch_without_the_script_compiler_is_left_alone(half: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed(half[0]) is not None
    encoder_bert._compiled.cache_clear()
    monkeypatch.delattr(torch.jit, "script")
    try:
        assert packed(half[0]) is None
    finally:
        encoder_bert._compiled.cache_clear()


@native
def test_rows_without_tokens_leave_the_others_as_they_are(encoder: Encoder) -> None:
    form = Encoder("all-MiniLM-L6-v2", device="cpu")
    rows = [form.tokenize(["a text"], role="document")[0], []]

    found = form.encode_tokens(rows, role="document")

    assert found[0] @ encoder.encode(["a text"], role="document")[0] > 0.999
    assert np.array_equal(found[1], np.zeros(form.dim))


def test_passes_of_many_sizes_share_few_shapes_and_little_of_them_is_empty() -> None:
    sizes = range(1, 2049)
    rounded = [_rounded(size) for size in sizes]

    assert len(set(rounded)) <= 48  # each is compiled once
    assert all(made >= size and made - size < max(16, size / 8) for made, size in zip(rounded, sizes, strict=True))
