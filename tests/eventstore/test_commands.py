"""Command ids: whoever asks twice, at once, later or from elsewhere, is answered once."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Appended,
    Archive,
    CommandHandler,
    CommandId,
    CommandIdReused,
    EventStore,
    Handled,
    Housekeeper,
    RedisUnavailable,
    connect_redis,
    open_log,
)
from projector import Projector
from schemas import CommandRefused, JobIsTerminal, JobRef, Phase, Status
from schemas.commands import (
    CompletePhase,
    ExpirePreview,
    RequestBuild,
    RequestCancel,
    StartJob,
    StartPhase,
)
from service.embedded import Servers
from tests.logs import PARTITIONS

pytestmark = pytest.mark.both_servers

TENANT = "acme"
NEIGHBOUR = "globex"
"""In the same partition of four."""
ID = "c-1"
DAY_MS = 24 * 60 * 60 * 1000


def ref(tenant: str = TENANT) -> JobRef:
    return JobRef(tenant, str(uuid4()))


def build(goal: str = "a list", tenant: str = TENANT) -> RequestBuild:
    return RequestBuild(tenant, "ann", "shop", goal)


async def ask(handler: CommandHandler, goal: str = "a list", tenant: str = TENANT) -> Handled:
    """A request to build, always with the same command id, each time for a new job."""
    return await handler.handle(ref(tenant), build(goal, tenant), command_id=ID)


async def logged(store: EventStore, tenant: str = TENANT) -> list[str]:
    return [entry.event.job for entry in await store.read_log(store.partition(tenant), None)]


@pytest.fixture
async def elsewhere(
    handler: CommandHandler, servers: Servers, archive: Archive
) -> AsyncIterator[CommandHandler]:
    """What another process has: a store of its own on connections of its own."""
    redis = connect_redis(servers.redis_url)
    yield CommandHandler(await open_log(redis, archive, partitions=PARTITIONS))
    await redis.aclose()


async def test_of_twenty_who_ask_at_once_one_is_answered_first_and_all_alike(
    handler: CommandHandler,
) -> None:
    answers: list[Handled] = []

    async def once() -> None:
        answers.append(await ask(handler))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(once)
    assert sorted(answer.repeated for answer in answers) == [False] + [True] * 19
    assert len({(answer.job.job, answer.position) for answer in answers}) == 1
    assert await logged(handler.store) == [answers[0].job.job]


async def test_who_lost_the_answer_and_asks_again_gets_it(
    handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = handler.store.append

    async def unanswered(*args: Any, **kwargs: Any) -> Appended:
        await append(*args, **kwargs)
        raise RedisUnavailable("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(handler.store, "append", unanswered)
        with pytest.raises(RedisUnavailable):
            await ask(handler)
    answer = await ask(handler)
    assert answer.repeated
    assert await logged(handler.store) == [answer.job.job]


async def test_a_command_repeated_from_another_process_is_known_there(
    handler: CommandHandler, elsewhere: CommandHandler
) -> None:
    first = await ask(handler)
    again = await ask(elsewhere)
    assert (again.job.job, again.position, again.repeated) == (first.job.job, first.position, True)


ASKING = """
import asyncio, json, sys
from eventstore import Archive, CommandHandler, connect_postgres, connect_redis, open_log
from schemas import JobRef
from schemas.commands import RequestBuild

