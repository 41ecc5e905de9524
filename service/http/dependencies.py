"""What endpoints ask for: the process's resources, a session, the project of the caller."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from service.resources import DEFAULT_PROJECT, Resources


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


def _read_session(resources: ResourcesDep) -> Iterator[Session]:
    with resources.database.read() as session:
        yield session


def _write_session(resources: ResourcesDep) -> Iterator[Session]:
    with resources.database.write() as session:
        yield session


def _project_id() -> str:
    return DEFAULT_PROJECT  # one project until tenancy comes; every query is already limited to it


# scope="function": the commit happens before the answer is sent; FastAPI's default would answer first and commit later.
ReadSession = Annotated[Session, Depends(_read_session, scope="function")]
WriteSession = Annotated[Session, Depends(_write_session, scope="function")]
ProjectId = Annotated[str, Depends(_project_id)]
