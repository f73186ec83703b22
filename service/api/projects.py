"""Projects and builds over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from projector import (
    BuildRow,
    ProjectRow,
    build_by_number,
    list_builds,
    list_projects,
    project_by_id,
)
from schemas import Slug, is_id
from service.api.jobs import LAST_NUMBER
from service.api.parts import Tenant
from service.api.reading import Reader, ReadModel
from service.problems import NotThere

router = APIRouter(prefix="/v1/projects")

Limit = Annotated[int, Query(ge=1, le=200)]
Number = Annotated[int, Path(ge=1, le=LAST_NUMBER)]


class ProjectPage(BaseModel):
    """Projects by name; `next` is the `behind` of the next page."""

    projects: list[ProjectRow]
    next: str | None


class BuildPage(BaseModel):
    """Builds, newest first; `next` is the `before` of the next page."""

    builds: list[BuildRow]
    next: int | None


@router.get("")
async def projects(
    owner: Tenant,
    reader: ReadModel,
    behind: Annotated[Slug | None, Query()] = None,
    limit: Limit = 50,
) -> ProjectPage:
    """The tenant's projects, by name."""
    async with reader.connection("projects") as connection:
        found = await list_projects(connection, owner, behind=behind, limit=limit)
    return ProjectPage(projects=found, next=found[-1].project_id if len(found) == limit else None)


@router.get("/{project_id}")
async def project(owner: Tenant, reader: ReadModel, project_id: str) -> ProjectRow:
    """One project."""
    _check(reader, project_id)
    async with reader.connection("projects") as connection:
        found = await project_by_id(connection, owner, project_id)
    if found is None:
        raise _no_project(reader, project_id)
    return found


@router.get("/{project_id}/builds")
async def builds(
    owner: Tenant,
    reader: ReadModel,
    project_id: str,
    before: Annotated[int | None, Query(ge=1, le=LAST_NUMBER)] = None,
    limit: Limit = 50,
) -> BuildPage:
    """The project's builds, newest first."""
    _check(reader, project_id)
    async with reader.connection("builds", "projects") as connection:
        found = await list_builds(connection, owner, project_id, before=before, limit=limit)
        if not found and await project_by_id(connection, owner, project_id) is None:
            raise _no_project(reader, project_id)
    return BuildPage(builds=found, next=found[-1].number if len(found) == limit else None)


@router.get("/{project_id}/builds/{number}")
async def build(owner: Tenant, reader: ReadModel, project_id: str, number: Number) -> BuildRow:
    """One build of the project."""
    _check(reader, project_id)
    async with reader.connection("builds") as connection:
        found = await build_by_number(connection, owner, project_id, number)
    if found is None:
        raise reader.missing(f"build {number} of project {project_id}")
    return found


def _check(reader: Reader, project_id: str) -> None:
    """What cannot be a project's name is none; it never gets as far as the database."""
    if not is_id(project_id):
        raise _no_project(reader, project_id)


def _no_project(reader: Reader, project_id: str) -> NotThere:
    return reader.missing(f"project {project_id[:80]}")
