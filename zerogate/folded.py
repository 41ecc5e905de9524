"""A head folded into one matrix, and its dial. Needs numpy only, so whoever serves or publishes vectors loads no torch.

y = x + g * (W x + b), stacked   ->   y = A x + c        A = product of (I + diag(g) W), c = 0 without bias
strength s                       ->   A(s) = E + s (A - E), c(s) = s c

E = eye(out_dim, dim) is the identity, with rows of zeros below it where blocks append their outputs (merge "concat").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from zerogate.head_shapes import Merge

# Multiplications that OpenBLAS does not yet share among threads, in parts of so many rows. A search scores some hundred rows.
_ONE_THREAD = 4 * 65_536
_ONE_THREAD_VECTOR = 460_800  # the same where one of the factors is a vector
_ROWS = 16
_REQUEST_ROWS = 512
_TINY = np.finfo(np.float32).tiny


class ServedHead(Protocol):
    """What serving, publishing and evaluation need of a head. Base vectors in, the version's vectors out."""

    @property
    def dim(self) -> int:
        """The dimension of the base vectors."""

    @property
    def out_dim(self) -> int:
        """The dimension of the version's vectors."""

    def raw(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """y for every row of base: (n, dim) to (n, out_dim), float32; rows are not normalised."""

    def vectors(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """The version's vectors: y with unit rows, (n, out_dim) float32."""

    def at_strength(self, strength: float) -> "ServedHead":
        """y(s) = E x + s (y(1) - E x): 0 gives the encoder (with zeros appended for merge "concat"), 1 this head."""


@dataclass(frozen=True)
class Block:
    """The weights of one block, float32: gate (out,) or None, weight (out, in), bias (out,) or None.

    A block without a gate has no skip either: its output takes the place of its input.
    """

    gate: NDArray[np.float32] | None
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None


@dataclass(frozen=True)
class FoldedHead:
    """The map y = A x + c. matrix: (out_dim, dim) float32, A; offset: (out_dim,) float32, c, or None where it is zero."""

    matrix: NDArray[np.float32]
    offset: NDArray[np.float32] | None

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def out_dim(self) -> int:
        return int(self.matrix.shape[0])

    @classmethod
    def fold(cls, blocks: Sequence[Block], *, merge: Merge = "add") -> Self:
        """Multiply the blocks out, in float64, so that folding adds no error of its own."""
        matrix = np.eye(blocks[0].weight.shape[1])
        offset = np.zeros(len(matrix))
        for block in blocks:
            gate = np.ones(len(block.weight)) if block.gate is None else block.gate.astype(np.float64)
            gated = gate[:, None] * block.weight.astype(np.float64)
            branch, shift = gated @ matrix, gated @ offset
            if block.gate is None:
                matrix, offset = branch, shift
            elif merge == "concat":
                matrix, offset = np.vstack([matrix, branch]), np.concatenate([offset, shift])
            else:
                matrix, offset = matrix + branch, offset + shift
            if block.bias is not None:
                offset[-len(gate) :] += gate * block.bias  # the last ones: with merge "concat" those that this block appended
        return cls(matrix.astype(np.float32), offset.astype(np.float32) if offset.any() else None)

    @classmethod
    def identity(cls, dim: int) -> Self:
        """The head of version 0: y = x."""
        return cls(np.eye(dim, dtype=np.float32), None)

    @classmethod
    def mean(cls, heads: Sequence["FoldedHead"]) -> Self:
        """The mean of heads of one encoder: computed in float64, rounded once.

        Raises ValueError for no heads, for different dimensions, and for heads that append numbers (merge "concat"): what
        they append stands in another order in each of them.
        """
        shapes = {head.matrix.shape for head in heads}
        if len(shapes) != 1:
            raise ValueError(f"the mean takes heads of one dimension, found {sorted(shapes) or 'none'}")
        if heads[0].out_dim != heads[0].dim:
            raise ValueError(f"heads that append numbers have no mean: dimension {heads[0].dim} becomes {heads[0].out_dim}")
        matrix = sum((head.matrix.astype(np.float64) for head in heads), start=np.zeros(heads[0].matrix.shape)) / len(heads)
        offsets = [head.offset.astype(np.float64) for head in heads if head.offset is not None]
        offset = sum(offsets, start=np.zeros(len(matrix))) / len(heads)
        return cls(matrix.astype(np.float32), offset.astype(np.float32) if offset.any() else None)

    def at_strength(self, strength: float) -> "FoldedHead":
        """The same head with its dial at `strength`: 0 gives the encoder, 1 this head."""
        eye = np.eye(self.out_dim, self.dim)
        matrix = eye + strength * (self.matrix.astype(np.float64) - eye)
        offset = None if self.offset is None else (strength * self.offset).astype(np.float32)
        return FoldedHead(matrix.astype(np.float32), offset)

    def raw(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """y for every row of base, (n, dim) to (n, out_dim), float32; rows are not normalised."""
        y = _product(base, self.matrix)  # (n, out_dim)
        return y if self.offset is None else y + self.offset

    def vectors(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """The version's vectors: y with unit rows, (n, out_dim) float32."""
        return unit_rows(self.raw(base))


def _product(base: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """base @ matrix.T, (n, out_dim); for a request's rows in parts that BLAS keeps in one thread.

    Shared among threads the product of 32 rows takes 16 ms instead of 0.2 where a core has other work: they wait for each other.
    """
    if len(base) > _REQUEST_ROWS:
        return base @ matrix.T
    if len(base) == 1 and matrix.size <= _ONE_THREAD_VECTOR:  # of many requests, a head each: half of the cost would be Python's
        one: NDArray[np.float32] = matrix @ base[0]
        return one[None, :]
    found = np.empty((len(base), len(matrix)), dtype=np.float32)
    for start in range(0, len(base), _ROWS):
        rows = base[start : start + _ROWS]
        part = found[start : start + _ROWS]
        width = max(1, _ONE_THREAD // rows.size)
        for column in range(0, len(matrix), width):
            np.matmul(rows, matrix[column : column + width].T, out=part[:, column : column + width])
    return found


def unit_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its Euclidean norm; a zero row stays zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix))
    found: NDArray[np.float32] = matrix / np.maximum(norms, _TINY)[:, None]
    return found
