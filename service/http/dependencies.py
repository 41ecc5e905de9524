"""What endpoints ask for: the process's resources, a session, the project of the caller."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from service.resources import DEFAULT_PROJECT, Resources


# async, though they wait for nothing: FastAPI would run a plain function in a thread, and that takes longer than all of it.
async def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


def _read_session(resources: ResourcesDep) -> Iterator[Session]:
    with resources.database.read() as session:
        yield session


async def _project_id() -> str:
    return DEFAULT_PROJECT  # one project until tenancy comes; every query is already limited to it


# scope="function": the connection is given back before the answer is sent; FastAPI's default would answer first. There is no
# session for writing: it would be opened, used and committed in three threads, and while others wait for the only writer there
# may be none to commit in. An endpoint opens `database.write()` itself.
ReadSession = Annotated[Session, Depends(_read_session, scope="function")]
ProjectId = Annotated[str, Depends(_project_id)]
