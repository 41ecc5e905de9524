"""What the two kinds of answers of the Qdrant stand-in have in common: what is asked, refusals, and bodies."""

from dataclasses import dataclass
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A request to one collection. name: the named vector, where the path has one."""

    collection: str
    body: bytes
    name: str = ""


class Refusal(Exception):
    """An answer that is no success, with Qdrant's sentence. retry_after: seconds for the header of that name."""

    def __init__(self, status: int, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after


def no_collection(collection: str) -> Refusal:
    """What a server says of a collection that is not there."""
    return Refusal(404, f"Not found: Collection `{collection}` doesn't exist!")


def no_point(point_id: object) -> Refusal:
    """What a server says of a point that is not there, after it has updated the others."""
    return Refusal(404, f"Not found: No point with id {point_id} found")


def read(kind: TypeAdapter[T], body: bytes) -> T:
    """The body as one of qdrant-client's request models, which know no other fields. Raises Refusal as a server does."""
    try:
        return kind.validate_json(body)
    except ValidationError as error:
        raise Refusal(400, f"Format error in JSON body: {error}") from error
