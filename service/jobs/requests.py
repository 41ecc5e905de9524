"""What a training job was asked for, checked when it is submitted, as plain JSON values in the job's row."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from sqlalchemy.orm import Session

from service.datasets.queries import get_dataset
from service.errors import InvalidRequest
from service.tables import Dataset, DatasetKind
from zerogate.errors import ZerogateError
from zerogate.recipe import Recipe
from zerogate.tasks import judges
from zerogate.tuning_recipe import TuningRecipe

Mode = Literal["head", "lora", "full"]

DEFAULT_BUDGET: Final = 0.005
TRAINABLE: Final = tuple(kind for kind in get_args(DatasetKind) if kind != "documents")


@dataclass(frozen=True)
class TrainingRequest:
    """The part of a job's `request` that says how to train.

    evaluation_id, guard_id: of datasets; without, the dataset's own held-out rows and the built-in guard.
    recipe: all numbers of a recipe, or "auto". tuning: all numbers of the encoder's tuning; None for mode head.
    """

    evaluation_id: str | None = None
    guard_id: str | None = None
    forgetting_budget: float = DEFAULT_BUDGET
    mode: Mode = "head"
    recipe: Literal["auto"] | dict[str, Any] = "auto"
    tuning: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, request: dict[str, Any]) -> "TrainingRequest":
        """From a job's row; what a row of an older version lacks takes its default."""
        return cls(**{name: request[name] for name in asdict(cls()) if name in request})


def check_training(
    session: Session,
    project_id: str,
    *,
    dataset: str,
    evaluation: str | None,
    guard: str | None,
    forgetting_budget: float,
    mode: Mode,
    recipe: dict[str, Any] | None,
    tuning: dict[str, Any] | None,
) -> tuple[Dataset, TrainingRequest]:
    """The dataset, and the request with everything that was left open filled in. Raises NotFound and InvalidRequest."""
    found = _of_kind(session, project_id, dataset, TRAINABLE, "training takes", param="dataset")
    allowed = tuple(kind for kind in TRAINABLE if judges(found.kind, kind))
    said = f"what is trained on kind {found.kind} is judged by"
    judged_by = None if evaluation is None else _of_kind(session, project_id, evaluation, allowed, said, param="evaluation")
    guarded_by = None if guard is None else _of_kind(session, project_id, guard, TRAINABLE, "a guard is", param="guard")
    if guarded_by is not None and guarded_by.id in (found.id, None if judged_by is None else judged_by.id):
        raise InvalidRequest(
            "the guard is the dataset that is trained on or judged by; it must hold other texts, whose meaning should not change",
            code="guard_not_apart",
            param="guard",
        )
    chosen = None if recipe is None else _recipe(recipe, found.kind)
    request = TrainingRequest(
        evaluation_id=None if judged_by is None else judged_by.id,
        guard_id=None if guarded_by is None else guarded_by.id,
        forgetting_budget=forgetting_budget,
        mode=mode,
        recipe="auto" if chosen is None else chosen.to_dict(),
        tuning=_tuning(tuning, mode, chosen),
    )
    return found, request


def _of_kind(session: Session, project_id: str, ref: str, allowed: tuple[DatasetKind, ...], said: str, *, param: str) -> Dataset:
    dataset = get_dataset(session, project_id, ref, param=param)
    if dataset.kind not in allowed:
        raise InvalidRequest(
            f"dataset '{ref}' is of kind {dataset.kind}; {said} one of kind {' or '.join(allowed)}",
            code="wrong_kind",
            param=param,
        )
    return dataset


def _recipe(numbers: dict[str, Any], kind: DatasetKind) -> Recipe:
    try:
        return Recipe.from_dict(numbers).for_kind(kind)
    except ZerogateError as error:
        raise InvalidRequest(str(error), code="invalid_recipe", param="recipe") from error


def _tuning(numbers: dict[str, Any] | None, mode: Mode, recipe: Recipe | None) -> dict[str, Any] | None:
    if mode == "head":
        if numbers is not None:
            raise InvalidRequest("'tuning' belongs to the modes lora and full, found mode head", param="tuning")
        return None
    if recipe is not None and (recipe.query_only or not recipe.shape.folds or recipe.merge == "concat"):
        raise InvalidRequest(
            f"mode {mode} puts the head into the encoder: that takes a recipe with norm 'none', activation 'none', merge 'add' "
            "and query_only false",
            code="invalid_recipe",
            param="recipe",
        )
    given = dict(numbers or {})
    if given.setdefault("mode", mode) != mode:
        raise InvalidRequest(f"tuning.mode is {given['mode']!r}, the job's mode is {mode}", code="invalid_tuning", param="tuning")
    try:
        return TuningRecipe.from_dict(given).to_dict()
    except ZerogateError as error:
        raise InvalidRequest(str(error), code="invalid_tuning", param="tuning") from error
