"""Events of other versions than today's, from the log and the archive to the tables and back.

Upcasting happens on reading. What was recorded stays as it is, byte for byte, so that whatever a
later version learns to read is still there.
"""

from typing import Any, ClassVar, cast

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import JobRow, Projector, job_by_id, rebuild, row_of, verify
from schemas import JobRef, UndecodableEvent, fold
from schemas.decoding import PAYLOADS, UPCASTERS, Upcaster
from schemas.events import JobQueued, JobStarted, Known, Payload, PreviewExpired
from tests.histories import build, queued, recorded, started
from tests.projector.contents import contents, execute, whole_log
from tests.projector.writing import write

pytestmark = pytest.mark.anyio


class FirstQueued(Payload):
    """`JobQueued` as it was before anybody had thought of goals."""

    type: ClassVar[str] = "JobQueued"
    tenant: str = "acme"
    owner: str = "ann"
    project_id: str = "shop"
    title: str = "Listen für Zwei"
    text: str = "🙂"


class FirstStarted(Payload):
    """`JobStarted` before workers had names."""

    type: ClassVar[str] = "JobStarted"
    attempt: int = 1
    host: str = "w1"


class Sketched(Payload):
    """An event that only a newer version knows."""

    type: ClassVar[str] = "Sketched"
    strokes: tuple[dict[str, int], ...] = ({}, {"": 2**100})
    nothing: tuple[int, ...] = ()


