"""A head as its blocks, for the shapes that do not fold: with a norm or an activation inside no one matrix does what they do.

The numpy twin of the torch module that trained it, with the same dial as a folded head. Needs no torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zerogate.folded import Block, unit_rows
from zerogate.head_shapes import HeadShape

# Added to the variance in a layer norm. The numbers of a unit vector have a variance of 1/dim: PyTorch's 1e-5 would be 0.4 %
# of it for 384 numbers and 4 % for 4,096.
NORM_EPSILON = 1e-8


@dataclass(frozen=True)
class StackedHead:
    """Blocks of kind "skip" or "linear", one after the other, and the dial `strength` (1: as trained)."""

    shape: HeadShape
    blocks: tuple[Block, ...]
    strength: float = 1.0

    @property
    def dim(self) -> int:
        return int(self.blocks[0].weight.shape[1])

    @property
    def out_dim(self) -> int:
        return self.shape.out_dim(self.dim)

    def at_strength(self, strength: float) -> "StackedHead":
        """The same head with its dial at `strength`: 0 gives the encoder, 1 this head."""
        return replace(self, strength=self.strength * strength)

    def raw(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """y for every row of base, (n, dim) to (n, out_dim), float32; rows are not normalised."""
        y = base
        for block in self.blocks:
            branch = self._branch(y, block)  # (n, dim)
            if block.gate is None:
                y = branch
            elif self.shape.merge == "concat":
                y = np.concatenate([y, block.gate * branch], axis=1)  # dim numbers more
            else:
                y = y + block.gate * branch
        if self.strength == 1.0:
            return y
        start = np.pad(base, ((0, 0), (0, self.out_dim - self.dim)))  # E x
        return start + self.strength * (y - start)

    def vectors(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        """The version's vectors: y with unit rows, (n, out_dim) float32."""
        return unit_rows(self.raw(base))

    def _branch(self, x: NDArray[np.float32], block: Block) -> NDArray[np.float32]:
        if self.shape.norm == "pre":
            x = layer_norm(x)
        branch = x @ block.weight.T  # (n, dim)
        if block.bias is not None:
            branch = branch + block.bias
        branch = _ACTIVATIONS[self.shape.activation](branch)
        return layer_norm(branch) if self.shape.norm == "post" else branch


def layer_norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row minus its mean, divided by its standard deviation (Ba et al. 2016), without learned parameters."""
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    found: NDArray[np.float32] = centred / np.sqrt(variance + NORM_EPSILON)
    return found


def _gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x times the normal distribution function of x (Hendrycks and Gimpel 2016), without the tanh approximation."""
    from scipy.special import erf  # type: ignore[import-untyped]  # here, because it takes 0.3 s and one activation needs it

    found: NDArray[np.float32] = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return found


_ACTIVATIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "gelu": _gelu,
    "tanh": np.tanh,
}
