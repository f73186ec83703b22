"""Projects, and their builds."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from projector.projections.builds import builds
from projector.projections.projects import projects


class ProjectRow(BaseModel):
    """What a project has come to. `jobs` counts all of them, also those that go on."""

    model_config = ConfigDict(frozen=True)

    project_id: str
    latest_build: int | None
    jobs: int
    ready: int
    failed: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    created_at: datetime
    updated_at: datetime


class BuildRow(BaseModel):
    """A build of a project. `parent` is the build whose files it began with."""

    model_config = ConfigDict(frozen=True)

    project_id: str
    number: int
    version: str
    job_id: str
    goal: str
    manifest: str | None
    parent: int | None
    preview: str | None
    preview_url: str | None
    sandbox_id: str | None
    workspace_path: str | None
    cost_usd: float
    ready_at: datetime
    expires_at: datetime | None


async def project_by_id(
    connection: AsyncConnection, tenant: str, project: str
) -> ProjectRow | None:
    """One project of a tenant; None when it has none of that name."""
    query = _projects_of(tenant).where(projects.c.project_id == project)
    found = (await connection.execute(query)).mappings().one_or_none()
    return ProjectRow.model_validate(dict(found)) if found else None


async def list_projects(
    connection: AsyncConnection, tenant: str, *, behind: str | None = None, limit: int = 50
) -> list[ProjectRow]:
    """A tenant's projects by name, those behind the name `behind`; at most `limit`."""
    query = _projects_of(tenant).order_by(projects.c.project_id).limit(limit)
    if behind is not None:
        query = query.where(projects.c.project_id > behind)
    found = (await connection.execute(query)).mappings()
    return [ProjectRow.model_validate(dict(columns)) for columns in found]


async def build_by_number(
    connection: AsyncConnection, tenant: str, project: str, number: int
) -> BuildRow | None:
    """One build of a project; None when it is not there."""
    query = _builds_of(tenant, project).where(builds.c.number == number)
    found = (await connection.execute(query)).mappings().one_or_none()
    return BuildRow.model_validate(dict(found)) if found else None


async def list_builds(
    connection: AsyncConnection,
    tenant: str,
    project: str,
    *,
    before: int | None = None,
    limit: int = 50,
) -> list[BuildRow]:
    """A project's builds, newest first, those before number `before`; at most `limit`."""
    query = _builds_of(tenant, project).order_by(builds.c.number.desc()).limit(limit)
    if before is not None:
        query = query.where(builds.c.number < before)
    found = (await connection.execute(query)).mappings()
    return [BuildRow.model_validate(dict(columns)) for columns in found]


def _projects_of(tenant: str) -> Select[Any]:
    return select(projects).where(projects.c.tenant == tenant)


def _builds_of(tenant: str, project: str) -> Select[Any]:
    return select(builds).where(builds.c.tenant == tenant, builds.c.project_id == project)
