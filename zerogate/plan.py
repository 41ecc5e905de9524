"""How a version's head is made, as plain values: what a search decided, and what `reproduce` replays."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from zerogate.errors import ZerogateError
from zerogate.recipe import Recipe

WayName = Literal["identity", "procrustes", "ridge", "linear", "head", "mean"]


@dataclass(frozen=True)
class Way:
    """One way to make a head of training examples.

    identity: the encoder itself; procrustes, ridge: by a formula (`zerogate.closed_form`), `pull` is ridge's; linear, head:
    fitted by the one recipe; mean: the average of the folded heads that the recipes give.
    query_only: documents keep their base vectors.
    """

    name: WayName
    recipes: tuple[Recipe, ...] = ()
    pull: float = 0.0
    query_only: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "recipes": [recipe.to_dict() for recipe in self.recipes]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A way from a manifest. Raises ZerogateError for an unknown name or recipe."""
        if values.get("name") not in get_args(WayName):
            raise ZerogateError(f"way.name must be one of {', '.join(get_args(WayName))}, found {values.get('name')!r}")
        recipes = tuple(Recipe.from_dict(recipe) for recipe in values["recipes"])
        return cls(values["name"], recipes, float(values["pull"]), bool(values["query_only"]))


@dataclass(frozen=True)
class Trial:
    """One recipe of a search: its place in the list, the share of its epochs that it got, what it earned and the seconds it took.

    score: at the best strength inside the budget; None where the loss diverged.
    """

    number: int
    share: float
    recipe: Recipe
    score: float | None
    forgetting: float | None
    strength: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "recipe": self.recipe.to_dict()}


@dataclass(frozen=True)
class Plan:
    """What to make of all training examples, and why.

    strength: the dial, 0 to 1. curve: the winner's score and forgetting over the strength, from 0, on the validation parts and
    the choosing half of the guard; candidates: the same at their best strength for every way that was weighed.
    planned, finished: how many recipes were to be tried and were tried; fewer where a time limit stopped it. seconds: of it all.
    resumed_trials: how many trials had been fitted before, by a run that was killed. It says nothing of the result, and does not
    stand in `to_dict`.
    """

    way: Way
    strength: float
    metric: str
    curve: list[dict[str, Any]]
    candidates: dict[str, dict[str, Any]]
    trials: list[Trial]
    planned: int
    finished: int
    seconds: float
    resumed_trials: int = 0

    def to_dict(self) -> dict[str, Any]:
        told = {**asdict(self), "way": self.way.to_dict(), "trials": [trial.to_dict() for trial in self.trials]}
        del told["resumed_trials"]
        return told
