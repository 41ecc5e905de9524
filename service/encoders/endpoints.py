"""GET /v1/encoders."""

from fastapi import APIRouter

from service.encoders.queries import list_encoders, parent_versions
from service.encoders.schemas import EncoderAnswer, encoder_answer
from service.http.dependencies import ProjectId, ReadSession
from service.http.pages import Page

router = APIRouter(prefix="/v1/encoders", tags=["encoders"])


@router.get("", summary="List encoders")
def list_all(session: ReadSession, project_id: ProjectId) -> Page[EncoderAnswer]:
    """All encoders of this installation.

    Any of them may be the `encoder` of a new model, or the `model` of an embeddings request.
    """
    parents = parent_versions(session, project_id)
    rows = list_encoders(session, project_id)
    return Page(data=[encoder_answer(row, parent_version=parents.get(row.id)) for row in rows], has_more=False)
