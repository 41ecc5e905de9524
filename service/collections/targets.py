"""Which version a search means, and where its documents' vectors are: in a named vector, or still to be computed from `base`."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from service.collections.queries import get_collection, ready_versions, serving_version
from service.embeddings.loaded_models import VersionFacts
from service.embeddings.operations import served_name, serving_name
from service.errors import Conflict, inside_a_body
from service.models.queries import get_version, version_facts
from service.tables import Collection, EncoderRow, Model

Path = Literal["indexed", "instant"]


@dataclass(frozen=True)
class Target:
    """Where a search goes; plain values. All vectors of one search are of this version at this strength: query and documents.

    vector_name: the named vector that is searched. On the path `instant` it is `base`: the head scores what is found there.
    strength: the dial, the version's own if none was asked for.
    """

    qdrant_collection: str
    vector_name: str
    version: VersionFacts
    strength: float
    path: Path


def choose_target(
    session: Session, project_id: str, name: str, *, version: int | None, strength: float | None, by_text: bool
) -> Target:
    """Where to search for the version asked for. Raises NotFound for the collection, InvalidRequest for the version.

    Without a version a text is searched in the live one, and a vector in the one that the collection serves by name: that is
    what an embeddings request for the collection gave.
    Conflict: the version is not ready here, and its head cannot score base vectors. Where a text just means the live
    version, such a one is waited for: the one that the collection serves is searched meanwhile.
    """
    collection = get_collection(session, project_id, name)
    model = session.get_one(Model, collection.model_id)
    if version is not None:
        with inside_a_body():
            asked = _facts(session, model, version)
        return _target(session, collection, asked, strength)
    if by_text:
        live = _facts(session, model, model.live_version)
        if folds(live) or strength is not None or live.number in ready_versions(session, collection):
            return _target(session, collection, live, strength)
    return _target(session, collection, _facts(session, model, serving_version(session, collection)), strength)


def folds(version: VersionFacts) -> bool:
    """Whether the version is y = A x + c, which the instant path needs. So is every head that names no form: those are old."""
    return version.manifest.get("form") != "stacked"


def _target(session: Session, collection: Collection, facts: VersionFacts, strength: float | None) -> Target:
    dial = facts.strength if strength is None else strength
    physical = collection.qdrant_collection
    if facts.query_only or dial == 0.0:  # the documents' vectors are the base vectors
        return Target(physical, "base", facts, dial, "indexed")
    is_own = served_name(facts, strength) is not None
    ready = ready_versions(session, collection)
    if is_own and facts.number in ready:
        return Target(physical, serving_name(facts), facts, dial, "indexed")
    if folds(facts):
        return Target(physical, "base", facts, dial, "instant")
    wanted = f"version {facts.number} of '{facts.model}'" + ("" if is_own else f" with strength {dial:g}")
    raise Conflict(
        f"{wanted} is not ready in collection '{collection.name}', and its head has a norm or an activation inside, so it cannot "
        f"be searched before; ready are {', '.join(map(str, sorted(ready)))}",
        code="version_not_ready",
        param="version" if is_own else "strength",
    )


def _facts(session: Session, model: Model, number: int) -> VersionFacts:
    return version_facts(get_version(session, model, number), model, session.get_one(EncoderRow, model.encoder_id))
