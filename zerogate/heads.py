"""The zero-gated skip head, as a torch module for training.

            +----------------------------------(skip)--+
            |                                          v
    x ------+--> dropout --> W . + b --> * gate ------(+)--> y        repeated for every block

    y = x + g * (W dropout(x) + b)        g = 0 and W random at the start

At step 0 the output is the input, bit for bit: training starts from the encoder's quality, never from noise. With g = 0 only
g gets a gradient in the first step; with W = 0 too, nothing would ever train. The output is raw: whoever compares vectors
normalises them, once, outside the head.
"""

import numpy as np
import torch
from torch import Tensor, nn

from zerogate.folded import Block, FoldedHead


class SkipHead(nn.Module):
    """y = x + g * (W dropout(x) + b), `blocks` times. Maps (n, dim) float32 to (n, dim) float32."""

    def __init__(self, dim: int, *, blocks: int = 1, bias: bool = False, dropout: float = 0.0, seed: int = 0) -> None:
        """Make a head that is the identity.

        dropout: the share of inputs of W that are dropped in training, in [0, 1); the skip path is never dropped.
        seed: of W's random start and of the dropout masks.
        """
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, found {dropout}")
        if blocks < 1:
            raise ValueError(f"a head has at least one block, found {blocks}")
        self.dim = dim
        self.dropout = dropout
        start = torch.Generator().manual_seed(seed)
        # Rows of length about 1: the gated branch of a unit vector has the size of the gate.
        self.weights = nn.ParameterList(torch.randn(dim, dim, generator=start) / dim**0.5 for _ in range(blocks))
        self.gates = nn.ParameterList(torch.zeros(dim) for _ in range(blocks))
        self.biases = nn.ParameterList(torch.zeros(dim) for _ in range(blocks if bias else 0))
        self._masks = torch.Generator().manual_seed(seed + 1)

    def forward(self, x: Tensor) -> Tensor:
        """The raw output y, not normalised."""
        for number, (weight, gate) in enumerate(zip(self.weights, self.gates, strict=True)):
            branch = nn.functional.linear(self._drop(x), weight, self.biases[number] if len(self.biases) else None)  # (n, dim)
            x = x + gate * branch  # (n, dim)
        return x

    def fold(self) -> FoldedHead:
        """The head as one matrix; agrees with `forward` in evaluation mode to about 1e-6."""
        return FoldedHead.fold(self.blocks())

    def blocks(self) -> list[Block]:
        """A copy of the weights as numpy arrays, one `Block` each."""
        biases: list[Tensor | None] = list(self.biases) if len(self.biases) else [None] * len(self.gates)
        return [
            Block(gate=_array(gate), weight=_array(weight), bias=None if bias is None else _array(bias))
            for gate, weight, bias in zip(self.gates, self.weights, biases, strict=True)
        ]

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.dropout == 0.0:
            return x
        # A generator of its own keeps a training repeatable while other threads draw random numbers.
        if self._masks.device != x.device:
            self._masks = torch.Generator(x.device).manual_seed(self._masks.initial_seed())
        # Comparing uniform numbers draws the same mask as `bernoulli_` in a third of the time, which was a third of a step.
        keep = torch.rand(x.shape, generator=self._masks, device=x.device) >= self.dropout
        return x * keep / (1.0 - self.dropout)


def _array(parameter: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return parameter.detach().cpu().numpy().astype(np.float32, copy=True)
