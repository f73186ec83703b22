"""Whose key it is, also while Postgres cannot say."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import PostgresUnavailable, connect_postgres
from service.keys import FRESH_S, KeyRing, key_hash, new_key


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_belongs_to_its_tenant_and_a_wrong_one_to_nobody(engine: AsyncEngine) -> None:
    ring, key = KeyRing(engine), new_key()
    await ring.add(key, tenant="acme", name="test")
    assert await ring.tenant_of(key) == "acme"
    assert await ring.tenant_of(new_key()) is None


async def test_what_is_stored_of_a_key_does_not_tell_it(engine: AsyncEngine) -> None:
    key = new_key()
    assert key not in key_hash(key)
    assert len(key_hash(key)) == 64


async def test_a_known_key_works_on_while_postgres_is_away_and_a_new_one_does_not(
    engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, key = Clock(), new_key()
    ring = KeyRing(engine, monotonic=clock)
    await ring.add(key, tenant="acme", name="test")
    assert await ring.tenant_of(key) == "acme"
    nowhere = connect_postgres("postgresql://nobody@/nothing?host=/nonexistent")
    monkeypatch.setattr(ring, "_engine", nowhere)
    clock.now += FRESH_S + 1
    assert await ring.tenant_of(key) == "acme"
    with pytest.raises(PostgresUnavailable):
        await ring.tenant_of(new_key())


async def test_while_postgres_is_away_it_is_not_asked_for_each_request(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, key = Clock(), new_key()
    ring = KeyRing(engine, monotonic=clock)
    await ring.add(key, tenant="acme", name="test")
    await ring.tenant_of(key)
    asked = 0

    async def away(digest: str) -> str | None:
        nonlocal asked
        asked += 1
        raise PostgresUnavailable("it is away")

    monkeypatch.setattr(ring, "_look_up", away)
    clock.now += FRESH_S + 1
    for _ in range(5):
        assert await ring.tenant_of(key) == "acme"
    assert asked == 1
