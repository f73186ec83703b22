"""An API beside which nothing folds and nobody works, until the test does it."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from obstore.store import MemoryStore
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import CommandHandler, EventStore, Hub
from generator import ArtifactStore
from projector import Projector
from service.api import Parts, create_api
from service.keys import KeyRing, new_key
from service.problems import MEDIA_TYPE
from service.project_secrets import ProjectSecrets
from service.quotas import Quotas
from service.secret_keys import SecretKeys, parse_keys
from service.tiers import Tiers
from tests.histories import TENANT
from tests.service.instances import served, visitor

SECRETS_KEY = base64.b64encode(bytes(32)).decode()
RIVAL = "globex"
"""Another tenant, in the same partition."""


@dataclass(frozen=True, slots=True)
class QuietApi:
    """The API, spoken to by `TENANT` and by `RIVAL`; `trouble` is what its projector tells."""

    client: httpx.AsyncClient
    rival: httpx.AsyncClient
    store: EventStore
    engine: AsyncEngine
    projector: Projector
    artifacts: ArtifactStore
    quotas: Quotas
    trouble: dict[int, str] = field(default_factory=dict)

    async def fold(self) -> None:
        """Fold what is in the log."""
        await self.projector.catch_up()

    async def get(self, path: str, **params: Any) -> Any:
        """The document of a good answer."""
        response = await self.client.get(path, params=params or None)
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(self, path: str, status: int = 422, **params: Any) -> dict[str, Any]:
        """The problem document of a refusal (RFC 9457)."""
        response = await self.client.get(path, params=params or None)
        assert response.status_code == status, response.text
        assert response.headers["Content-Type"] == MEDIA_TYPE
        document: dict[str, Any] = response.json()
        return document


@asynccontextmanager
async def quiet_api(
    handler: CommandHandler,
    hub: Hub,
    engine: AsyncEngine,
    *,
    read_wait_s: float = 0.0,
    tiers: Tiers = Tiers(),  # noqa: B008 - frozen
    secrets: ProjectSecrets | None = None,
) -> AsyncIterator[QuietApi]:
    """The API while the block runs; a read waits for what it names no longer than that."""
    keys, key, rivals_key = KeyRing(engine), new_key(), new_key()
    await keys.add(key, tenant=TENANT, name="test")
    await keys.add(rivals_key, tenant=RIVAL, name="test")
    trouble: dict[int, str] = {}
    artifacts = ArtifactStore(MemoryStore())
    quotas = Quotas(handler.store, engine, tiers)
    secrets = secrets or ProjectSecrets(engine, SecretKeys(parse_keys(SECRETS_KEY)))
    parts = Parts(
        handler,
        hub,
        engine,
        keys,
        artifacts,
        quotas,
        secrets,
        trouble=trouble,
        read_wait_s=read_wait_s,
    )
    async with (
        served(create_api(parts)) as url,
        visitor(url, key) as client,
        visitor(url, rivals_key) as rival,
    ):
        projector = Projector(handler.store, engine)
        yield QuietApi(client, rival, handler.store, engine, projector, artifacts, quotas, trouble)
