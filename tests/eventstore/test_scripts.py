"""Calls of scripts that share a trip: each is answered, refused and cancelled for itself."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from redis.asyncio.connection import AbstractConnection

from eventstore import (
    CommandHandler,
    EventStore,
    LogDamaged,
    RedisUnavailable,
    VersionConflict,
    connect_redis,
)
from eventstore.scripts import Scripts
from schemas import JobRef, NewEvent
from schemas.commands import RequestBuild
from schemas.events import CancelRequested
from tests.eventstore.killable import KillableServer

TENANT = "acme"


async def queued(handler: CommandHandler, count: int) -> list[JobRef]:
    refs = [JobRef(TENANT, str(uuid4())) for _ in range(count)]
    for ref in refs:
        await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list"))
    return refs


def cancelling() -> NewEvent:
    return NewEvent(str(uuid4()), datetime.now(UTC), CancelRequested(by="ann"))


async def versions(store: EventStore, refs: Sequence[JobRef]) -> list[int]:
    return [len(await store.read_job(ref)) for ref in refs]


async def test_appends_that_are_due_together_are_answered_each_for_itself(
    handler: CommandHandler,
) -> None:
    store = handler.store
    refs = await queued(handler, 20)  # more than fit into one trip
    conflicts: list[tuple[str, int]] = []

    async def append(number: int) -> None:
        expected = 1 if number % 2 else 7
        try:
            done = await store.append(
                refs[number], "shop", [cancelling()], expected_version=expected
            )
        except VersionConflict as conflict:
            conflicts.append((conflict.job, number))
        else:
            assert (done.job, done.version) == (refs[number].job, 2)

    async with anyio.create_task_group() as tasks:
        for number in range(len(refs)):
            tasks.start_soon(append, number)
    assert sorted(conflicts) == sorted((refs[number].job, number) for number in range(0, 20, 2))
    assert await versions(store, refs) == [1, 2] * 10


async def test_a_job_that_is_read_shares_the_trip_of_appends(
    handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, trips = handler.store, list[int]()
    refs = await queued(handler, 3)
    pack = AbstractConnection.pack_commands

    def counting(connection: AbstractConnection, commands: list[Any]) -> Any:
        trips.append(len(commands))
        return pack(connection, commands)

    monkeypatch.setattr(AbstractConnection, "pack_commands", counting)
    async with anyio.create_task_group() as tasks:
        for ref in refs[:2]:
            tasks.start_soon(
                lambda ref: store.append(ref, "shop", [cancelling()], expected_version=1), ref
            )
        tasks.start_soon(store.read_job, refs[2])
    assert trips == [3]
    assert await versions(store, refs) == [2, 2, 1]


async def test_who_reads_a_key_that_holds_something_else_is_told_alone(
    handler: CommandHandler,
) -> None:
    store = handler.store
    refs = await queued(handler, 2)
    await store.redis.set(store.keys(TENANT).job("broken"), "x")
    told: list[str] = []

    async def read(ref: JobRef) -> None:
        try:
            told.append(f"{len(await store.read_job(ref))} events")
        except LogDamaged:
            told.append("damaged")

    async with anyio.create_task_group() as tasks:
        for ref in (refs[0], JobRef(TENANT, "broken"), refs[1]):
            tasks.start_soon(read, ref)
    assert sorted(told) == ["1 events", "1 events", "damaged"]


async def test_whoever_is_cancelled_takes_nobody_else_along(handler: CommandHandler) -> None:
    store = handler.store
    refs = await queued(handler, 3)
    first = anyio.CancelScope()

    async def append(ref: JobRef, scope: anyio.CancelScope) -> None:
        with scope:
            await store.append(ref, "shop", [cancelling()], expected_version=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, refs[0], first)
        for ref in refs[1:]:
            tasks.start_soon(append, ref, anyio.CancelScope())
        await anyio.lowlevel.checkpoint()
        first.cancel()
    assert (await versions(store, refs))[1:] == [2, 2]


async def test_a_server_that_forgot_its_scripts_is_taught_again(handler: CommandHandler) -> None:
    store = handler.store
    refs = await queued(handler, 3)
    await store.redis.script_flush()
    async with anyio.create_task_group() as tasks:
        for ref in refs:
            tasks.start_soon(
                lambda ref: store.append(ref, "shop", [cancelling()], expected_version=1), ref
            )
    assert await versions(store, refs) == [2, 2, 2]


async def test_when_the_server_is_gone_each_caller_is_told(server: KillableServer) -> None:
    redis = connect_redis(server.url)
    scripts = Scripts(redis)
    server.kill()
    told: list[RedisUnavailable] = []

    async def call() -> None:
        try:
            await scripts("progress", ["a", "b", "c"], ["", "", "", "", "", "", ""])
        except RedisUnavailable as error:
            told.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call)
    assert len(told) == 3
    await redis.aclose()
