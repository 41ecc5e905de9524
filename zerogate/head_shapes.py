"""What a head is made of, as six plain values. Needs neither torch nor numpy, so the API can check a shape.

kind       y of one block (g: gate, n: norm, f: activation)          at the start
skip       x + g * f(W n(x) + b)        merge "add"                  x, bit for bit
           [x, g * f(W n(x) + b)]       merge "concat"               [x, 0]: the cosines of x
gated      (1 + g) * x                                               x, bit for bit
linear     f(W n(x) + b)                a plain layer, no skip       a random map
identity   x                                                         x, always
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from zerogate.errors import ZerogateError

Kind = Literal["skip", "gated", "linear", "identity"]
Merge = Literal["add", "concat"]
Norm = Literal["none", "pre", "post"]
Activation = Literal["none", "relu", "gelu", "tanh"]

MAX_BLOCKS = 8

_NAMES: dict[str, tuple[str, ...]] = {
    "kind": get_args(Kind),
    "merge": get_args(Merge),
    "norm": get_args(Norm),
    "activation": get_args(Activation),
}
# The fields that mean something for a kind; the others must keep their defaults.
_MEANINGFUL: dict[str, frozenset[str]] = {
    "skip": frozenset({"blocks", "merge", "norm", "activation", "bias"}),
    "linear": frozenset({"blocks", "norm", "activation", "bias"}),
    "gated": frozenset(),
    "identity": frozenset(),
}


@dataclass(frozen=True)
class HeadShape:
    """The shape of a head; a value outside its range, or one that means nothing for the kind, raises ZerogateError.

    merge: "add" (residual, He et al. 2016) or "concat" (DenseNet, Huang et al. 2017): every block appends as many numbers as
    the encoder gives, and its W reads all that is there so far.
    norm: layer norm without parameters, of the branch's input ("pre") or of its output before the gate ("post"). Neither
    touches the skip path, so the start is the identity all the same (He et al. 2016, "Identity mappings"; Liu et al. 2022,
    Swin v2, res-post-norm).
    activation: of W n(x) + b, before a post-norm; gelu is the exact one.
    """

    kind: Kind = "skip"
    blocks: int = 1
    merge: Merge = "add"
    norm: Norm = "none"
    activation: Activation = "none"
    bias: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _NAMES.items():
            if getattr(self, name) not in allowed:
                raise ZerogateError(f"head.{name} must be one of {', '.join(allowed)}; found {getattr(self, name)!r}")
        if not isinstance(self.blocks, int) or isinstance(self.blocks, bool) or not 1 <= self.blocks <= MAX_BLOCKS:
            raise ZerogateError(f"head.blocks must be a whole number from 1 to {MAX_BLOCKS}, found {self.blocks!r}")
        if not isinstance(self.bias, bool):
            raise ZerogateError(f"head.bias must be true or false, found {self.bias!r}")
        for one in fields(self)[1:]:
            found = getattr(self, one.name)
            if one.name not in _MEANINGFUL[self.kind] and found != one.default:
                raise ZerogateError(f"head.{one.name} must be {one.default!r} for kind '{self.kind}', found {found!r}")

    @property
    def folds(self) -> bool:
        """Whether the head is y = A x + c for one matrix A, whatever its weights."""
        return self.norm == "none" and self.activation == "none"

    @property
    def is_identity_at_start(self) -> bool:
        """Whether a fresh head leaves the encoder's cosines as they are, to the last bit."""
        return self.kind != "linear"

    @property
    def can_average(self) -> bool:
        """Whether several such heads of one encoder average into one."""
        return self.folds and self.merge == "add"

    def out_dim(self, dim: int) -> int:
        """How many numbers y has for an encoder of dimension `dim`."""
        return dim * (1 + self.blocks) if self.merge == "concat" else dim

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A shape from JSON; what is not named takes its default. Raises ZerogateError for what is no such shape."""
        if not isinstance(values, Mapping):
            raise ZerogateError(f"head must be an object with {', '.join(one.name for one in fields(cls))}; found {values!r}")
        known = [one.name for one in fields(cls)]
        for name in values:
            if name not in known:
                raise ZerogateError(f"head has no '{name}'; it may have {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
