"""Lists: `{object: "list", data, has_more}`, and the next page begins after the last id of this one."""

from collections.abc import Callable, Sequence
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.errors import InvalidRequest

After = Annotated[str | None, Query(description="the id after which the page begins", max_length=64)]
Limit = Annotated[int, Query(ge=1, le=100, description="rows on a page")]
DEFAULT_LIMIT = 20


Item = TypeVar("Item", bound=BaseModel)
Row = TypeVar("Row")


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


def newest_first(
    session: Session, query: Select[Row], key: InstrumentedAttribute[str], *, after: str | None, limit: int
) -> tuple[Sequence[Row], bool]:
    """The rows of one page, newest first, and whether more follow. `key` is an id that sorts by time.

    Raises InvalidRequest when `after` is no row of this list: page one again would loop for ever.
    """
    if after is not None:
        if session.execute(query.with_only_columns(key).where(key == after)).first() is None:
            raise InvalidRequest(f"'after' is {after!r}, which is no id of this list", param="after")
        query = query.where(key < after)
    rows = session.scalars(query.order_by(key.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def page(found: tuple[Sequence[Row], bool], to_item: Callable[[Row], Item]) -> Page[Item]:
    """What `newest_first` gave, as an answer."""
    rows, has_more = found
    return Page(data=[to_item(row) for row in rows], has_more=has_more)


class Deleted(BaseModel):
    """The answer to a DELETE."""

    id: str
    object: str
    deleted: Literal[True] = True
