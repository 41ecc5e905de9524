"""Embeddings as OpenAI's clients ask for them, and as they get them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.http.bodies import only_characters

MAX_INPUTS = 2048
MAX_CHARACTERS = 1_000_000

Strength = Annotated[float, Field(ge=0.0, le=2.0, description="the dial: 0 gives the encoder, 1 the head as trained")]


class EmbeddingsRequest(BaseModel):
    """OpenAI's request; `input_type`, `strength` and `collection` are ours.

    Fields of OpenAI's that mean nothing here are ignored.
    """

    model_config = ConfigDict(extra="ignore")  # clients send `user` and more

    model: str = Field(description="`faq` (the live version), `faq@3`, or an encoder's name")
    # The kinds of a wrong input are told apart by the operation: its messages say more than a type could.
    input: Any = Field(description="a text or a list of texts", json_schema_extra={"type": ["string", "array"]})
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, description="only the version's own number")
    input_type: Literal["query", "document"] = "query"
    strength: Strength | None = None
    collection: str | None = Field(default=None, description="give the vectors that this collection serves")

    # The texts of `input` are checked by the operation, which says which one is wrong.
    _names_are_unicode = field_validator("model", "collection", mode="before")(only_characters)


class EmbeddingsQuery(BaseModel):
    """The same request in a query string, where every input is a text."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: list[str] = Field(description="a text; may repeat")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    input_type: Literal["query", "document"] = "query"
    strength: Strength | None = None
    collection: str | None = None


class Embedding(BaseModel):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the encoder read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """OpenAI's answer; `version` and `vector_name` are ours.

    `vector_name` is null for a strength of one's own: no collection holds such vectors.
    """

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    version: str
    vector_name: str | None
