"""The answer to an embeddings request as bytes.

Written by orjson straight from the matrix, where pydantic would look at every number. `EmbeddingsAnswer` documents the shape.
"""

import base64

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from service.embeddings.loaded_models import VersionFacts
from service.embeddings.operations import Embedded, served_name
from service.embeddings.schemas import EmbeddingsRequest


def answer(body: EmbeddingsRequest, version: VersionFacts, found: Embedded) -> Response:
    """OpenAI's list of embeddings. Numbers are the shortest decimals that are read as the same float32."""
    rows = np.ascontiguousarray(found.vectors, dtype="<f4")
    embeddings = [_base64(row) for row in rows] if body.encoding_format == "base64" else rows
    content = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": embedding} for index, embedding in enumerate(embeddings)],
        "model": body.model,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        "version": f"{version.model}@{version.number}",
        "vector_name": served_name(version, body.strength),
    }
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _base64(row: NDArray[np.float32]) -> str:
    return base64.b64encode(row.data).decode()
