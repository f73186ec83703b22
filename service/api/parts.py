"""What the API is made of, and what every route asks first: who is it, and is it theirs?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import CommandHandler, Hub
from generator import KEYS_ONLY, ArtifactStore, Redactor
from schemas import Job, JobRef, JobUnknown, is_id
from service.keys import KeyRing
from service.project_secrets import ProjectSecrets
from service.quotas import Quotas


@dataclass(frozen=True, slots=True)
class Parts:
    """What the API is made of.

    `trouble` is the projector's own: what it waits for or stands still at, by partition, as it
    changes. `read_wait_s`: how long a read waits at most for what its `after` names.
    `redactor`: what errors say goes through it.
    """

    handler: CommandHandler
    hub: Hub
    engine: AsyncEngine
    keys: KeyRing
    artifacts: ArtifactStore
    quotas: Quotas
    secrets: ProjectSecrets
    trouble: Mapping[int, str] = field(default_factory=dict)
    read_wait_s: float = 2.0
    redactor: Redactor = KEYS_ONLY


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


OwnParts = Annotated[Parts, Depends(_parts)]


async def _tenant(parts: OwnParts, authorization: Annotated[str, Header()] = "") -> str:
    scheme, _, key = authorization.partition(" ")
    found = None
    if scheme.lower() == "bearer" and key:
        found = await parts.keys.tenant_of(key.strip())
    if found is None:
        raise HTTPException(401, "Send your key as `Authorization: Bearer <key>`")
    return found


Tenant = Annotated[str, Depends(_tenant)]
"""Whose key came with the request."""


async def load(parts: Parts, owner: str, job_id: str) -> Job:
    """A tenant's job from the log. Raises `JobUnknown`."""
    job = await parts.handler.load(own_ref(owner, job_id))
    if job.tenant != owner:
        raise no_job(job_id)
    return job


def own_ref(owner: str, job_id: str) -> JobRef:
    """Where a tenant's job would be. Raises `JobUnknown` for what cannot be a job's id."""
    if not is_id(job_id):
        raise no_job(job_id)
    return JobRef(owner, job_id)


def no_job(job_id: str) -> JobUnknown:
    """In the words of `handler.load`: another tenant's job and none must look the same."""
    return JobUnknown(job_id[:80], "load")
