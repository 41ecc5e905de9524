"""What collections hold and serve, read for all of a list at once: a handful of SELECTs however many there are."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from service.collections.queries import last_ready
from service.collections.targets import Path
from service.tables import Collection, CollectionVector, Model, Promotion, Version


@dataclass(frozen=True)
class Standing:
    """A collection, and which versions its searches use: by a vector (`serving`), and by a text (`by_text`, on `path`)."""

    collection: Collection
    model: str
    vectors: list[CollectionVector]
    serving: int
    serves_base: bool  # the serving version's documents are the base vectors
    by_text: int
    path: Path


def standings(session: Session, collections: Sequence[Collection]) -> list[Standing]:
    """As `serving_version` and `choose_target` would find them, one collection after the other. No manifest is read whole."""
    model_ids = {row.model_id for row in collections}
    models = {model.id: model for model in session.scalars(select(Model).where(Model.id.in_(model_ids)))}
    vectors: dict[str, list[CollectionVector]] = defaultdict(list)
    of_these = CollectionVector.collection_id.in_([row.id for row in collections])
    for vector in session.scalars(select(CollectionVector).where(of_these).order_by(CollectionVector.version)):
        vectors[vector.collection_id].append(vector)
    query_only: dict[str, set[int]] = defaultdict(set)
    chosen = Version.model_id.in_(model_ids) & Version.query_only
    for model_id, number in session.execute(select(Version.model_id, Version.number).where(chosen)):
        query_only[model_id].add(number)
    ready = {
        row.id: {one.version for one in vectors[row.id] if one.state == "ready"} | query_only[row.model_id] for row in collections
    }
    behind = {row.model_id for row in collections if models[row.model_id].live_version not in ready[row.id]}
    histories = _histories(session, behind)
    instant = _instant(session, behind)

    def standing(row: Collection) -> Standing:
        model = models[row.model_id]
        live, is_ready = model.live_version, model.live_version in ready[row.id]
        serving = live if is_ready else last_ready(ready[row.id], histories[model.id])
        by_text, path = (live, instant[model.id]) if not is_ready and model.id in instant else (serving, "indexed")
        return Standing(row, model.name, vectors[row.id], serving, serving in {0, *query_only[model.id]}, by_text, path)

    return [standing(row) for row in collections]


def _histories(session: Session, model_ids: set[str]) -> dict[str, list[int]]:
    """What was live, the last first."""
    found: dict[str, list[int]] = defaultdict(list)
    rows = select(Promotion.model_id, Promotion.to_version).where(Promotion.model_id.in_(model_ids))
    for model_id, version in session.execute(rows.order_by(Promotion.id.desc())):
        found[model_id].append(version)
    return found


def _instant(session: Session, model_ids: set[str]) -> dict[str, Path]:
    """How the live versions that fold are searched by text where they are not ready; the others have to be waited for."""
    form = Version.manifest["form"].as_string()
    rows = session.execute(
        select(Version.model_id, Version.strength, form)
        .join(Model, and_(Version.model_id == Model.id, Version.number == Model.live_version))
        .where(Model.id.in_(model_ids))
    )
    return {model_id: "indexed" if strength == 0.0 else "instant" for model_id, strength, form_ in rows if form_ != "stacked"}
