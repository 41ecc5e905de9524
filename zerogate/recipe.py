"""How a head is fitted: the numbers that a person may choose. Needs no torch, so the API can check them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self

from zerogate.errors import ZerogateError
from zerogate.examples import Kind
from zerogate.head_shapes import HeadShape

MIN_EXAMPLES: Final = 8

LOSSES: Final[Mapping[str, tuple[Kind, ...]]] = {
    "contrastive": ("pairs", "triplets", "queries"),
    "multi_positive": ("pairs", "triplets", "queries"),
    "triplet": ("pairs", "triplets", "queries"),
    "online_contrastive": ("pairs", "triplets", "queries"),
    "cosent": ("scored",),
    "cosine": ("scored",),
    "prototypical": ("groups",),
    "supervised_contrastive": ("groups",),
    "arcface": ("groups",),
    "cosface": ("groups",),
    "circle": ("groups",),
    "semi_hard_triplet": ("groups",),
    "batch_hard_triplet": ("groups",),
}
"""The losses by name, and the kinds of datasets that each takes. The first that takes a kind is its default."""

# 0 leaves the choice to the loss; what is usual for each (their papers, and docs/experiments.md).
_TEMPERATURES: Final = {
    "cosent": 0.05,
    "prototypical": 0.03,
    "supervised_contrastive": 0.05,
    "arcface": 0.05,
    "cosface": 0.05,
    "circle": 1 / 64,
}
_TEMPERATURE: Final = 0.02
_MARGINS: Final = {"arcface": 0.2, "cosface": 0.2, "circle": 0.25, "online_contrastive": 0.5}
_MARGIN: Final = 0.2


@dataclass(frozen=True)
class Recipe:
    """How a head is fitted. The defaults are those that fit most datasets (docs/experiments.md)."""

    loss: str = field(default="auto", metadata={"range": f"auto, {', '.join(LOSSES)}"})
    temperature: float = field(default=0.0, metadata={"range": "above 0 and at most 1, or 0 for what is usual for the loss"})
    margin: float = field(default=0.0, metadata={"range": "above 0 and at most 1.5, or 0 for what is usual for the loss"})
    hard_negatives: int = field(default=0, metadata={"range": "0 to 16"})
    stay_near_base: float = field(default=0.0, metadata={"range": "0 to 1,000"})
    skip_dropout: float = field(default=0.4, metadata={"range": "at least 0 and below 1"})
    epochs: int = field(default=60, metadata={"range": "1 to 10,000"})
    stop_after: int = field(default=0, metadata={"range": "0 (never) to the number of epochs"})
    learning_rate: float = field(default=1e-2, metadata={"range": "above 0 and at most 1"})
    weight_decay: float = field(default=0.01, metadata={"range": "0 to 1"})
    batch_size: int = field(default=512, metadata={"range": "2 to 65,536"})
    head: str = field(default="skip", metadata={"range": "skip, gated, linear or identity"})
    blocks: int = field(default=1, metadata={"range": "1 to 8"})
    merge: str = field(default="add", metadata={"range": "add or concat"})
    norm: str = field(default="none", metadata={"range": "none, pre or post"})
    activation: str = field(default="none", metadata={"range": "none, relu, gelu or tanh"})
    bias: bool = field(default=False, metadata={"range": "true or false"})
    query_only: bool = field(default=False, metadata={"range": "true or false"})
    seed: int = field(default=0, metadata={"range": "0 to 2^31 - 1"})

    def __post_init__(self) -> None:
        allowed = {
            "loss": self.loss == "auto" or self.loss in LOSSES,
            "temperature": 0 <= self.temperature <= 1,
            "margin": 0 <= self.margin <= 1.5,
            "hard_negatives": 0 <= self.hard_negatives <= 16,
            "stay_near_base": 0 <= self.stay_near_base <= 1_000,
            "skip_dropout": 0 <= self.skip_dropout < 1,
            "epochs": 1 <= self.epochs <= 10_000,
            "stop_after": 0 <= self.stop_after <= self.epochs,
            "learning_rate": 0 < self.learning_rate <= 1,
            "weight_decay": 0 <= self.weight_decay <= 1,
            "batch_size": 2 <= self.batch_size <= 65_536,
            "seed": 0 <= self.seed < 2**31,
        }
        for one in fields(self):
            if not allowed.get(one.name, True):
                raise ZerogateError(f"recipe.{one.name} must be {one.metadata['range']}, found {getattr(self, one.name)!r}")
        shape = self.shape  # checks the names of the head's parts, and which of them go together
        if self.query_only and shape.merge == "concat":
            raise ZerogateError("recipe.query_only needs merge 'add', found 'concat': the documents' vectors keep their length")

    @property
    def shape(self) -> HeadShape:
        """What the head looks like."""
        return HeadShape.from_dict(
            {
                "kind": self.head,
                "blocks": self.blocks,
                "merge": self.merge,
                "norm": self.norm,
                "activation": self.activation,
                "bias": self.bias,
            }
        )

    def for_kind(self, kind: Kind) -> Self:
        """The recipe with everything that was left open filled in for a dataset of this kind.

        Raises ZerogateError when the loss does not take the kind, or when a choice means nothing for it.
        """
        allowed = [name for name, kinds in LOSSES.items() if kind in kinds]
        if self.loss != "auto" and self.loss not in allowed:
            names = " or ".join(allowed)
            raise ZerogateError(f"recipe.loss must be auto, {names} for a dataset of kind {kind}, found {self.loss!r}")
        if kind in ("scored", "groups"):
            for name in ("query_only", "hard_negatives"):
                if getattr(self, name):
                    raise ZerogateError(f"recipe.{name} means nothing for kind {kind}, which has no documents")
        loss = allowed[0] if self.loss == "auto" else self.loss
        if loss == "multi_positive" and self.hard_negatives:
            raise ZerogateError("recipe.hard_negatives means nothing for the loss multi_positive: it takes none but the batch's")
        filled = {
            "loss": loss,
            "temperature": self.temperature or _TEMPERATURES.get(loss, _TEMPERATURE),
            "margin": self.margin or _MARGINS.get(loss, _MARGIN),
        }
        return type(self)(**{**asdict(self), **filled})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A recipe from JSON. Raises ZerogateError for an unknown name, a wrong type or a number out of range."""
        known: dict[str, type] = {name: type(value) for name, value in asdict(cls()).items()}
        for name, value in values.items():
            if name not in known:
                raise ZerogateError(f"recipe has no '{name}'; it may have {', '.join(known)}")
            if not _is_a(value, known[name]):
                raise ZerogateError(f"recipe.{name} must be {known[name].__name__}, found {value!r}")
        checked = cls(**values)  # before any conversion: float() raises for an integer as large as 10^400
        return cls(**{name: known[name](getattr(checked, name)) for name in values})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _is_a(value: object, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)