def goal_from_title(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    goal = f"{values.pop('title')}: {values.pop('text')}"
    return "JobQueued.v2", {**values, "goal": goal}


def user_from_owner(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "JobQueued.v3", {**values, "user_id": values.pop("owner")}


def worker_from_host(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "JobStarted.v2", {**values, "worker": values.pop("host")}


# Whole up to its end: a first append with a JobReady has all the keys that a JobQueued asks for.
OLD_HISTORY = cast("list[Known]", [FirstQueued(), FirstStarted(), *build()[2:]])
SAME_HISTORY_TODAY = [queued(goal="Listen für Zwei: 🙂"), started(), *build()[2:]]


@pytest.fixture
def upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code after two changes of JobQueued and one of JobStarted."""
    chain: dict[str, Upcaster] = {
        "JobQueued": goal_from_title,
        "JobQueued.v2": user_from_owner,
        "JobStarted": worker_from_host,
    }
    for old, upcaster in chain.items():
        monkeypatch.setitem(UPCASTERS, old, upcaster)
    models: dict[str, type[Known]] = {"JobQueued.v3": JobQueued, "JobStarted.v2": JobStarted}
    for newest, model in models.items():
        monkeypatch.delitem(PAYLOADS, model.type)
        monkeypatch.setitem(PAYLOADS, newest, model)


async def row_in_table(engine: AsyncEngine, job: JobRef) -> JobRow:
    async with engine.connect() as connection:
        found = await job_by_id(connection, job.tenant, job.job)
    assert found is not None
    return found


def bytes_of(history: list[Known]) -> list[tuple[str, bytes]]:
    return [(payload.type, payload.model_dump_json().encode()) for payload in history]


# --- older than today ----------------------------------------------------------------------------


@pytest.mark.usefixtures("upgraded")
async def test_a_history_of_old_versions_folds_to_the_row_of_the_same_history_today(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, OLD_HISTORY)
    await projector.catch_up()
    expected = fold(recorded(SAME_HISTORY_TODAY, job=job.job))
    assert expected is not None
    found = await row_in_table(engine, job)
    assert (found.goal, found.user_id) == ("Listen für Zwei: 🙂", "ann")
    assert found.model_copy(update={"position": None}) == row_of(expected)


@pytest.mark.usefixtures("upgraded")
async def test_an_old_job_goes_on_from_what_stands_in_the_archive(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, OLD_HISTORY)
    await projector.catch_up()
    expired = PreviewExpired(reason="time-out")
    await write(store, [expired], job=job.job, after=len(OLD_HISTORY))
    await projector.catch_up()
    found = await row_in_table(engine, job)
    assert (found.goal, found.sandbox_id) == ("Listen für Zwei: 🙂", None)
    assert found.version == len(OLD_HISTORY) + 1


@pytest.mark.usefixtures("upgraded")
@pytest.mark.parametrize("stream_expired", [False, True])
async def test_an_old_job_is_read_as_of_today_with_its_recorded_types_and_bytes(
    store: EventStore, projector: Projector, redis: Redis, stream_expired: bool
) -> None:
    job = await write(store, OLD_HISTORY)
    await projector.catch_up()
    if stream_expired:
        await redis.delete(store.keys(job.tenant).job(job.job))
    events = await store.read_job(job)
    assert [event.payload for event in events] == SAME_HISTORY_TODAY
    assert [(event.type, event.data) for event in events] == bytes_of(OLD_HISTORY)


@pytest.mark.usefixtures("upgraded")
async def test_reading_old_events_rewrites_neither_log_nor_archive(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, OLD_HISTORY)
    await projector.catch_up()
    before = await contents(engine)
    assert (await verify(engine))[1] == []
    await rebuild(engine)
    assert await contents(engine) == before
    archived = [(event["type"], event["data"]) for event in before["events"]]
    logged = [(entry.event.type, entry.event.data) for entry in await whole_log(store)]
    assert archived == logged == bytes_of(OLD_HISTORY)


@pytest.mark.usefixtures("upgraded")
async def test_an_old_event_that_its_upcaster_cannot_read_is_named_with_the_reason(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, OLD_HISTORY)
    await projector.catch_up()
    await execute(engine, """UPDATE headrace.events SET data = '{"title":"x"}' WHERE version = 1""")
    with pytest.raises(UndecodableEvent, match="JobQueued cannot be decoded: KeyError: 'text'"):
        await store.archive.read_job(job.tenant, job.job)


# --- newer than today ----------------------------------------------------------------------------


async def test_an_event_of_a_newer_version_changes_nothing_but_where_its_row_stands(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    job = await write(store, build())
    await projector.catch_up()
    before = await row_in_table(engine, job)
    await write(store, [cast("Known", Sketched())], job=job.job, after=len(build()))
    await projector.catch_up()
    after = await row_in_table(engine, job)
    moved = {"version", "updated_at", "position"}
    assert after.model_dump(exclude=moved) == before.model_dump(exclude=moved)
    assert after.version == before.version + 1


async def test_an_event_of_a_newer_version_is_kept_byte_for_byte(
    store: EventStore, engine: AsyncEngine, projector: Projector, redis: Redis
) -> None:
    history = [queued(), cast("Known", Sketched()), started()]
    job = await write(store, history)
    await projector.catch_up()
    await rebuild(engine)
    await redis.delete(store.keys(job.tenant).job(job.job))
    archived = (await contents(engine))["events"]
    assert [(event["type"], event["data"]) for event in archived] == bytes_of(history)
    read = await store.read_job(job)
    assert [(event.type, event.data) for event in read] == bytes_of(history)


async def test_a_version_that_learns_a_type_later_makes_good_what_was_passed_over(
    store: EventStore, engine: AsyncEngine, projector: Projector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older_code:
        older_code.delitem(PAYLOADS, PreviewExpired.type)
        # Too long to be among the decoded payloads that are kept.
        expired = PreviewExpired(reason="the sandbox has come to the end of the time that it had")
        job = await write(store, [*build(), expired])
        await projector.catch_up()
        assert (await row_in_table(engine, job)).sandbox_id == "sb-1"
    last = (await row_in_table(engine, job)).position
    _, differences = await verify(engine)
    late = {"sandbox_id", "preview", "preview_url", "expires_at"}
    assert {(found.table, found.column) for found in differences} == {
        (table, column) for table in ("jobs", "builds") for column in late
    }
    assert {found.event for found in differences} == {f"PreviewExpired at {last}"}
    await rebuild(engine)
    assert (await row_in_table(engine, job)).sandbox_id is None
    assert (await verify(engine))[1] == []
