"""A frozen sentence-transformers model that turns texts into base vectors.

The transformer runs in bf16 where the processor has it; pooling and normalisation always run in fp32
(all-MiniLM-L6-v2: 2.8 x faster than fp32, cosine to the fp32 output >= 0.9999).
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers.utils import logging as transformers_logging

from zerogate.encoder_files import EncoderFiles, Role, describe_encoder
from zerogate.errors import EncoderMismatch
from zerogate.precision import Dtype, best_device, best_dtype

# Small batches of equal length fill two cores and waste nothing on padding; one batch takes about 25 ms, so that a
# waiting request gets its turn soon. 1,024 tokens measured best on the standard library's docstrings.
_TOKENS_PER_BATCH = 1024
# A GPU wants far larger ones; not measured yet.
_TOKENS_PER_GPU_BATCH = 32_768
_CHARACTERS_PER_TOKEN = 4


class Encoder:
    """Gives base vectors: (n, dim) float32 with unit rows.

    The same text in another batch may differ in the last bits of bf16 (up to 1.5e-3 a component, cosine 0.99997).
    Safe to share between threads: batches of different callers alternate.
    """

    def __init__(
        self,
        source: str | EncoderFiles,
        *,
        prompts: Mapping[Role, str] | None = None,
        max_length: int | None = None,
        device: str | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        """Load the encoder; `source`, `prompts` and `max_length` as for `describe_encoder`.

        device: `cpu`, `cuda`, `cuda:1`, ...; by default the first CUDA device, else the CPU. dtype: by default `best_dtype`.
        """
        self.files = describe_encoder(source, prompts=prompts, max_length=max_length) if isinstance(source, str) else source
        self.device = best_device() if device is None else torch.device(device)
        self.dtype: Dtype = dtype or best_dtype(self.device)
        self._tokens_per_batch = _TOKENS_PER_BATCH if self.device.type == "cpu" else _TOKENS_PER_GPU_BATCH
        self._lock = threading.Lock()
        self._model = _load(self.files, self.device, self.dtype)
        self._normalised = isinstance(self._model[-1], Normalize)

    @property
    def fingerprint(self) -> str:
        return self.files.fingerprint

    @property
    def dim(self) -> int:
        return self.files.dim

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        on_batch: Callable[[Sequence[int], NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        """Base vectors of the texts, in their order: (n, dim) float32, unit rows.

        role: chooses the prompt. on_batch: called after every batch with the positions and vectors just made; may raise to stop.
        """
        prompt = self.files.prompts.get(role)
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for positions in _batches(texts, self.files.max_length, self._tokens_per_batch):
            vectors[positions] = self._encode_batch([texts[position] for position in positions], prompt)
            if on_batch is not None:
                on_batch(positions, vectors[positions])
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens that the encoder reads of each text, special tokens included and cut at its maximum length."""
        if not texts:  # the tokenizer of a batch of nothing raises IndexError
            return []
        with self._lock:
            rows = self._model.tokenizer(list(texts), truncation=True, max_length=self.files.max_length)["input_ids"]
        return [len(row) for row in rows]

    def tokenize(self, texts: Sequence[str], *, role: Role) -> list[list[int]]:
        """The ids that the encoder reads of each text: prompt and special tokens included, cut at its maximum length."""
        if not texts:
            return []
        prompt = self.files.prompts.get(role) or ""
        with self._lock:
            told = self._model.tokenizer([prompt + text for text in texts], truncation=True, max_length=self.files.max_length)
        return [list(row) for row in told["input_ids"]]

    def encode_tokens(self, rows: Sequence[Sequence[int]], *, role: Role) -> NDArray[np.float32]:
        """Base vectors of the rows that `tokenize` gave for the role, in one pass: (n, dim) float32, unit rows."""
        longest = max(map(len, rows))
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        with self._lock, torch.inference_mode():
            features = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
            vectors = self._model(features)["sentence_embedding"].float()
            if not self._normalised:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            found: NDArray[np.float32] = vectors.cpu().numpy()
        return found

    def _encode_batch(self, texts: list[str], prompt: str | None) -> NDArray[np.float32]:
        # One batch at a time: a fast tokenizer that two threads borrow raises, and two forward passes only slow each other down.
        with self._lock, torch.inference_mode():
            features = self._model.preprocess(texts, prompt=prompt)
            features = {name: _to_device(value, self.device) for name, value in features.items()}
            vectors = self._model(features)["sentence_embedding"].float()  # (n, dim)
            if not self._normalised:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            found: NDArray[np.float32] = vectors.cpu().numpy()
        return found


def _load(files: EncoderFiles, device: torch.device, dtype: Dtype) -> SentenceTransformer:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it would draw over our own
    model = SentenceTransformer(
        str(files.path), device=str(device), local_files_only=True, model_kwargs={"use_safetensors": True}
    )
    model.max_seq_length = files.max_length
    model.eval().requires_grad_(requires_grad=False)
    found = model.get_embedding_dimension()
    if found != files.dim:
        raise EncoderMismatch(
            f"the encoder in {files.path} gives vectors of {found} numbers, its configuration declares {files.dim}"
        )
    transformer = model[0]
    if dtype == "bfloat16" and hasattr(transformer, "auto_model"):
        transformer.auto_model.to(torch.bfloat16)
        # Without this the pooling and Normalize modules would run in bf16 too.
        transformer.register_forward_hook(_tokens_to_fp32)
    return model


def _tokens_to_fp32(_module: torch.nn.Module, _inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    features["token_embeddings"] = features["token_embeddings"].float()
    return features


def _to_device(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def _batches(texts: Sequence[str], max_length: int, tokens_per_batch: int) -> Iterator[list[int]]:
    """Positions of texts of about equal length, longest first; a batch holds about so many tokens with padding."""
    lengths = [min(len(text) // _CHARACTERS_PER_TOKEN + 2, max_length) for text in texts]
    order = sorted(range(len(texts)), key=lambda position: -lengths[position])
    start = 0
    while start < len(order):
        size = max(1, tokens_per_batch // lengths[order[start]])
        yield order[start : start + size]
        start += size
