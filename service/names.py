"""Names of models, encoders, collections and datasets, and references to versions (`faq`, `faq@3`)."""

import re
from dataclasses import dataclass

from service.errors import InvalidRequest

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_NAME = re.compile(NAME_PATTERN[:-1] + r"\Z")  # `$` would let a trailing newline through


@dataclass(frozen=True)
class Ref:
    """A model or encoder by name, and the version asked for; None means the live one."""

    name: str
    version: int | None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def check_name(name: str, *, param: str = "name") -> str:
    """The name, if it is one. Raises InvalidRequest."""
    if not _NAME.match(name):
        raise InvalidRequest(
            f"{name!r} is no name: use 1 to 63 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit (no slash, no '@')",
            code="invalid_name",
            param=param,
        )
    return name


def parse_ref(text: str, *, param: str = "model") -> Ref:
    """Read `faq` or `faq@3`. Raises InvalidRequest."""
    name, at, number = text.partition("@")
    check_name(name, param=param)
    if not at:
        return Ref(name, None)
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise InvalidRequest(
            f"{text!r} names no version: after '@' stands its number, as in '{name}@3'", code="invalid_name", param=param
        )
    return Ref(name, int(number))


def vector_name(version: int) -> str:
    """The named vector that holds a version's vectors in Qdrant."""
    return "base" if version == 0 else f"v{version}"


def is_vector_name(name: str) -> bool:
    """Whether `vector_name` gives this name to a version other than 0; other names in a collection are not ours."""
    return re.fullmatch(r"v[1-9][0-9]*", name) is not None
