"""How a head is fitted: the numbers that a person may choose. Needs no torch, so the API can check them."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from zerogate.errors import ZerogateError

MIN_PAIRS = 8


@dataclass(frozen=True)
class Recipe:
    """How a head is fitted. The defaults won on the standard library's docstrings (docs/experiments.md)."""

    temperature: float = field(default=0.02, metadata={"range": "above 0 and at most 1"})
    dropout: float = field(default=0.4, metadata={"range": "at least 0 and below 1"})
    epochs: int = field(default=60, metadata={"range": "1 to 10,000"})
    learning_rate: float = field(default=1e-2, metadata={"range": "above 0 and at most 1"})
    weight_decay: float = field(default=0.01, metadata={"range": "0 to 1"})
    batch_size: int = field(default=512, metadata={"range": "2 to 65,536"})
    blocks: int = field(default=1, metadata={"range": "1 to 8"})
    bias: bool = field(default=False, metadata={"range": "true or false"})
    seed: int = field(default=0, metadata={"range": "0 to 2^31 - 1"})

    def __post_init__(self) -> None:
        allowed = {
            "temperature": 0 < self.temperature <= 1,
            "dropout": 0 <= self.dropout < 1,
            "epochs": 1 <= self.epochs <= 10_000,
            "learning_rate": 0 < self.learning_rate <= 1,
            "weight_decay": 0 <= self.weight_decay <= 1,
            "batch_size": 2 <= self.batch_size <= 65_536,
            "blocks": 1 <= self.blocks <= 8,
            "bias": isinstance(self.bias, bool),
            "seed": 0 <= self.seed < 2**31,
        }
        for one in fields(self):
            if not allowed[one.name]:
                raise ZerogateError(f"recipe.{one.name} must be {one.metadata['range']}, found {getattr(self, one.name)!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """A recipe from JSON. Raises ZerogateError for an unknown name, a wrong type or a number out of range."""
        known: dict[str, type] = {name: type(value) for name, value in asdict(cls()).items()}
        for name, value in values.items():
            if name not in known:
                raise ZerogateError(f"recipe has no '{name}'; it may have {', '.join(known)}")
            wanted = known[name]
            if isinstance(value, bool) != (wanted is bool) or not isinstance(value, int if wanted is int else (int, float, bool)):
                raise ZerogateError(f"recipe.{name} must be {wanted.__name__}, found {value!r}")
        checked = cls(**values)  # before any conversion: float() raises for an integer as large as 10^400
        return cls(**{name: known[name](getattr(checked, name)) for name in values})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
