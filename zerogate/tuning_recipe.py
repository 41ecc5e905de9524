"""How an encoder is tuned, and what to: the numbers that a person may choose, and the texts. Needs no torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, Self, get_args

from zerogate.errors import TooFewExamples, ZerogateError
from zerogate.recipe import MIN_EXAMPLES

TuningMode = Literal["full", "lora"]
TuningKind = Literal["pairs", "triplets", "scored", "groups"]

# An adapter starts from nothing and is small: it wants larger steps (nl2bash, 2,000 pairs: MRR 0.684 with 1e-3, 0.689 in full).
_LEARNING_RATES: Final[Mapping[TuningMode, float]] = {"full": 5e-5, "lora": 1e-3}
_COLUMNS: Final[Mapping[TuningKind, tuple[str, ...]]] = {
    "pairs": ("anchor", "positive"),
    "triplets": ("anchor", "positive", "negatives"),
    "scored": ("sentence1", "sentence2", "score"),
    "groups": ("text", "label"),
}


@dataclass(frozen=True)
class TuningRecipe:
    """How an encoder is tuned, after its head.

    learning_rate: of the encoder (full) or of its adapters (lora). last_layers: unfreeze only so many layers at the end, and
    no word embeddings; 0 unfreezes all. In mode full the `lora_...` numbers mean nothing.
    """

    mode: TuningMode = field(default="full", metadata={"range": "full or lora"})
    epochs: int = field(default=3, metadata={"range": "1 to 1,000"})
    learning_rate: float = field(default=0.0, metadata={"range": "above 0 and at most 0.1, or 0 for what is usual for the mode"})
    head_learning_rate: float = field(default=2e-4, metadata={"range": "0 to 0.1"})
    batch_size: int = field(default=64, metadata={"range": "4 to 65,536"})
    temperature: float = field(default=0.05, metadata={"range": "above 0 and at most 1"})
    last_layers: int = field(default=0, metadata={"range": "0 (all of them) to 1,000"})
    lora_rank: int = field(default=16, metadata={"range": "1 to 1,024"})
    lora_alpha: float = field(default=32.0, metadata={"range": "above 0 and at most 10,000"})
    lora_dropout: float = field(default=0.0, metadata={"range": "at least 0 and below 1"})
    weight_decay: float = field(default=0.01, metadata={"range": "0 to 1"})
    warmup_ratio: float = field(default=0.1, metadata={"range": "at least 0 and below 1"})
    seed: int = field(default=0, metadata={"range": "0 to 2^31 - 1"})

    def __post_init__(self) -> None:
        allowed = {
            "mode": self.mode in get_args(TuningMode),
            "epochs": 1 <= self.epochs <= 1_000,
            "learning_rate": 0 <= self.learning_rate <= 0.1,
            "head_learning_rate": 0 <= self.head_learning_rate <= 0.1,
            "batch_size": 4 <= self.batch_size <= 65_536,
            "temperature": 0 < self.temperature <= 1,
            "last_layers": 0 <= self.last_layers <= 1_000,
            "lora_rank": 1 <= self.lora_rank <= 1_024,
            "lora_alpha": 0 < self.lora_alpha <= 10_000,
            "lora_dropout": 0 <= self.lora_dropout < 1,
            "weight_decay": 0 <= self.weight_decay <= 1,
            "warmup_ratio": 0 <= self.warmup_ratio < 1,
            "seed": 0 <= self.seed < 2**31,
        }
        for one in fields(self):
            if not allowed[one.name]:
                raise ZerogateError(f"tuning.{one.name} must be {one.metadata['range']}, found {getattr(self, one.name)!r}")
        if not self.learning_rate:  # filled in here, so that what is recorded is what was used
            object.__setattr__(self, "learning_rate", _LEARNING_RATES[self.mode])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A recipe from JSON. Raises ZerogateError for an unknown name, a wrong type or a number out of range."""
        known: dict[str, type] = {name: type(value) for name, value in asdict(cls()).items()}
        for name, value in values.items():
            if name not in known:
                raise ZerogateError(f"tuning has no '{name}'; it may have {', '.join(known)}")
            wanted = (int, float) if known[name] is float else known[name]
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise ZerogateError(f"tuning.{name} must be {known[name].__name__}, found {value!r}")
        checked = cls(**values)  # before any conversion: float() raises for an integer as large as 10^400
        return cls(**{name: known[name](getattr(checked, name)) for name in values})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TuningExamples:
    """The texts that an encoder is tuned to, as columns of equal length.

    pairs     anchor, positive: texts
    triplets  anchor, positive: texts; negatives: a list of at least one text for every row
    scored    sentence1, sentence2: texts; score: numbers from 0 to 1
    groups    text: texts; label: anything hashable

    Raises ZerogateError for other columns, TooFewExamples for too few rows, or fewer than two labels with two texts.
    """

    kind: TuningKind
    columns: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        if self.kind not in _COLUMNS:
            raise ZerogateError(f"an encoder is tuned to {', '.join(_COLUMNS)}; found {self.kind!r}")
        if tuple(self.columns) != _COLUMNS[self.kind]:
            raise ZerogateError(f"columns of {self.kind} are {', '.join(_COLUMNS[self.kind])}; found {', '.join(self.columns)}")
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise ZerogateError(f"columns must be of one length, found {lengths}")
        if len(self) < MIN_EXAMPLES:
            raise TooFewExamples("examples to tune on", found=len(self), needed=MIN_EXAMPLES)
        if self.kind == "triplets":
            for number, negatives in enumerate(self.columns["negatives"], 1):
                if not negatives:
                    raise ZerogateError(f"row {number} of triplets has no negatives")
        if self.kind == "groups":
            shared = sum(count >= 2 for count in Counter(self.columns["label"]).values())
            if shared < 2:
                raise TooFewExamples("labels with at least two texts", found=shared, needed=2)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def digest(self) -> str:
        """SHA-256 of the examples in their order, hexadecimal."""
        canonical = json.dumps([self.kind, {name: list(column) for name, column in self.columns.items()}], default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()
