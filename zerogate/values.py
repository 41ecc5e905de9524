"""The values in a row of a dataset: what a text, a name, a list, a score and a piece of JSON may be.

Each `parse_...` gives the canonical value or raises Unfit, which says what was found and what is needed.
"""

import math
import re
from collections.abc import Callable
from datetime import date
from reprlib import Repr
from typing import Any, Final

MAX_TEXT_CHARACTERS: Final = 1_000_000
MAX_NAME_CHARACTERS: Final = 1_000  # Of an id or a label: both end up in payloads and indexes.
MAX_JSON_DEPTH: Final = 32  # Far below the recursion limits of Python and of every JSON writer.

_REFUSED_CHARACTER: Final = re.compile(r"[\x00\ud800-\udfff]")
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1  # What JSON writers and Qdrant can hold.
_BRIEF: Final = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 50


class Unfit(ValueError):
    """A value does not fit its column; becomes an InvalidRow, which knows the line and the column."""


def shown(value: object) -> str:
    """Give a repr of at most 60 characters, however large the value is."""
    return shortened(_BRIEF.repr(value))


def shortened(text: str) -> str:
    """Give at most 60 characters of a text, for a message."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse_string(value: object, *, needed: str, at_most: int) -> str:
    if not isinstance(value, str) or not value or value.isspace():
        raise Unfit(f"found {shown(value)}; {needed} is needed")
    if len(value) > at_most:
        raise Unfit(f"found {len(value):,} characters; at most {at_most:,} are allowed")
    _check_characters(value)
    return value


def _check_characters(value: str) -> None:
    # NUL is refused by PostgreSQL, a lone surrogate by every UTF-8 writer: better here than in the middle of a job.
    if refused := _REFUSED_CHARACTER.search(value):
        raise Unfit(f"character {refused.start() + 1} is {refused[0]!r}; NUL and lone surrogates are not allowed")


def parse_text(value: object) -> str:
    return _parse_string(value, needed="a text that is not blank", at_most=MAX_TEXT_CHARACTERS)


def parse_name(value: object) -> str:
    """Give an id or a label as a string; integers are common as both."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _parse_string(value, needed="a string that is not blank, or an integer,", at_most=MAX_NAME_CHARACTERS)


def parse_list(value: object, parse: Callable[[object], str]) -> list[str]:
    if not isinstance(value, list) or not value:
        raise Unfit(f"found {shown(value)}; a list of at least one is needed")
    items = []
    for number, item in enumerate(value, 1):
        try:
            items.append(parse(item))
        except Unfit as error:
            raise Unfit(f"item {number}: {error}") from None
    return items


def parse_score(value: object) -> float:
    # NaN fails the comparison as well.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Unfit(f"found {shown(value)}; a number from 0 to 1 is needed")
    return float(value)


def parse_json(value: object, depth: int = 0) -> Any:
    """Give a JSON value; dates and times, which Parquet has and JSON lacks, become ISO 8601 strings."""
    if depth > MAX_JSON_DEPTH:
        raise Unfit(f"is nested more than {MAX_JSON_DEPTH} levels deep")
    match value:
        case list():
            return [parse_json(item, depth + 1) for item in value]
        case dict():
            return {parse_key(key): parse_json(item, depth + 1) for key, item in value.items()}
        case date():
            return value.isoformat()
        case str():
            _check_characters(value)
        case float() if not math.isfinite(value):
            raise Unfit(f"found {value}; a JSON number is finite")
        case int() if not _INT64_MIN <= value <= _UINT64_MAX:
            raise Unfit("found an integer beyond 64 bits; give it as a string")
        case None | int() | float():
            pass
        case _:
            raise Unfit(f"found {shown(value)}; a JSON value is needed")
    return value


def parse_key(key: object) -> str:
    if not isinstance(key, str):
        raise Unfit(f"found the key {shown(key)}; a key is a string")
    _check_characters(key)
    return key
