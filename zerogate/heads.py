"""The heads, as torch modules for training: one class a kind, all in the registry `HEADS`.

            +--------------------------------------------------------------(skip)--+
            |                                                                      v
    x ------+--> (norm) --> dropout --> W . + b --> (activation) --> (norm) --> * gate --> add or concat --> y

    y = x + g * f(W dropout(n(x)) + b)        g = 0 and W random at the start; repeated for every block

At step 0 the output is the input, bit for bit: training starts from the encoder's quality, never from noise. With g = 0 only
g gets a gradient in the first step; with W = 0 too, nothing would ever train. The output is raw: whoever compares vectors
normalises them, once, outside the head.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zerogate.errors import CannotFold
from zerogate.folded import Block, FoldedHead, ServedHead
from zerogate.head_shapes import HeadShape, Kind
from zerogate.stacked import NORM_EPSILON, StackedHead

# Far below any gradient that says something, far above the 1e-8 that Adam adds to a gradient's size before it divides by it.
NUDGE = 1e-6


class Head(nn.Module, ABC):
    """Maps base vectors, (n, dim) float32, to raw outputs y, (n, out_dim) float32; in training they may be bfloat16."""

    kind: ClassVar[Kind]

    def __init__(self, dim: int, shape: HeadShape, *, skip_dropout: float = 0.0, seed: int = 0) -> None:
        """Make a fresh head.

        skip_dropout: the share of inputs of W that are dropped in training, in [0, 1); the skip path is never dropped, and
        kinds without a W drop nothing.
        seed: of W's random start and of the dropout masks.
        """
        super().__init__()
        if shape.kind != self.kind:
            raise ValueError(f"{type(self).__name__} is of kind '{self.kind}', found a shape of kind '{shape.kind}'")
        self.dim = dim
        self.shape = shape
        self.out_dim = shape.out_dim(dim)
        self.drop = SkipDropout(skip_dropout, seed=seed + 1)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The raw output y, not normalised."""

    @abstractmethod
    def weights(self) -> FoldedHead | StackedHead:
        """What `dump_head` stores, a copy: the head as one matrix where its shape folds, otherwise as its blocks."""

    def served(self) -> ServedHead:
        """The head without torch; agrees with `forward` in evaluation mode to about 1e-6."""
        return self.weights()

    def fold(self) -> FoldedHead:
        """The head as one matrix. Raises CannotFold for a shape with a norm or an activation."""
        found = self.weights()
        if isinstance(found, FoldedHead):
            return found
        raise CannotFold(f"a head with {_bent(self.shape)} does not fold into one matrix")


class SkipHead(Head):
    """y = x + g * f(W n(x) + b), or [x, g * f(W n(x) + b)] for merge "concat", `blocks` times."""

    kind = "skip"

    def __init__(self, dim: int, shape: HeadShape, *, skip_dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__(dim, shape, skip_dropout=skip_dropout, seed=seed)
        start = torch.Generator().manual_seed(seed)
        inputs = [dim * (number + 1) if shape.merge == "concat" else dim for number in range(shape.blocks)]
        self.layers = nn.ModuleList(Layer(count, dim, shape, self.drop, start) for count in inputs)
        self.gates = nn.ParameterList(torch.zeros(dim) for _ in range(shape.blocks))

    def forward(self, x: Tensor) -> Tensor:
        for layer, gate in zip(self.layers, self.gates, strict=True):
            assert isinstance(layer, Layer)
            if self.shape.folds and self.shape.merge == "add":
                x = layer.added(x, gate)
                continue
            branch = layer(x)  # (n, dim)
            x = x + gate * branch if self.shape.merge == "add" else _append(x, gate, branch)
        return x

    def weights(self) -> FoldedHead | StackedHead:
        return _without_torch(self.shape, self.blocks())

    def blocks(self) -> list[Block]:
        """A copy of the weights as numpy arrays, one `Block` each."""
        return [_block(layer, gate) for layer, gate in zip(self.layers, self.gates, strict=True)]


class LinearHead(Head):
    """y = f(W n(x) + b), `blocks` times: plain layers without a skip. A baseline: it starts as a random map."""

    kind = "linear"

    def __init__(self, dim: int, shape: HeadShape, *, skip_dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__(dim, shape, skip_dropout=skip_dropout, seed=seed)
        start = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(Layer(dim, dim, shape, self.drop, start) for _ in range(shape.blocks))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)  # (n, dim)
        return x

    def weights(self) -> FoldedHead | StackedHead:
        return _without_torch(self.shape, self.blocks())

    def blocks(self) -> list[Block]:
        """A copy of the weights as numpy arrays, one `Block` each, without gates."""
        return [_block(layer, None) for layer in self.layers]


class GatedHead(Head):
    """y = (1 + g) * x: every number of the encoder louder or softer. A baseline with dim parameters."""

    kind = "gated"

    def __init__(self, dim: int, shape: HeadShape, *, skip_dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__(dim, shape, skip_dropout=skip_dropout, seed=seed)
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.gate) * x

    def weights(self) -> FoldedHead:
        return FoldedHead(np.diag(1 + _array(self.gate)), None)


class IdentityHead(Head):
    """y = x: the encoder as it is, without a parameter. What every other head is compared with."""

    kind = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x

    def weights(self) -> FoldedHead:
        return FoldedHead.identity(self.dim)


HEADS: dict[Kind, type[Head]] = {head.kind: head for head in (SkipHead, GatedHead, LinearHead, IdentityHead)}


def make_head(dim: int, shape: HeadShape, *, skip_dropout: float = 0.0, seed: int = 0) -> Head:
    """A fresh head of the shape's kind for an encoder of dimension `dim`."""
    return HEADS[shape.kind](dim, shape, skip_dropout=skip_dropout, seed=seed)


class Layer(nn.Module):
    """The branch of a block without its gate: f(W dropout(n(x)) + b), (n, inputs) to (n, outputs)."""

    def __init__(self, inputs: int, outputs: int, shape: HeadShape, drop: "SkipDropout", start: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.drop = drop
        # Rows of length about 1: the gated branch of a unit vector has the size of the gate.
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=start) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs)) if shape.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.shape.norm == "pre":
            x = _layer_norm(x)
        weight = (self.weight * self.drop.gain).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = nn.functional.linear(self.drop.masked(x), weight, bias)  # (n, outputs)
        y = _ACTIVATIONS[self.shape.activation](y)
        return _layer_norm(y) if self.shape.norm == "post" else y

    def added(self, x: Tensor, gate: Tensor) -> Tensor:
        """x + gate * (W dropout(x) + b), of a layer without norm and activation: one product, nothing else as large as x.

        The gate, and what dropout scales by, go into the matrix: (dim, dim) numbers instead of (n, dim).
        """
        weight = (self.drop.gain * gate)[:, None] * self.weight  # (dim, dim)
        rows = x.reshape(-1, x.shape[-1])
        y = torch.addmm(rows, self.drop.masked(rows), weight.to(x.dtype).T)
        return (y if self.bias is None else y + (gate * self.bias).to(y.dtype)).view(x.shape)