async def main(redis_url, database_url, partitions, tenant, job, command_id):
    redis, engine = connect_redis(redis_url), connect_postgres(database_url)
    store = await open_log(redis, Archive(engine), partitions=int(partitions))
    command = RequestBuild(tenant, "ann", "shop", "a list")
    answer = await CommandHandler(store).handle(JobRef(tenant, job), command, command_id=command_id)
    print(json.dumps([answer.job.job, str(answer.position), answer.repeated]))
    await redis.aclose()
    await engine.dispose()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_command_repeated_by_a_program_that_starts_anew_is_known_to_it(
    handler: CommandHandler, servers: Servers, database_url: str
) -> None:
    first = await ask(handler)
    where = [servers.redis_url, database_url, str(PARTITIONS)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ASKING, *where, TENANT, ref().job, ID, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert json.loads(output.splitlines()[-1]) == [first.job.job, str(first.position), True]


async def test_another_tenant_of_the_partition_has_ids_of_its_own(handler: CommandHandler) -> None:
    assert handler.store.partition(NEIGHBOUR) == handler.store.partition(TENANT)
    mine, theirs = await ask(handler), await ask(handler, "a shop", NEIGHBOUR)
    assert not theirs.repeated
    assert await logged(handler.store) == [mine.job.job, theirs.job.job]


async def test_a_known_id_with_another_request_is_refused_with_the_job_it_stands_for(
    handler: CommandHandler,
) -> None:
    first = await ask(handler)
    for command in (build("a shop"), RequestCancel(by="ann")):
        with pytest.raises(CommandIdReused) as caught:
            await handler.handle(JobRef(TENANT, first.job.job), command, command_id=ID)
        assert (caught.value.command_id, caught.value.job) == (ID, first.job.job)
    assert len(await logged(handler.store)) == 1


async def test_the_same_cancel_of_another_job_is_another_request(handler: CommandHandler) -> None:
    jobs = [(await handler.handle(ref(), build())).job.job for _ in range(2)]
    await handler.handle(JobRef(TENANT, jobs[0]), RequestCancel("ann"), command_id=ID)
    with pytest.raises(CommandIdReused):
        await handler.handle(JobRef(TENANT, jobs[1]), RequestCancel("ann"), command_id=ID)


async def test_of_two_who_use_one_id_for_two_requests_at_once_one_is_refused(
    handler: CommandHandler,
) -> None:
    outcomes: list[str] = []

    async def once(goal: str) -> None:
        try:
            await ask(handler, goal)
            outcomes.append("appended")
        except CommandIdReused:
            outcomes.append("refused")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(once, "a list")
        tasks.start_soon(once, "a shop")
    assert sorted(outcomes) == ["appended", "refused"]
    assert len(await logged(handler.store)) == 1


async def test_a_repeated_cancel_is_no_conflict_though_a_second_one_is(
    handler: CommandHandler,
) -> None:
    job = ref()
    await handler.handle(job, build())
    first = await handler.handle(job, RequestCancel("ann"), command_id=ID)
    again = await handler.handle(job, RequestCancel("ann"), command_id=ID)
    assert (again.position, again.repeated) == (first.position, True)
    with pytest.raises(JobIsTerminal):
        await handler.handle(job, RequestCancel("ann"), command_id="c-2")


async def test_a_command_that_appended_nothing_is_answered_alike_when_that_would_be_wrong_by_now(
    handler: CommandHandler,
) -> None:
    job = ref()
    await handler.handle(job, build())
    await handler.handle(job, StartJob("w1", 1))
    await handler.handle(job, RequestCancel("ann"))
    nothing = await handler.handle(job, RequestCancel("ann"), command_id=ID)
    assert nothing.events == ()
    assert not nothing.repeated
    again = await handler.handle(job, RequestCancel("ann"), command_id=ID)
    assert (again.position, again.repeated) == (nothing.position, True)


async def test_a_repeated_command_is_answered_after_the_stream_of_its_job_has_expired(
    handler: CommandHandler, redis: Redis, engine: AsyncEngine
) -> None:
    store, first = handler.store, await ask(handler)
    job = JobRef(TENANT, first.job.job)
    await handler.handle(job, RequestCancel("ann"))
    await expire(store, job, engine)
    again = await ask(handler)
    assert (again.position, again.repeated) == (first.position, True)
    assert again.job.status is Status.CANCELLED
    assert not await redis.exists(store.keys(TENANT).job(job.job))


async def test_a_command_to_a_job_whose_stream_has_expired_is_decided_and_remembered(
    handler: CommandHandler, redis: Redis, engine: AsyncEngine
) -> None:
    store, job = handler.store, ref()
    await handler.handle(job, build())
    await handler.handle(job, RequestCancel("ann"))
    await expire(store, job, engine)
    command = CommandId(ID, "asked")
    await store.append(job, "shop", [], expected_version=2, command=command)
    known = await store.find_command(TENANT, command)
    assert known is not None
    assert (known.job, known.version) == (job.job, 2)
    with pytest.raises(JobIsTerminal):
        await handler.handle(job, RequestCancel("bob"))
    # What was put back for it does not stay for ever.
    assert await redis.pttl(store.keys(TENANT).job(job.job)) > 0


async def test_a_refused_command_may_be_asked_again_under_the_same_id(
    handler: CommandHandler,
) -> None:
    job = ref()
    await handler.handle(job, build())
    with pytest.raises(CommandRefused, match="no preview"):
        await handler.handle(job, ExpirePreview("time"), command_id=ID)
    answer = await handler.handle(job, RequestCancel("ann"), command_id=ID)
    assert answer.job.status is Status.CANCELLED


async def test_an_answer_is_kept_for_a_day(handler: CommandHandler, redis: Redis) -> None:
    first = await ask(handler)
    key = handler.store.keys(TENANT).command(TENANT, ID)
    left_ms = await redis.pttl(key)
    # The test itself takes less than a minute of that day.
    assert DAY_MS - 60_000 < left_ms <= DAY_MS
    await redis.delete(key)
    later = await ask(handler)
    assert not later.repeated
    assert later.job.job != first.job.job


async def expire(store: EventStore, job: JobRef, engine: AsyncEngine) -> None:
    """Archive the log, cut it, and let the time of the job's stream run out."""
    await Projector(store, engine).catch_up()
    keys = store.keys(job.tenant)
    await Housekeeper(store, keep_s=0, keep_events=0, lease_s=60).trim(keys.partition)
    assert await store.redis.pttl(keys.job(job.job)) > 0
    await store.redis.delete(keys.job(job.job))


# --- several commands in a row -------------------------------------------------------------------


async def test_commands_in_a_row_are_decided_each_on_what_the_one_before_led_to(
    handler: CommandHandler,
) -> None:
    target = ref()
    await handler.handle(target, build())
    handled = await handler.handle(
        target,
        StartJob("w", 1),
        StartPhase(),
        CompletePhase(Phase.SCAFFOLD, duration_ms=1),
        StartPhase(),
    )
    assert [event.version for event in handled.events] == [2, 3, 4, 5]
    assert handled.job == await handler.load(target)
    assert (handled.job.status, handled.job.version) == (Status.CODE, 5)
    assert list(handled.events) == (await handler.store.read_job(target))[1:]
    assert handled.position is not None
    assert await handler.store.log_end(handled.position.partition) == handled.position


async def test_of_commands_in_a_row_none_is_carried_out_when_one_is_refused(
    handler: CommandHandler,
) -> None:
    target = ref()
    await handler.handle(target, build())
    with pytest.raises(CommandRefused, match="not next"):
        await handler.handle(target, StartJob("w", 1), StartPhase(Phase.CODE))
    assert (await handler.load(target)).version == 1


async def test_commands_in_a_row_are_decided_again_when_somebody_else_spoke(
    handler: CommandHandler,
) -> None:
    target = ref()
    queued = await handler.handle(target, build())
    await handler.handle(target, StartJob("w", 1))
    with pytest.raises(CommandRefused, match="attempt 1 was started already"):
        await handler.handle(target, StartJob("w", 1), StartPhase(), job=queued.job)
    handled = await handler.handle(target, StartJob("w", 2), StartPhase(), job=queued.job)
    assert [event.version for event in handled.events] == [3, 4]
