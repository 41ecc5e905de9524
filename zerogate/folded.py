"""A head folded into one matrix, and its dial. Needs numpy only, so whoever serves or publishes vectors loads no torch.

y = x + g * (W x + b), stacked   ->   y = A x + c        A = product of (I + diag(g) W), c = 0 without bias
strength s                       ->   A(s) = I + s (A - I), c(s) = s c
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Block:
    """The weights of one block: gate (dim,), weight (dim, dim), bias (dim,) or None."""

    gate: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None


@dataclass(frozen=True)
class FoldedHead:
    """The map y = A x + c. matrix: (dim, dim) float32, A; offset: (dim,) float32, c, or None where it is zero."""

    matrix: NDArray[np.float32]
    offset: NDArray[np.float32] | None

    @classmethod
    def fold(cls, blocks: Sequence[Block]) -> Self:
        """Multiply the blocks out, in float64, so that folding adds no error of its own."""
        dim = len(blocks[0].gate)
        matrix = np.eye(dim)
        offset = np.zeros(dim)
        for block in blocks:
            gated = block.gate.astype(np.float64)[:, None] * block.weight.astype(np.float64)
            matrix = matrix + gated @ matrix
            offset = offset + gated @ offset
            if block.bias is not None:
                offset = offset + block.gate.astype(np.float64) * block.bias
        return cls(matrix.astype(np.float32), offset.astype(np.float32) if offset.any() else None)

    @classmethod
    def identity(cls, dim: int) -> Self:
        """The head of version 0: y = x."""
        return cls(np.eye(dim, dtype=np.float32), None)

    def at_strength(self, strength: float) -> "FoldedHead":
        """The same head with its dial at `strength`: 0 gives the encoder, 1 this head."""
        eye = np.eye(len(self.matrix))
        matrix = eye + strength * (self.matrix.astype(np.float64) - eye)
        offset = None if self.offset is None else (strength * self.offset).astype(np.float32)
        return FoldedHead(matrix.astype(np.float32), offset)

    def raw(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """y for every row of base, (n, dim) float32; rows are not normalised."""
        y = base @ self.matrix.T  # (n, dim)
        return y if self.offset is None else y + self.offset

    def vectors(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """The version's vectors: y with unit rows, (n, dim) float32."""
        return unit_rows(self.raw(base))


def unit_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its Euclidean norm; a zero row stays zero."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    found: NDArray[np.float32] = matrix / np.maximum(norms, np.finfo(np.float32).tiny)
    return found