class SkipDropout(nn.Module):
    """Dropout with a generator of its own, which keeps a training repeatable while other threads draw random numbers.

    A number is dropped where a random byte says so: the share is rounded to the next 256th, and is at most 255 of them.
    """

    def __init__(self, share: float, *, seed: int) -> None:
        super().__init__()
        if not 0.0 <= share < 1.0:
            raise ValueError(f"skip_dropout must be at least 0 and below 1, found {share}")
        self.share = min(round(256 * share), 255) / 256
        self._masks = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """x with the share of its numbers dropped and the others scaled up, so that the mean stays; x itself in evaluation."""
        return self.masked(x) * self.gain if self._drops else x

    def masked(self, x: Tensor) -> Tensor:
        """x with the share of its numbers dropped, the others as they are."""
        if not self._drops:
            return x
        masked: Tensor = _Masked.apply(x, self._kept(x))  # type: ignore[no-untyped-call]
        return masked

    @property
    def gain(self) -> float:
        """What makes up for the dropped numbers: 1 / (1 - share), in evaluation mode 1."""
        return 1.0 / (1.0 - self.share) if self._drops else 1.0

    @property
    def _drops(self) -> bool:
        return self.training and self.share > 0.0

    def _kept(self, x: Tensor) -> Tensor:
        """-1 (all bits) where a number of x is kept, 0 where it is dropped; integers as wide as x's numbers."""
        # Eight bytes a draw, and arithmetic instead of a comparison: a uniform number for every number took half of a step.
        drawn = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        drawn.random_(-(2**63), None, generator=self.masks(x.device))
        bytes_ = drawn.view(torch.uint8)[: x.numel()].view(x.shape)
        kept = bytes_.to(_INTEGERS[x.itemsize]).neg_().add_(round(256 * self.share) - 1)  # below 0 where byte >= 256 * share
        return kept.bitwise_right_shift_(8 * x.itemsize - 1)

    def masks(self, device: torch.device) -> torch.Generator:
        """The generator of the masks of inputs on this device."""
        if self._masks.device != device:
            self._masks = torch.Generator(device).manual_seed(self._masks.initial_seed())
        return self._masks


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Masked(torch.autograd.Function):
    """x where `kept` is -1, 0 where it is 0: a bitwise and, several times as fast as a selection by random booleans."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return (x.view(kept.dtype) & kept).view(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (above.contiguous().view(kept.dtype) & kept).view(above.dtype), None


class _Appended(torch.autograd.Function):
    """gate * branch for merge "concat", with a gradient that lets a gate leave exactly 0.

    In a cosine of two appended parts every gate stands squared: at 0 its gradient is 0, and without help nothing would ever
    train. There the gradient is `-NUDGE` instead: one step of the optimizer opens the gate a little, and the true gradient
    takes over. (The sign is free: a gate and its row of W may both change theirs.)
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, branch: Tensor) -> Tensor:
        ctx.save_for_backward(gate, branch)
        return gate * branch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, Tensor]:
        gate, branch = ctx.saved_tensors
        true = (above * branch).reshape(-1, len(gate)).sum(dim=0)
        return torch.where((gate == 0) & (true == 0), -NUDGE, true), above * gate


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh,
}


def _append(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    appended: Tensor = _Appended.apply(gate, branch)  # type: ignore[no-untyped-call]
    return torch.cat([x, appended], dim=-1)  # as many numbers more as the branch has


def _layer_norm(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON)


def _bent(shape: HeadShape) -> str:
    """What keeps a head from being one matrix."""
    norm = f"norm '{shape.norm}' (every vector is divided by a number of its own)"
    activation = f"activation '{shape.activation}' (every number is bent on its own)"
    return " and ".join([norm] * (shape.norm != "none") + [activation] * (shape.activation != "none"))


def _without_torch(shape: HeadShape, blocks: list[Block]) -> FoldedHead | StackedHead:
    return FoldedHead.fold(blocks, merge=shape.merge) if shape.folds else StackedHead(shape, tuple(blocks))


def _block(layer: nn.Module, gate: Tensor | None) -> Block:
    assert isinstance(layer, Layer)
    return Block(None if gate is None else _array(gate), _array(layer.weight), None if layer.bias is None else _array(layer.bias))


def _array(parameter: Tensor) -> NDArray[np.float32]:
    return parameter.detach().cpu().numpy().astype(np.float32, copy=True)
