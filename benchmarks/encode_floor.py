"""The floor of encoding: the encoder's arithmetic, at the rate at which this machine multiplies matrices of its shapes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear


@dataclass(frozen=True)
class Shape:
    """A transformer: the numbers of its layers, of a token's vector, and inside of its feed-forward part."""

    layers: int
    width: int
    inner: int


def flops(shape: Shape, lengths: Sequence[int]) -> int:
    """Of rows of so many tokens, one multiplication and one addition being two: products and attention, and nothing besides.

    A token costs its query, key, value and output (4 width²) and two products with the inner width; attention takes each token
    with each one of its row twice, for the weights and for the sum.
    """
    per_token = 2 * (4 * shape.width**2 + 2 * shape.width * shape.inner)
    return shape.layers * (per_token * sum(lengths) + 4 * shape.width * sum(length**2 for length in lengths))


class Products:
    """The products of one pass with random weights: other ones in every layer, as the encoder has, so that no cache keeps all."""

    def __init__(self, shape: Shape, tokens: int, *, dtype: torch.dtype, device: torch.device) -> None:
        width, inner = shape.width, shape.inner
        sizes = [(3 * width, width), (width, width), (inner, width), (width, inner)]
        self._layers = [[torch.randn(size, dtype=dtype, device=device) for size in sizes] for _ in range(shape.layers)]
        self._inputs = {size: torch.randn(tokens, size, dtype=dtype, device=device) for size in (width, inner)}
        self.flops = shape.layers * sum(2 * tokens * rows * columns for rows, columns in sizes)

    def rate(self, passes: int) -> float:
        """Operations a second of the fastest of so many passes."""
        return self.flops / min(self._seconds() for _ in range(passes))

    @torch.inference_mode()
    def _seconds(self) -> float:
        waiting = self._inputs[min(self._inputs)].device.type == "cuda"
        started = time.perf_counter()
        for layer in self._layers:
            for weight in layer:
                linear(self._inputs[weight.shape[1]], weight)
        if waiting:
            torch.cuda.synchronize()
        return time.perf_counter() - started
