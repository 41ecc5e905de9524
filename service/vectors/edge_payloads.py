"""Booleans in the form in which Edge stores them, and back.

Edge 0.9 turns a match on True into a match on the integer 1 and finds nothing. So a boolean leaf is stored as a string that
starts with NUL, in its own place: paths, nested objects and `is_empty` then work as for any keyword. A text that starts
with NUL itself gets one more in front, so that every payload comes back exactly as it came.
"""

from typing import Any

TRUE = "\x00\x01"
FALSE = "\x00\x02"
ESCAPE = "\x00"
BOOLEANS = {TRUE: True, FALSE: False}


def to_stored(value: Any) -> Any:
    """Give a copy of a JSON value as it is stored: the same tree, booleans as marked strings."""
    match value:
        case bool():
            return TRUE if value else FALSE
        case str():
            return ESCAPE + value if value.startswith(ESCAPE) else value
        case list():
            return [to_stored(item) for item in value]
        case dict():
            return {key: to_stored(item) for key, item in value.items()}
    return value


def from_stored(value: Any) -> Any:
    """Give the JSON value that `to_stored` was given."""
    match value:
        case str():
            return BOOLEANS.get(value, value.removeprefix(ESCAPE))
        case list():
            return [from_stored(item) for item in value]
        case dict():
            return {key: from_stored(item) for key, item in value.items()}
    return value
