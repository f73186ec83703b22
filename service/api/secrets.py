"""The secrets of a project over HTTP: set, named, removed; nobody reads a value back."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, SecretStr

from schemas import is_id
from service.api.parts import OwnParts, Tenant
from service.problems import NotThere
from service.project_secrets import SecretName
from service.secret_keys import SecretRef

router = APIRouter(prefix="/v1/projects/{project_id}/secrets")


class SecretValue(BaseModel):
    """What a secret shall be: any text without NUL, of at most 32 KiB in UTF-8."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: SecretStr


class SecretNames(BaseModel):
    """The secrets of a project by name."""

    secrets: list[SecretName]


def _project(project_id: str) -> str:
    """A project may have secrets before it has a build. Raises `NotThere` for what can be none."""
    if not is_id(project_id):
        raise NotThere(f"project {project_id[:80]}", {})
    return project_id


Project = Annotated[str, Depends(_project)]


@router.get("")
async def secrets(parts: OwnParts, owner: Tenant, project: Project) -> SecretNames:
    """The names of the project's secrets, and when they were set; never a value."""
    return SecretNames(secrets=await parts.secrets.names(owner, project))


@router.put("/{name}", status_code=204)
async def set_secret(
    parts: OwnParts, owner: Tenant, project: Project, name: str, body: SecretValue
) -> None:
    """Set a secret, in place of the value it had. What is built from now on gets it."""
    ref = SecretRef(owner, project, name)
    await parts.secrets.put(ref, body.value.get_secret_value())


@router.delete("/{name}", status_code=204)
async def remove_secret(parts: OwnParts, owner: Tenant, project: Project, name: str) -> None:
    """Remove a secret. An app that runs keeps what it was started with."""
    if "\0" in name or not await parts.secrets.remove(SecretRef(owner, project, name)):
        raise NotThere(f"secret {name[:80]} of project {project}", {})
