"""An encoder that is loaded when a text must be read, and not before: where every vector is in the cache, it never is.

Nothing here loads torch or sentence-transformers when it is imported: whoever needs them asks for `device`, `dtype` or `loaded`.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zerogate.encoder_files import EncoderFiles, Role

if TYPE_CHECKING:
    import torch

    from zerogate.encoder import Encoder
    from zerogate.precision import Dtype


class LazyEncoder:
    """Gives the same as the `Encoder` of its files. Safe to share between threads."""

    def __init__(self, find: Callable[[], EncoderFiles], *, fingerprint: str, dim: int, dtype: "Dtype | None" = None) -> None:
        """find: gives the files, and raises where they are gone or have another fingerprint; called once, when they are needed.

        fingerprint, dim: as in `EncoderFiles`. dtype: by default `best_dtype` of the device.
        """
        self.fingerprint = fingerprint
        self.dim = dim
        self._find = find
        self._dtype = dtype
        self._loading = threading.Lock()
        self._encoder: Encoder | None = None

    @cached_property
    def files(self) -> EncoderFiles:
        """The encoder's files, checked; the network stays where it is."""
        return self._find()

    @cached_property
    def device(self) -> "torch.device":
        """Where the encoder runs, or would run."""
        from zerogate.precision import best_device  # loads torch

        return best_device()

    @cached_property
    def dtype(self) -> "Dtype":
        """What the encoder's products are, or would be, computed in."""
        if self._dtype is not None:
            return self._dtype
        from zerogate.precision import best_dtype  # loads torch: it alone knows what the processor and its own kernels can do

        return best_dtype(self.device)

    @property
    def is_loaded(self) -> bool:
        return self._encoder is not None

    def loaded(self) -> "Encoder":
        """The encoder itself; loads it the first time. Raises what `find` raises, and EncoderMismatch as `Encoder` does."""
        if self._encoder is None:
            with self._loading:
                if self._encoder is None:
                    from zerogate.encoder import Encoder  # 6 s and 500 MB

                    self._encoder = Encoder(self.files, device=str(self.device), dtype=self.dtype)
        return self._encoder

    def encode(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        on_batch: Callable[[Sequence[int], NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        """As `Encoder.encode`."""
        return self.loaded().encode(texts, role=role, on_batch=on_batch)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `Encoder.count_tokens`."""
        return self.loaded().count_tokens(texts)

    def tokenize(self, texts: Sequence[str], *, role: Role) -> list[list[int]]:
        """As `Encoder.tokenize`."""
        return self.loaded().tokenize(texts, role=role)

    def encode_tokens(self, rows: Sequence[Sequence[int]], *, role: Role) -> NDArray[np.float32]:
        """As `Encoder.encode_tokens`."""
        return self.loaded().encode_tokens(rows, role=role)
