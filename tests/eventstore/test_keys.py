"""Every key that a script touches is named to the server, and all of one call share a hash tag.

That is what lets a cluster spread the partitions. It is proven by the server itself: each call of
a script is made as a user who may touch the call's own keys and no other.
"""

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.crc import key_slot
from redis.exceptions import ResponseError
from sqlalchemy.ext.asyncio import AsyncEngine

import eventstore
from eventstore import Archive, CommandHandler, Fenced, Housekeeper, Spent, day_of, open_log
from eventstore.erasing import forget_commands, forget_streams, newest_events
from eventstore.transfer import Living, _requeue, _restore
from projector import Projector
from schemas import JobRef, NewEvent, Phase, RecordedEvent
from schemas.commands import (
    CompletePhase,
    FinishBuild,
    RequestBuild,
    RequestCancel,
    StartJob,
    StartPhase,
    Usage,
)
from schemas.events import CancelRequested, JobQueued
from service.embedded import Servers
from tests.logs import PARTITIONS

TENANT, PROJECT = "acme", "shop"
LUA = Path(eventstore.__file__).parent / "lua"
USER = "script"


@dataclass
class Calls:
    """The calls of scripts that were made: by name, with keys and arguments."""

    made: list[tuple[str, list[str], list[str]]] = field(default_factory=list)

    def note(self, script: str, keys: Iterable[Any], args: Iterable[Any]) -> None:
        name = re.search(r"--\[\[ (\w+):", script)
        assert name, script
        self.made.append((name[1], [str(key) for key in keys], [str(arg) for arg in args]))


@pytest.fixture
async def calls(
    redis: Redis, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Calls]:
    """While a test runs, a script that touches a key it was not called with fails."""
    await redis.acl_setuser(USER, enabled=True, nopass=True, commands=["+@all"], keys=[])
    confined = Redis.from_url(servers.redis_url.replace("unix://", f"unix://{USER}@"))
    made, call = Calls(), AsyncScript.__call__

    async def confined_call(
        script: AsyncScript, keys: list[Any], args: list[Any], client: None = None
    ) -> Any:
        made.note(str(script.script), keys, args)
        await redis.acl_setuser(USER, enabled=True, reset_keys=True, keys=keys)
        return await call(script, keys, args, client=confined)

    monkeypatch.setattr(AsyncScript, "__call__", confined_call)
    monkeypatch.setattr("eventstore.scripts._REPEATABLE", frozenset())  # each makes its own trip
    yield made
    await confined.aclose()
    await redis.acl_deluser(USER)


def queued_event(ref: JobRef) -> RecordedEvent:
    payload = JobQueued(tenant=TENANT, user_id="ann", project_id=PROJECT, goal="a list")
    return RecordedEvent(
        id=str(uuid4()),
        type=payload.type,
        tenant=TENANT,
        project=PROJECT,
        job=ref.job,
        version=1,
        time=datetime.now(UTC),
        cause="",
        trace="",
        data=payload.model_dump_json().encode(),
        payload=payload,
    )


async def live(handler: CommandHandler, redis: Redis, engine: AsyncEngine) -> None:
    """All that happens to a log: jobs that wait, run, change hands and end, and what comes after.

    With a cap of one job at a time.
    """
    store = handler.store
    keys, partition, scripts = store.keys(TENANT), store.partition(TENANT), store.scripts
    moved, first, second, third = (JobRef(TENANT, str(uuid4())) for _ in range(4))
    await _restore(store, partition, 0, [queued_event(moved)])
    await _requeue(store, Living(moved, PROJECT, "normal", is_cancelling=True), 1)
    await handler.handle(moved, RequestCancel(by="ann"))
    for job in (first, second, third):
        request = RequestBuild(TENANT, "ann", PROJECT, "a list")
        await handler.handle(job, request, command_id=f"request-{job.job}")
    await store.work.set_cap(TENANT, 2)
    await store.quotas.note(moved, 1, day_of(datetime.now(UTC)), Usage(1))
    await store.quotas.count_from(TENANT, day_of(datetime.now(UTC)), Spent(1))

    lost, kept = await store.work.claim(partition, "w1", free_slots=2, lease_ms=60_000)
    await store.work.release(lost)
    claim, _ = await store.work.claim(partition, "w2", free_slots=2, lease_ms=0)
    await scripts.plain(
        "heartbeat",
        [keys.runs, keys.work(claim.work_class)],
        [claim.ref.job, claim.worker, claim.attempt],
    )
    with pytest.raises(Fenced):
        await store.progress(kept, "log", {"text": "ghost"}, time=datetime.now(UTC))

    job = claim.ref
    await handler.handle(job, StartJob("w2", claim.attempt), claim=claim)
    await store.progress(claim, "log", {"text": "a line"}, time=datetime.now(UTC))
    for phase in Phase:
        await handler.handle(job, StartPhase(phase), claim=claim)
        await handler.handle(job, CompletePhase(phase, duration_ms=1), claim=claim)
    await redis.delete(keys.builds)
    done = await handler.handle(job, FinishBuild(build_number=1), claim=claim)
    for other in (first, second, third):
        if other != job:
            await handler.handle(other, RequestCancel(by="ann"), command_id=f"end-{other.job}")

    await Projector(store, engine).catch_up()
    await Housekeeper(store, keep_s=0, keep_events=0, lease_s=0).keep(partition)
    await forget_streams(store, partition, await newest_events(engine, partition, [first.job]))
    await redis.set(keys.command(TENANT, "old"), f"asked {first.job} 1 1-1")
    await forget_commands(store, TENANT, {first.job})
    await redis.delete(keys.job(job.job))
    late = NewEvent(id=str(uuid4()), time=datetime.now(UTC), payload=CancelRequested(by="ann"))
    await store.append(job, PROJECT, [late], expected_version=done.job.version)
    assert await store.scripts.plain("rate", ["hr:{rate}:sandboxes:local"], [1, 1]) == [b"ok", 0]
    await redis.hset(keys.meta, "run", "of the server before")
    await store.verification.verify_again()


async def test_every_script_touches_only_the_keys_it_is_called_with_and_they_share_a_slot(
    calls: Calls, redis: Redis, archive: Archive, engine: AsyncEngine
) -> None:
    store = await open_log(redis, archive, partitions=PARTITIONS, tenant_cap=1)
    await live(CommandHandler(store), redis, engine)
    assert {name for name, _, _ in calls.made} == {file.stem for file in LUA.glob("*.lua")}
    for name, keys, args in calls.made:
        assert len({key_slot(key.encode()) for key in keys}) == 1, (name, keys)
        # A script that is given no key but in KEYS, and knows none, has none to touch elsewhere.
        assert not [arg for arg in args if "hr:" in arg], name


@pytest.mark.parametrize("file", sorted(LUA.rglob("*.lua")), ids=lambda file: file.stem)
def test_no_script_knows_what_keys_are_called(file: Path) -> None:
    assert "hr:" not in file.read_text()


async def test_a_script_that_touches_another_key_of_its_partition_is_caught(
    calls: Calls, redis: Redis
) -> None:
    own, other = "hr:{1}:meta", "hr:{1}:log"
    script = "--[[ any: ]] return redis.call('EXISTS', %s)"
    assert await redis.register_script(script % "KEYS[1]")(keys=[own], args=[]) == 0
    for key in (f"'{other}'", "ARGV[1]"):
        with pytest.raises(ResponseError, match=r"can't access|No permissions"):
            await redis.register_script(script % key)(keys=[own], args=[other])
