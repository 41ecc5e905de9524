"""What depth does to fresh stacks of blocks, before any training: the size of gradients, and how alike they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zerogate.head_shapes import Activation, HeadShape
from zerogate.heads import Layer, SkipDropout
from zerogate.losses.contrastive import contrastive

_TEMPERATURE: Final = 0.02


@dataclass(frozen=True)
class Wiring:
    """How blocks are connected, and how they start.

    kind: "plain" f(W x), "residual" x + g * f(W x), or "concat" [x, g * f(W x)]. gate: all numbers of g. gain: the standard
    deviation of W's numbers, times the square root of W's inputs; 1 gives rows of length about 1.
    """

    kind: Literal["plain", "residual", "concat"]
    gate: float = 1.0
    gain: float = 1.0


WIRINGS: Final[dict[str, Wiring]] = {
    "plain, PyTorch's start": Wiring("plain", gain=3**-0.5),  # nn.Linear: uniform in +-1/sqrt(inputs)
    "plain, He's start": Wiring("plain", gain=2**0.5),
    "residual, gate 1": Wiring("residual"),
    "residual, gate 0.1": Wiring("residual", gate=0.1),
    "residual, gate 0": Wiring("residual", gate=0.0),
    "concat, gate 1": Wiring("concat"),
}


def short_name(name: str) -> str:
    """The wiring's name where the gain of W has no effect, "" for a wiring that shows nothing new there.

    Outputs are normalised there, or only directions count: the plain stacks differ in gain alone, and one stands for both.
    """
    return {"plain, PyTorch's start": "", "plain, He's start": "plain"}.get(name, name)


class Stack(nn.Module):
    """Any number of the library's layers, wired in one of three ways. Only the first block can be trained: it is looked at."""

    def __init__(self, dim: int, depth: int, wiring: Wiring, activation: Activation, *, seed: int) -> None:
        super().__init__()
        start = torch.Generator().manual_seed(seed)
        widths = [dim * (number + 1) if wiring.kind == "concat" else dim for number in range(depth)]
        shape = HeadShape(activation=activation)
        self.wiring = wiring
        self.layers = nn.ModuleList(Layer(width, dim, shape, SkipDropout(0.0, seed=0), start) for width in widths)
        self.gates = nn.ParameterList(torch.full((dim,), wiring.gate) for _ in widths)
        with torch.no_grad():
            for weight in self.layers.parameters():
                weight.mul_(wiring.gain)
        self.requires_grad_(requires_grad=False)
        for parameter in self.first_block():
            parameter.requires_grad = True

    def forward(self, x: Tensor) -> Tensor:
        for layer, gate in zip(self.layers, self.gates, strict=True):
            branch = layer(x)  # (n, dim)
            match self.wiring.kind:
                case "plain":
                    x = branch
                case "residual":
                    x = x + gate * branch
                case "concat":
                    x = torch.cat((x, gate * branch), dim=1)  # dim numbers more
        return x

    def first_block(self) -> list[Tensor]:
        """The parameters of the first block: W, and g where there is one."""
        return [*self.layers[0].parameters(), *([] if self.wiring.kind == "plain" else [self.gates[0]])]


def gradients(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    *,
    depths: Sequence[int],
    activations: Sequence[Activation],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """The norm of the gradient of all parameters of the first block, by activation, wiring and depth; the mean over the seeds.

    queries, documents: (n, dim), row i of the one belongs to row i of the other.
    raw: of the outputs as they are, seen through one random unit direction for each text (`raw_gradient`).
    loss: of the contrastive loss over the normalised outputs (`loss_gradient`).
    cosine: the mean cosine of the outputs of different texts; 1 means that all texts have become one.
    """
    x, y = torch.from_numpy(queries), torch.from_numpy(documents)

    def measured(stack: Stack, seed: int) -> list[float]:
        return [raw_gradient(stack, x, seed=seed), loss_gradient(stack, x, y), mean_cosine(stack, x)]

    found: dict[str, Any] = {"depths": list(depths), "raw": {}, "loss": {}, "cosine": {}}
    for activation in activations:
        for name, wiring in WIRINGS.items():
            rows = [
                np.mean([measured(Stack(x.shape[1], depth, wiring, activation, seed=seed), seed) for seed in seeds], axis=0)
                for depth in depths
            ]
            for what, column in zip(("raw", "loss", "cosine"), np.asarray(rows).T.tolist(), strict=True):
                found[what].setdefault(activation, {})[name] = column
    return found


def raw_gradient(stack: Stack, x: Tensor, *, seed: int) -> float:
    """|d/d(first block) of the mean over the texts of u . y|, u of length about 1 and another one for each text."""
    y = stack(x)  # (n, out_dim)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(10_000 + seed)) / y.shape[1] ** 0.5
    return _norm(torch.autograd.grad((y * probe).sum(dim=1).mean(), stack.first_block()))


def loss_gradient(stack: Stack, x: Tensor, y: Tensor) -> float:
    """|d/d(first block) of the contrastive loss| of normalised outputs; rows of x and y belong together."""
    first, second = (nn.functional.normalize(stack(side), dim=1) for side in (x, y))
    return _norm(torch.autograd.grad(contrastive(first, second, temperature=_TEMPERATURE), stack.first_block()))


def mean_cosine(stack: Stack, x: Tensor) -> float:
    """The mean cosine of the outputs of two different texts."""
    with torch.no_grad():
        y = nn.functional.normalize(stack(x), dim=1)
    count = len(y)
    return float((y.sum(dim=0).square().sum() - y.square().sum()) / (count * (count - 1)))


def coherence(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    *,
    depths: Sequence[int],
    activation: Activation,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """How alike the gradients of two texts are that belong together, by wiring and depth; the mean over pairs and seeds.

    The gradient is that of one random direction of the output with respect to the base vector. After Balduzzi et al. 2017.
    """
    pair = torch.from_numpy(queries), torch.from_numpy(documents)
    chosen = {name: wiring for name, wiring in WIRINGS.items() if short_name(name)}
    cosines = {
        name: [
            float(np.mean([input_coherence(Stack(pair[0].shape[1], depth, wiring, activation, seed=s), pair) for s in seeds]))
            for depth in depths
        ]
        for name, wiring in chosen.items()
    }
    inputs = float((pair[0] * pair[1]).sum(dim=1).mean())
    return {"depths": list(depths), "activation": activation, "inputs": inputs, "cosine": cosines}


def input_coherence(stack: Stack, pair: tuple[Tensor, Tensor]) -> float:
    """The mean cosine of d(u . y)/dx at the two texts of each pair, for one random u."""
    first, second = (_input_gradient(stack, x) for x in pair)
    return float(nn.functional.cosine_similarity(first, second, dim=1).mean())


def _input_gradient(stack: Stack, x: Tensor) -> Tensor:
    at = x.clone().requires_grad_()
    y = stack(at)  # (n, out_dim)
    probe = torch.randn(y.shape[1], generator=torch.Generator().manual_seed(10_000))
    return torch.autograd.grad((y @ probe).sum(), at)[0]  # (n, dim)


def _norm(parts: Sequence[Tensor]) -> float:
    # In float64: the squares of the smallest ones are no float32 any more.
    return float(torch.cat([part.double().flatten() for part in parts]).norm())
