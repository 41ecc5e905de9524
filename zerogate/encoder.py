"""A frozen sentence-transformers model that turns texts into base vectors.

The transformer runs in bf16 where the processor has it; pooling and normalisation always run in fp32 (all-MiniLM-L6-v2: cosine
to the fp32 output >= 0.9999).
"""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers.utils import logging as transformers_logging

from zerogate.encoder_bert import packed
from zerogate.encoder_files import EncoderFiles, Role, describe_encoder
from zerogate.encoder_reading import TokenReader, passes, reader_of
from zerogate.errors import EncoderMismatch
from zerogate.pass_threads import threads_for
from zerogate.precision import Dtype, best_device, best_dtype

# Passes that run side by side take some 60 ms each. 768 tokens and 1,536 gave 2 to 13 % fewer texts a second.
_TOKENS_PER_PASS = 1024
# A GPU wants far larger ones; not measured yet.
_TOKENS_PER_GPU_PASS = 32_768
# Enough of them for rows of equal length to find each other, few enough to hold the tokens of two such chunks.
_TEXTS_READ_AHEAD = 2048

_Rows = Sequence[Sequence[int]]  # the token ids of each text, special ones included


class Encoder:
    """Gives base vectors: (n, dim) float32 with unit rows.

    The same text in another pass may differ in the last bits of bf16 (up to 1.5e-3 a component, cosine 0.99997).
    Safe to share between threads: they read their texts at once; passes run at once where the packed form is used (BERT in bf16
    on a CPU), and else alternate.
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
        self._tokens_per_pass = _TOKENS_PER_PASS if self.device.type == "cpu" else _TOKENS_PER_GPU_PASS
        self._model = _load(self.files, self.device, self.dtype)
        self._normalised = isinstance(self._model[-1], Normalize)
        self._reader = reader_of(self._model, self.files.prompts.values(), self.files.max_length)
        self._packed = packed(self._model[0]) if isinstance(self._reader, TokenReader) else None
        self._behind = list(self._model)[1:]  # the modules behind the transformer
        # Only the packed form is known to keep nothing between its calls: some models of transformers keep the longest length,
        # and two passes of such a one would read each other's. Nor do two passes gain anything on a GPU.
        self._turn = threading.Lock() if self._packed is None else nullcontext()

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

        role: chooses the prompt. on_batch: called in this thread for every pass, with its positions and vectors; may raise to
        stop. Passes run ahead of it, side by side; what those made that it was not called for is lost then.
        """
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with closing(self._rows_ahead(texts, role)) as chunks:
            for start, rows in chunks:
                batches = list(passes([len(row) for row in rows], self._tokens_per_pass))
                with closing(self._side_by_side([[rows[number] for number in batch] for batch in batches], role)) as made:
                    for batch, found in zip(batches, made, strict=True):
                        positions = [start + number for number in batch]
                        vectors[positions] = found
                        if on_batch is not None:
                            on_batch(positions, found)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens that the encoder reads of each text, special tokens included and cut at its maximum length."""
        return [len(row) for row in self._reader.rows(texts, "")]

    def tokenize(self, texts: Sequence[str], *, role: Role) -> list[list[int]]:
        """The ids that the encoder reads of each text: prompt and special tokens included, cut at its maximum length.

        Of a model that reads more than ids the rows also remember their texts: hand them on as they are, do not copy them.
        """
        return [*self._reader.rows(texts, self._prompt(role))]

    def encode_tokens(self, rows: Sequence[Sequence[int]], *, role: Role) -> NDArray[np.float32]:
        """Base vectors of the rows that `tokenize` gave for the role, in their order: (n, dim) float32, unit rows.

        Rows of very different lengths run in several passes.
        """
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for positions in passes([len(row) for row in rows], self._tokens_per_pass):
            vectors[positions] = self._pass([rows[position] for position in positions], role)
        return vectors

    def _prompt(self, role: Role) -> str:
        return self.files.prompts.get(role, "")

    def _rows_ahead(self, texts: Sequence[str], role: Role) -> Generator[tuple[int, list[list[int]]]]:
        """The first position and the rows of each chunk; the next one is read in a thread while the caller works on this one."""

        def read(start: int) -> list[list[int]]:
            return self.tokenize(texts[start : start + _TEXTS_READ_AHEAD], role=role)

        if len(texts) <= _TEXTS_READ_AHEAD:
            yield 0, read(0)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as thread:
            coming = thread.submit(read, 0)
            for start in range(0, len(texts), _TEXTS_READ_AHEAD):
                rows = coming.result()
                coming = thread.submit(read, start + _TEXTS_READ_AHEAD)  # nothing, behind the last one
                yield start, rows

    def _side_by_side(self, batches: Sequence[_Rows], role: Role) -> Generator[NDArray[np.float32]]:
        """The vectors of each batch, in their order. Passes run in one thread each: threads on one pass wait for each other."""
        threads = torch.get_num_threads()
        at_once = 1 if self._packed is None else min(threads, len(batches))
        if at_once < 2:
            yield from (self._pass(rows, role) for rows in batches)
            return
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="encode")
        try:
            yield from pool.map(lambda rows: self._pass(rows, role, threads=threads // at_once), batches)
        finally:  # also where the caller stops
            pool.shutdown(cancel_futures=True)

    def _pass(self, rows: _Rows, role: Role, *, threads: int | None = None) -> NDArray[np.float32]:
        """threads: at most so many for the packed form; default: all that torch has."""
        features = self._reader.features(rows, self._prompt(role))
        work = 0 if self._packed is None else self._packed.multiplications * sum(map(len, rows))
        with self._turn, torch.inference_mode(), threads_for(work, at_most=threads) if work else nullcontext():
            features = {name: _to_device(value, self.device) for name, value in features.items()}
            if self._packed is None:
                features = self._model(features)
            else:
                features["token_embeddings"] = self._packed(features["input_ids"], features["attention_mask"])
                for module in self._behind:
                    features = module(features)
            vectors = features["sentence_embedding"].float()  # (n, dim)
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
    if device.type != "cuda" or not isinstance(value, torch.Tensor):
        return value
    return value.pin_memory().to(device, non_blocking=True)
