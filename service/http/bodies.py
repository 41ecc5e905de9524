"""What every JSON body has in common: no unknown fields, and no text that could not be stored or sent back."""

from pydantic import BaseModel, ConfigDict, field_validator


def only_characters(value: object) -> object:
    """The value, if every text in it is Unicode. JSON can spell half of a surrogate pair (`"\\ud800"`), which is no character:
    no database, file or answer takes it. Raises ValueError.
    """
    waiting = [value]  # not by recursion: a body may be nested as deep as Python's own limit
    while waiting:
        match waiting.pop():
            case str(text):
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError("it holds half of a surrogate pair, which is no character") from None
            case dict(items):
                waiting.extend(items)
                waiting.extend(items.values())
            case list(items):
                waiting.extend(items)
    return value


class Body(BaseModel):
    """The base of request bodies."""

    model_config = ConfigDict(extra="forbid")

    _texts_are_unicode = field_validator("*", mode="before")(only_characters)
