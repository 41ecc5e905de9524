"""/v1/embeddings, as OpenAI's clients know it."""

import base64
from typing import Annotated

from fastapi import APIRouter, Query

from service.embeddings.operations import Embedded, check_dimensions, check_texts, embed, served_name
from service.embeddings.schemas import Embedding, EmbeddingsAnswer, EmbeddingsQuery, EmbeddingsRequest, Usage
from service.http.dependencies import ProjectId, ResourcesDep

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"])


@router.post("", summary="Create embeddings")
def create(body: EmbeddingsRequest, resources: ResourcesDep, project_id: ProjectId) -> EmbeddingsAnswer:
    """Vectors of texts. OpenAI's clients work unchanged: set their base URL to `/v1` and `model` to a model's name."""
    texts = check_texts(body.input)
    version = resources.known_versions.choose(project_id, body.model, collection=body.collection)
    check_dimensions(version, body.dimensions)
    found = embed(resources.models, version, texts, role=body.input_type, strength=body.strength)
    return EmbeddingsAnswer(
        data=_data(found, body.encoding_format),
        model=body.model,
        usage=Usage(prompt_tokens=found.tokens, total_tokens=found.tokens),
        version=f"{version.model}@{version.number}",
        vector_name=served_name(version, body.strength),
    )


@router.get("", summary="Create embeddings (GET)")
def create_by_get(resources: ResourcesDep, project_id: ProjectId, query: Annotated[EmbeddingsQuery, Query()]) -> EmbeddingsAnswer:
    """The same with the request in the query string; `input` may repeat."""
    return create(EmbeddingsRequest(**query.model_dump()), resources, project_id)


def _data(found: Embedded, encoding_format: str) -> list[Embedding]:
    if encoding_format == "base64":
        rows = found.vectors.astype("<f4", copy=False)
        return [Embedding(index=index, embedding=base64.b64encode(row.tobytes()).decode()) for index, row in enumerate(rows)]
    return [Embedding(index=index, embedding=row) for index, row in enumerate(found.vectors.tolist())]
