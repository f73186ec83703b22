"""API keys: a tenant each, stored as hashes, known again without asking Postgres every time."""

import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from sqlalchemy import Column, DateTime, MetaData, Table, Text, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import PostgresUnavailable, postgres_errors
from service.instance import write_private

KEY_PREFIX = "hr_"
FRESH_S = 60.0
LOOK_UP_S = 3.0
PAUSE_S = 10.0
_MOST_CACHED = 10_000

metadata = MetaData(schema="headrace")

api_keys = Table(
    "api_keys",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)


def new_key() -> str:
    """A fresh key: 256 bits from the system."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def local_key(home: Path) -> str:
    """The key of the local tenant, made when it is first needed, readable by its owner alone."""
    path = home / "key"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        key = new_key()
        write_private(path, key + "\n")
        return key


def key_hash(key: str) -> str:
    """What is stored of a key. Plain SHA-256 is enough for 256 random bits: nothing to guess."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """Looks up whose key it is. A known key works on while Postgres is away."""

    def __init__(
        self, engine: AsyncEngine, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._monotonic = monotonic
        self._known: dict[str, tuple[str, float]] = {}

    async def tenant_of(self, key: str) -> str | None:
        """The tenant a key belongs to, None for a wrong one. Raises `PostgresUnavailable`."""
        digest = key_hash(key)
        known = self._known.get(digest)
        if known and self._monotonic() - known[1] < FRESH_S:
            return known[0]
        try:
            tenant = await self._look_up(digest)
        except PostgresUnavailable:
            if known is None:
                raise
            # Not asked again at once: each request would wait for the answer that does not come.
            self._known[digest] = (known[0], self._monotonic() - FRESH_S + PAUSE_S)
            return known[0]
        if tenant is None:
            self._known.pop(digest, None)
        else:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            self._known[digest] = (tenant, self._monotonic())
        return tenant

    async def add(self, key: str, *, tenant: str, name: str) -> None:
        """Store a key's hash; adding it again changes nothing."""
        values = {"hash": key_hash(key), "tenant": tenant, "name": name}
        with postgres_errors():
            async with self._engine.begin() as connection:
                await connection.execute(insert(api_keys).values(values).on_conflict_do_nothing())

    async def _look_up(self, digest: str) -> str | None:
        query = select(api_keys.c.tenant).where(api_keys.c.hash == digest)
        with postgres_errors(), anyio.fail_after(LOOK_UP_S):
            async with self._engine.connect() as connection:
                return (await connection.execute(query)).scalar_one_or_none()
