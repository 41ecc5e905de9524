"""Turning texts into a version's vectors for one request."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from service.collections.queries import get_collection, serving_version
from service.embeddings.loaded_models import LoadedModels, VersionFacts
from service.embeddings.schemas import MAX_CHARACTERS, MAX_INPUTS
from service.errors import InvalidRequest
from service.models.queries import served_version
from service.names import Ref, parse_ref, vector_name
from service.tables import Model
from zerogate.encoder_files import Role


@dataclass(frozen=True)
class Embedded:
    """vectors: (n, dim) float32, unit rows; tokens: read by the encoder, of all texts together."""

    vectors: NDArray[np.float32]
    tokens: int


@dataclass(frozen=True)
class Begun:
    """A request whose texts were read.

    tokens: of all texts together. found: (n,) bool, whose vectors were known. known: theirs, (m, dim) float32, unit rows. rest:
    gives the others, unless all were known.
    """

    tokens: int
    found: NDArray[np.bool_]
    known: NDArray[np.float32]
    rest: Future[NDArray[np.float32]] | None

    def result(self) -> Embedded:
        """All vectors, in the order of the texts; waits for the rest."""
        if self.rest is None:
            return Embedded(self.known, self.tokens)
        made = self.rest.result()
        if len(made) == len(self.found):
            return Embedded(made, self.tokens)
        vectors = np.empty((len(self.found), made.shape[1]), dtype=np.float32)
        vectors[self.found], vectors[~self.found] = self.known, made
        return Embedded(vectors, self.tokens)


def choose_version(session: Session, project_id: str, model: str, *, collection: str | None = None) -> VersionFacts:
    """The version that a request means. With `collection`: the one that this collection serves, and the model must fit it.

    Raises InvalidRequest and NotFound.
    """
    ref = parse_ref(model)
    if collection is None:
        return served_version(session, project_id, ref)
    row = get_collection(session, project_id, collection)
    bound = session.get_one(Model, row.model_id).name
    serving = serving_version(session, row)
    if ref.name != bound or ref.version not in (None, serving):
        raise InvalidRequest(
            f"collection '{collection}' serves '{bound}@{serving}'; the request names '{ref}'", code="other_model", param="model"
        )
    return served_version(session, project_id, Ref(bound, serving))


def check_texts(given: Any, *, param: str = "input") -> list[str]:
    """The texts of OpenAI's `input`, or of the field `param`.

    Raises InvalidRequest for anything but 1 to 2,048 texts that are not blank.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise InvalidRequest(f"'{param}' must be a text or a list of 1 to {MAX_INPUTS} texts", param=param)
    if len(texts) > MAX_INPUTS:
        raise InvalidRequest(f"'{param}' has {len(texts)} texts; at most {MAX_INPUTS} fit one request", param=param)
    for position, text in enumerate(texts):
        place = f"'{param}'" if text is given else f"{param}[{position}]"
        if isinstance(text, (int, list)):
            raise InvalidRequest(
                f"{place} holds token ids; they belong to another vocabulary, so send texts "
                "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
                code="token_ids",
                param=param,
            )
        if not isinstance(text, str) or not text.strip():
            raise InvalidRequest(f"{place} must be a text that is not blank, found {text!r:.60}", param=param)
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequest(f"{place} has {len(text)} characters; at most {MAX_CHARACTERS} are taken", param=param)
        if not _is_unicode(text):
            raise InvalidRequest(f"{place} holds half of a surrogate pair, which is no character", param=param)
    return texts


def check_dimensions(version: VersionFacts, dimensions: int | None) -> None:
    """Raise InvalidRequest when another number of dimensions is asked for than the version has."""
    if dimensions not in (None, version.dim):
        raise InvalidRequest(
            f"'dimensions' is {dimensions}; '{version.model}@{version.number}' has {version.dim} and cannot be shortened",
            param="dimensions",
        )


def begin(
    models: LoadedModels, version: VersionFacts, texts: Sequence[str], *, role: Role, strength: float | None = None
) -> Begun:
    """Read the texts, and hand those whose vectors are not known to the encoder's next pass.

    Raises TooManyRequests, and Unavailable when the encoder or the head cannot be loaded.
    """
    rows = models.encoder(version.encoder).encoder.tokenize(texts, role=role)
    base, found = models.lookup(version.encoder, texts, rows, role=role)
    then = models.map_of(version, role=role, strength=strength)
    missing = [row for row, is_found in zip(rows, found.tolist(), strict=True) if not is_found]
    rest = models.batcher(version.encoder, role).submit(missing, then) if missing else None
    known = base[found]
    return Begun(sum(map(len, rows)), found, known if then is None else then(known), rest)


def embed(
    models: LoadedModels, version: VersionFacts, texts: Sequence[str], *, role: Role, strength: float | None = None
) -> Embedded:
    """The version's vectors of the texts; waits for the pass that makes those which are not known. Raises as `begin` does."""
    return begin(models, version, texts, role=role, strength=strength).result()


def served_name(version: VersionFacts, strength: float | None) -> str | None:
    """The named vector that these are compared with, or None for a strength of one's own."""
    own = strength is None or strength == version.strength or version.number == 0
    return serving_name(version) if own else None


def serving_name(version: VersionFacts) -> str:
    """The named vector that holds the version's documents in a collection: `base` where it maps queries only."""
    return "base" if version.query_only else vector_name(version.number)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
