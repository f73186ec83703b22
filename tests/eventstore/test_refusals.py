"""What is refused has changed nothing: all keys are compared, type and content."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import eventstore
from eventstore import (
    Archive,
    Claim,
    CommandHandler,
    CommandId,
    DayLimits,
    EventStore,
    EventStoreError,
    Fenced,
    Housekeeper,
    LogDamaged,
    LogMissing,
    LogUnverified,
    PayloadRefused,
    QuotaSpent,
    Spent,
    TooManyWaiting,
    VersionConflict,
)
from eventstore import store as store_module
from eventstore.erasing import forget_commands, forget_streams, newest_events
from eventstore.keys import Keys
from eventstore.scripts import Scripts, refusal
from eventstore.verification import Verification
from projector import Projector
from schemas import JobRef, NewEvent, Phase
from schemas.commands import CompletePhase, RequestBuild, StartJob, StartPhase, Usage
from schemas.events import (
    CancelRequested,
    JobCancelled,
    JobQueued,
    JobReady,
    Known,
    RetryScheduled,
)

TENANT, PROJECT = "acme", "shop"
LEASE_MS = 60_000
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SCRIPTS = sorted(path.stem for path in Path(eventstore.__file__).parent.glob("lua/*.lua"))


class Scene:
    """A log with a job that runs, one that waits, and one that has ended and is archived."""

    def __init__(self, handler: CommandHandler, engine: AsyncEngine) -> None:
        self.handler, self.engine = handler, engine
        self.store: EventStore = handler.store
        self.redis: Redis = handler.store.redis
        self.keys: Keys = handler.store.keys(TENANT)
        self.running, self.waiting, self.ended = (JobRef(TENANT, str(uuid4())) for _ in range(3))
        self.claim: Claim

    async def set(self) -> None:
        await self.queue(self.ended)
        await self.append(self.ended, JobCancelled(by="ann"), expected_version=1)
        await Projector(self.store, self.engine).catch_up()
        await self.store.work.set_cap(TENANT, 1)
        await self.queue(self.running)
        await self.queue(self.waiting)
        (self.claim,) = await self.take()
        await self.handler.handle(self.running, StartJob("w1", 1), claim=self.claim)
        for phase in Phase:
            await self.handler.handle(self.running, StartPhase(phase), claim=self.claim)
            done = CompletePhase(phase, duration_ms=1)
            await self.handler.handle(self.running, done, claim=self.claim)
        await self.store.last_build_number(TENANT, PROJECT)

    async def queue(self, ref: JobRef) -> None:
        await self.handler.handle(ref, RequestBuild(TENANT, "ann", PROJECT, "a list"))

    async def append(self, ref: JobRef, *payloads: Known, **how: Any) -> None:
        events = [NewEvent(str(uuid4()), NOW, payload) for payload in payloads]
        await self.store.append(ref, PROJECT, events, **how)

    async def finish(self) -> None:
        """Everything that an append may do: for a worker, with a command id, with admission."""
        retry = RetryScheduled(
            phase=Phase.CHECKS, step="x", tries=1, kind="x", message="x", wait_s=0, input_tokens=1
        )
        await self.append(
            self.running,
            retry,
            JobReady(build_number=1, build_version="build_v0_1"),
            expected_version=10,
            claim=self.claim,
            command=CommandId("c-1", "asked"),
            build_number=1,
        )

    async def take(self) -> list[Claim]:
        return await self.store.work.claim(
            self.keys.partition,
            "w1",
            free_slots=9,
            lease_ms=LEASE_MS,
            heard_of=[self.waiting.job],
        )

    async def tell(self, **data: object) -> None:
        await self.store.progress(self.claim, "log", data, time=NOW)

    async def beat(self) -> None:
        await self.store.scripts.plain(
            "heartbeat",
            [self.keys.runs, self.keys.work("normal")],
            [self.running.job, "w1", 1],
        )

    async def trim(self) -> None:
        housekeeper = Housekeeper(self.store, keep_s=0, keep_events=0, lease_s=1)
        await housekeeper.trim(self.keys.partition)

    async def go_on_after_expiry(self) -> None:
        await self.redis.delete(self.keys.job(self.ended.job))
        await self.append(self.ended, CancelRequested(by="ann"), expected_version=2)

    async def ask_for_a_forgotten_number(self) -> None:
        await self.redis.delete(self.keys.builds)
        await self.store.last_build_number(TENANT, PROJECT)

    async def make_anew(self) -> None:
        await self.redis.flushall()
        async with self.engine.begin() as connection:
            for table in ("events", "log_epochs", "log_partitions"):
                await connection.execute(text(f"DELETE FROM headrace.{table}"))
        await self.store.verification.verify_again()

    async def requeue(self) -> None:
        args = [str(uuid4()), TENANT, PROJECT, "normal", 1, 1, 9, 1]
        await self.call("requeue", [*self.keys.admission(TENANT), self.keys.cancelling], args)

    async def restore(self) -> None:
        job, end = str(uuid4()), await self.store.log_end(self.keys.partition)
        names = [self.keys.meta, self.keys.log, self.keys.bell, self.keys.job(job)]
        event = [1, str(uuid4()), JobQueued.type, TENANT, PROJECT, job, 1, "2026", "", "", "{}"]
        await self.call("restore", names, [end.seq, *event])

    async def forget(self) -> None:
        newest = await newest_events(self.engine, self.keys.partition, [self.ended.job])
        await forget_streams(self.store, self.keys.partition, newest)

    async def forget_commands(self) -> None:
        await self.redis.set(self.keys.command(TENANT, "c-0"), f"asked {self.ended.job} 1 1-1")
        await forget_commands(self.store, TENANT, {self.ended.job})

    async def call(self, script: str, keys: list[str], args: list[Any]) -> None:
        """Call a script of those that replaying an export needs."""
        answer = await self.store.scripts(self.keys.partition, script, keys, args)
        if answer[0] != b"ok":
            raise refusal(answer, partition=self.keys.partition)

    async def come_back_on_another_server(self) -> None:
        await self.redis.hset(self.keys.meta, "run", "before")
        await self.store.verification.verify_again()


@pytest.fixture
async def scene(handler: CommandHandler, engine: AsyncEngine) -> Scene:
    made = Scene(handler, engine)
    await made.set()
    return made


async def everything(redis: Redis) -> dict[bytes, tuple[bytes, bytes | None]]:
    """All keys with type and serialised value."""
    return {
        key: (await redis.type(key), await redis.dump(key))  # type: ignore[misc]
        for key in await redis.keys("*")
    }


SEALED = ["admit", "append", "claim", "forget", "requeue", "restore", "trim"]
"""The scripts that are told which log they are to write to."""

# --- calls of scripts ----------------------------------------------------------------------------

CALLS: dict[str, Callable[[Scene], Awaitable[object]]] = {
    "admit": lambda scene: scene.store.work.set_cap(TENANT, 9),
    "append": Scene.finish,
    "claim": Scene.take,
    "count_from": lambda scene: scene.store.quotas.count_from(TENANT, NOW.date(), Spent(1)),
    "create": Scene.make_anew,
    "forget": Scene.forget,
    "forget_commands": Scene.forget_commands,
    "heartbeat": Scene.beat,
    "progress": lambda scene: scene.tell(text="…"),
    "rate": lambda scene: scene.store.scripts.plain("rate", ["hr:{rate}:sandboxes:e2b"], [1, 1]),
    "release": lambda scene: scene.store.work.release(scene.claim),
    "requeue": Scene.requeue,
    "regroup": lambda scene: scene.store.verification.verify_again(),
    "reopen": Scene.come_back_on_another_server,
    "restore": Scene.restore,
    "retire": lambda scene: scene.store.work.retire(0, silent_ms=0),
    "seed": Scene.go_on_after_expiry,
    "seed_number": Scene.ask_for_a_forgotten_number,
    "trim": Scene.trim,
    "untold": lambda scene: scene.store.quotas.note(scene.running, 1, NOW.date(), Usage(1)),
}


class Caught(Exception):
    """A call of a script that was not made."""

    def __init__(self, keys: list[str], arguments: list[Any]) -> None:
        self.keys, self.arguments = keys, arguments


async def caught_call(scene: Scene, script: str) -> Caught:
    """The keys and arguments of a call of `script` that would succeed, caught on its way."""
    real = Scripts.__call__

    async def catch(self: Scripts, name: str, keys: list[str], args: list[Any]) -> Any:
        if name == script:
            raise Caught(keys, args)
        return await real(self, name, keys, args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripts, "__call__", catch)
        with pytest.raises(Caught) as caught:
            await CALLS[script](scene)
    return caught.value


def test_the_calls_here_are_of_every_script() -> None:
    assert sorted(CALLS) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
async def test_nothing_changes_when_a_script_is_called_with_too_little_or_too_much(
    script: str, scene: Scene
) -> None:
    call = await caught_call(scene, script)
    before = await everything(scene.redis)
    for keys, args in (
        (call.keys[:-1], call.arguments),
        ([*call.keys, scene.keys.log], call.arguments),
        (call.keys, call.arguments[:-1]),
        (call.keys, [*call.arguments, "x"]),
        ([], []),
    ):
        if script == "restore" and len(keys) > len(call.keys):
            continue  # it takes as many streams as there are jobs
        with pytest.raises(EventStoreError, match=f"HEADRACE {script}: wrong number"):
            await scene.store.scripts.plain(script, keys, args)
        assert await everything(scene.redis) == before


@pytest.mark.parametrize(
    "script",
    [
        "admit",
        "append",
        "claim",
        "heartbeat",
        "progress",
        "regroup",
        "release",
        "requeue",
        "restore",
        "trim",
    ],
)
async def test_nothing_changes_when_a_key_holds_what_it_cannot_hold(
    script: str, scene: Scene
) -> None:
    call = await caught_call(scene, script)
    for key in call.keys:
        there = await scene.redis.exists(key)
        if there:
            await scene.redis.rename(key, "away")
        if ":cmd:" in key:
            await scene.redis.lpush(key, "not a string")
        else:
            await scene.redis.set(key, "a string")
        before = await everything(scene.redis)
        with pytest.raises(LogDamaged):
            await scene.store.scripts.plain(script, call.keys, call.arguments)
        assert await everything(scene.redis) == before, key
        await scene.redis.delete(key)
        if there:
            await scene.redis.rename("away", key)
    # It was for the keys alone that it was refused.
    answer = await scene.store.scripts.plain(script, call.keys, call.arguments)
    assert (answer[0] if isinstance(answer, list) else answer) in (b"ok", b"held", 1)


@pytest.mark.parametrize("script", SEALED)
@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda redis, meta: redis.delete(meta), LogMissing),
        (lambda redis, meta: redis.hdel(meta, "lineage"), LogMissing),
        (lambda redis, meta: redis.hset(meta, "lineage", str(uuid4())), LogUnverified),
    ],
    ids=["meta is missing", "lineage is missing", "lineage is another"],
)
async def test_nothing_changes_when_this_is_not_the_log_that_was_opened(
    script: str,
    damage: Callable[[Redis, str], Awaitable[object]],
    error: type[EventStoreError],
    scene: Scene,
) -> None:
    await damage(scene.redis, scene.keys.meta)
    before = await everything(scene.redis)
    with pytest.raises(error):
        await CALLS[script](scene)
    assert await everything(scene.redis) == before


@pytest.mark.parametrize("script", SEALED)
async def test_nothing_changes_when_the_log_was_elsewhere_meanwhile_and_cannot_be_verified(
    script: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: Verification, refused: str) -> None:
        raise LogUnverified(0, "it has lost events")

    monkeypatch.setattr(Verification, "renew", refuse)
    await scene.redis.hset(scene.keys.meta, "run", "elsewhere")
    before = await everything(scene.redis)
    with pytest.raises(LogUnverified, match="it has lost events"):
        await CALLS[script](scene)
    assert await everything(scene.redis) == before


async def test_nothing_changes_when_the_log_was_made_by_a_newer_headrace(
    scene: Scene, archive: Archive
) -> None:
    await scene.redis.hset(scene.keys.meta, "format", "3")
    before = await everything(scene.redis)
    with pytest.raises(LogUnverified, match="format 3"):
        await scene.store.verification.verify_again()
    assert await everything(scene.redis) == before


# --- appends and lines ---------------------------------------------------------------------------


def goal(text: str) -> JobQueued:
    """A payload past the checks at the door."""
    return JobQueued.model_construct(tenant=TENANT, user_id="ann", project_id=PROJECT, goal=text)


def fresh(payload: Known) -> Callable[[Scene], Awaitable[object]]:
    return lambda scene: scene.append(JobRef(TENANT, str(uuid4())), payload, expected_version=0)


REFUSED: dict[str, tuple[Callable[[Scene], Awaitable[object]], type[EventStoreError]]] = {
    "the version is from the future": (
        lambda scene: scene.append(scene.running, CancelRequested(by="a"), expected_version=99),
        VersionConflict,
    ),
    "the version is from the past": (
        lambda scene: scene.append(scene.running, CancelRequested(by="a"), expected_version=3),
        VersionConflict,
    ),
    "the worker never had the job": (
        lambda scene: scene.append(
            scene.waiting,
            CancelRequested(by="a"),
            expected_version=1,
            claim=scene.claim,
        ),
        Fenced,
    ),
    "too many of the tenant's jobs wait": (fresh(goal("a list")), TooManyWaiting),
    "the tenant's day is used up": (
        lambda scene: scene.append(
            JobRef(TENANT, str(uuid4())),
            goal("a list"),
            expected_version=0,
            command=CommandId("c-2", "asked"),
            day_limits=DayLimits(jobs=0),
        ),
        QuotaSpent,
    ),
    "an event holds a NUL": (fresh(goal("a\0b")), PayloadRefused),
    "an event holds half a surrogate pair": (fresh(goal("a\ud800b")), PayloadRefused),
    "an event is too large": (fresh(goal("x" * (256 * 1024))), PayloadRefused),
    "a line holds a NUL": (lambda scene: scene.tell(text="a\0b"), PayloadRefused),
    "a line holds half a surrogate pair": (
        lambda scene: scene.tell(text="a\ud800b"),
        PayloadRefused,
    ),
    "a line is too large": (lambda scene: scene.tell(text="x" * (64 * 1024)), PayloadRefused),
}


@pytest.mark.parametrize("reason", REFUSED)
async def test_nothing_changes_when(
    reason: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_WAITING", 1)
    act, error = REFUSED[reason]
    before = await everything(scene.redis)
    with pytest.raises(error):
        await act(scene)
    assert await everything(scene.redis) == before


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "\\", "ud800", "é\U0001f600"])
async def test_text_that_only_looks_like_it_is_kept(text: str, scene: Scene) -> None:
    ref = JobRef(TENANT, str(uuid4()))
    await scene.append(ref, goal(text), expected_version=0)
    (event,) = await scene.store.read_job(ref)
    assert isinstance(event.payload, JobQueued)
    assert event.payload.goal == text
    await scene.tell(text=text)
