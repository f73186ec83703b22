"""Moving a log: whole or not at all, into another number of partitions, and nothing runs too soon.

The empty pair of servers that a log is moved to is the same one, emptied.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Admission,
    Archive,
    CommandHandler,
    EventStore,
    Housekeeper,
    Hub,
    ImportRefused,
    LogEntry,
    check_export,
    event_line,
    export_log,
    import_log,
    open_log,
    transfer,
    written_whole,
)
from eventstore.keys import Keys
from projector import Projector
from schemas import JobRef, Phase, Position, RecordedEvent
from schemas.commands import FailJob, RequestBuild
from schemas.events import CancelRequested, Known, UnknownEvent
from tests.histories import (
    SITUATIONS,
    build,
    entered,
    phases,
    queued,
    recorded,
    repaired_build,
    started,
)
from tests.projector.contents import READ_MODEL, contents, execute, whole_log
from tests.projector.writing import ONE_PER_PARTITION, write

ANOTHER_NUMBER = 3
LEASE_MS = 60_000


async def fill(store: EventStore) -> list[JobRef]:
    """In some partitions two tenants, and of each a job in every situation there is."""
    jobs = []
    for tenant in [*ONE_PER_PARTITION[:2], *(f"{name}-too" for name in ONE_PER_PARTITION[:2])]:
        for number, history in enumerate(SITUATIONS.values()):
            if history:
                jobs.append(await write(store, history, tenant=tenant, project=f"p-{number}"))
    return jobs


async def exported(hub: Hub, tenant: str | None = None) -> bytes:
    file = io.BytesIO()
    await export_log(hub, file, tenant=tenant)
    return file.getvalue()


async def empty_pair(
    redis: Redis, engine: AsyncEngine, *, partitions: int, tenant_cap: int = 1_000
) -> EventStore:
    """A log that was just made, on servers that had nothing."""
    await redis.flushall()
    await execute(
        engine,
        f"TRUNCATE {READ_MODEL}, headrace.events, headrace.fold_lock",
        "TRUNCATE headrace.log_partitions CASCADE",
    )
    return await open_log(redis, Archive(engine), partitions=partitions, tenant_cap=tenant_cap)


async def imported(store: EventStore, export: bytes) -> None:
    file = io.BytesIO(export)
    await import_log(store, file, check_export(file))


async def job_rows(engine: AsyncEngine) -> list[dict[str, Any]]:
    """The read model, but for where the events stand."""
    rows = (await contents(engine))["jobs"]
    return [{name: value for name, value in row.items() if name != "position"} for row in rows]


def export_of(*histories: Sequence[RecordedEvent]) -> bytes:
    """An export with these events, as `export_log` would write it."""
    events = [event for history in histories for event in history]
    lines = [
        event_line(LogEntry(Position(0, 1, seq), event)) for seq, event in enumerate(events, 1)
    ]
    return with_trailer(b"".join(lines))


def with_trailer(lines: bytes) -> bytes:
    trailer = {
        "headrace": "export",
        "events": lines.count(b"\n"),
        "sha256": hashlib.sha256(lines).hexdigest(),
    }
    return lines + json.dumps(trailer).encode() + b"\n"


def one_of(payloads: Sequence[Known], number: int, **fields: str) -> list[RecordedEvent]:
    """The events of job number `number`, of acme unless `fields` say otherwise."""
    return recorded(payloads, job=f"01900000-0000-7000-8000-{number:012}", **fields)  # type: ignore[arg-type]


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 500])
async def test_an_imported_log_folds_to_the_same_read_model_also_in_other_partitions(
    store: EventStore, hub: Hub, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(transfer, "_BATCH", batch)
    jobs = await fill(store)
    await Projector(store, engine).catch_up()
    rows = await job_rows(engine)
    histories = {ref: await store.read_job(ref) for ref in jobs}
    export = await exported(hub)

    target = await empty_pair(store.redis, engine, partitions=ANOTHER_NUMBER)
    await imported(target, export)
    assert {ref: await target.read_job(ref) for ref in jobs} == histories
    await Projector(target, engine).catch_up()
    assert await job_rows(engine) == rows
    assert len(rows) == len(jobs)


async def test_the_events_of_a_tenant_keep_their_order(
    store: EventStore, hub: Hub, engine: AsyncEngine
) -> None:
    await fill(store)
    before = await whole_log(store)
    export = await exported(hub)
    target = await empty_pair(store.redis, engine, partitions=ANOTHER_NUMBER)
    await imported(target, export)
    after = await whole_log(target)
    for tenant in ONE_PER_PARTITION[:2]:
        assert [entry.event for entry in after if entry.event.tenant == tenant] == [
            entry.event for entry in before if entry.event.tenant == tenant
        ]


async def test_a_log_that_was_trimmed_and_whose_streams_are_gone_is_exported_alike(
    store: EventStore, hub: Hub, engine: AsyncEngine
) -> None:
    jobs = await fill(store)
    before = await exported(hub)
    await Projector(store, engine).catch_up()
    housekeeper = Housekeeper(store, keep_s=0, keep_events=5, lease_s=10)
    for partition in {store.partition(ref.tenant) for ref in jobs}:
        assert await housekeeper.trim(partition)
    for ref in jobs[::2]:
        await store.redis.delete(store.keys(ref.tenant).job(ref.job))
    assert await exported(hub) == before


async def test_an_empty_log_gives_an_export_that_can_be_imported(
    store: EventStore, hub: Hub
) -> None:
    export = await exported(hub)
    assert export.count(b"\n") == 1
    await imported(store, export)


async def test_an_export_of_a_tenant_holds_its_events_and_no_others(
    store: EventStore, hub: Hub
) -> None:
    names = (f"neighbour-{number}" for number in range(99))
    neighbour = next(name for name in names if store.partition(name) == store.partition("acme"))
    for tenant in ("acme", neighbour, "acme", neighbour):
        await write(store, [queued(), started()], tenant=tenant)
    lines = (await exported(hub, "acme")).splitlines()
    ours = [entry for entry in await whole_log(store) if entry.event.tenant == "acme"]
    assert [json.loads(line)["id"] for line in lines[:-1]] == [entry.event.id for entry in ours]
    assert [json.loads(line)["position"] for line in lines[:-1]] == [
        str(entry.position) for entry in ours
    ]


@pytest.mark.parametrize(
    "data",
    [
        b'{"empty_list":[],"empty_object":{},"digits":123456789012345678901234567890,"f":1.10}',
        b'{"twice":1,"twice":2,"text":",\\"data\\":}"}',
        '{"text":"äöü \u2028"}'.encode(),
        b'{"huge":1e999}',
    ],
)
async def test_data_arrive_byte_for_byte(store: EventStore, hub: Hub, data: bytes) -> None:
    first, second = recorded([queued(), started()])
    praised = second._replace(type="JobPraised", data=data, payload=UnknownEvent())
    export = export_of([first, praised])
    await imported(store, export)
    events = await store.read_job(JobRef(first.tenant, first.job))
    assert events == [first, praised]
    again = (await exported(hub)).splitlines()
    assert [line.partition(b',"data":')[2] for line in again[:2]] == [
        first.data + b"}",
        data + b"}",
    ]


async def test_cause_and_trace_of_an_event_arrive(store: EventStore) -> None:
    (event,) = recorded([queued()])
    event = event._replace(cause="cmd-1", trace="00-abc-def-01")
    await imported(store, export_of([event]))
    assert await store.read_job(JobRef(event.tenant, event.job)) == [event]


def test_line_breaks_between_values_do_not_break_the_line() -> None:
    (event,) = recorded([queued()])
    pretty = json.dumps(json.loads(event.data), indent=1).replace("\n", "\r\n").encode()
    export = export_of([event._replace(data=pretty)])
    assert export.count(b"\n") == 2
    assert check_export(io.BytesIO(export)).events == 1


# --- queues --------------------------------------------------------------------------------------


async def test_jobs_that_had_not_ended_are_queued_again_with_their_attempts_and_no_others(
    store: EventStore,
) -> None:
    export = export_of(
        one_of(build(), 1),
        one_of([queued()], 2),
        one_of([queued(), started(), started(2), entered(Phase.SCAFFOLD)], 3),
    )
    await imported(store, export)
    partition = store.partition("acme")
    await store.redis.hset(Keys(partition).meta, "opened", 1)
    claims = await store.work.claim(partition, "w", free_slots=10, lease_ms=LEASE_MS)
    assert [(claim.ref.job[-1], claim.attempt) for claim in claims] == [("2", 1), ("3", 3)]
    assert await store.redis.hlen(Keys(partition).runs) == 2


async def test_jobs_queued_again_wait_behind_the_cap_in_their_order(
    redis: Redis, engine: AsyncEngine
) -> None:
    store = await empty_pair(redis, engine, partitions=ANOTHER_NUMBER, tenant_cap=2)
    await imported(store, export_of(*(one_of([queued()], number) for number in range(1, 6))))
    assert await store.work.waiting("acme") == 3
    partition = store.partition("acme")
    claims = await store.work.claim(partition, "w", free_slots=10, lease_ms=LEASE_MS)
    assert [claim.ref.job[-1] for claim in claims] == ["1", "2"]
    await store.work.set_cap("acme", 3)
    claims = await store.work.claim(partition, "w", free_slots=10, lease_ms=LEASE_MS)
    assert [claim.ref.job[-1] for claim in claims] == ["3"]


async def test_a_job_to_be_cancelled_that_is_queued_again_waits_for_nobodys_slot(
    redis: Redis, engine: AsyncEngine
) -> None:
    store = await empty_pair(redis, engine, partitions=ANOTHER_NUMBER, tenant_cap=1)
    to_be_cancelled = one_of([queued(), started(), CancelRequested(by="ann")], 3)
    jobs = [one_of([queued()], 1), one_of([queued()], 2), to_be_cancelled]
    await imported(store, export_of(*jobs))
    partition = store.partition("acme")
    claims = await store.work.claim(partition, "w", free_slots=10, lease_ms=LEASE_MS)
    assert [claim.ref.job[-1] for claim in claims] == ["1", "3"]
    for claim in claims:
        await CommandHandler(store).handle(claim.ref, FailJob("internal", "", "d"), claim=claim)
    (last,) = await store.work.claim(partition, "w", free_slots=10, lease_ms=LEASE_MS)
    assert last.ref.job[-1] == "2"
    assert await store.work.admission("acme") == Admission(running=1, cap=1, admitted=0)


async def test_a_job_to_be_cancelled_that_is_queued_again_is_taken_over_without_a_slot(
    store: EventStore,
) -> None:
    await imported(store, export_of(one_of([queued(), started(), CancelRequested(by="ann")], 1)))
    partition = store.partition("acme")
    (claim,) = await store.work.claim(partition, "gone", free_slots=1, lease_ms=LEASE_MS)
    await store.work.release(claim)  # at once, as if a lease had passed
    (taken,) = await store.work.claim(partition, "w", free_slots=0, lease_ms=LEASE_MS)
    assert taken.ref == claim.ref


async def test_the_next_build_of_an_imported_project_gets_the_next_number(
    store: EventStore, handler: CommandHandler
) -> None:
    await imported(store, export_of(one_of(build(1), 1), one_of(repaired_build(2), 2)))
    await handler.handle(JobRef("acme", "another"), RequestBuild("acme", "ann", "shop", "a list"))
    assert await store.last_build_number("acme", "shop") == 2


async def test_no_job_can_be_claimed_before_all_events_are_in(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_BATCH", 2)
    file = io.BytesIO(export_of(one_of([queued()], 1), one_of(build(), 2)))
    export = check_export(file)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        await import_log(store, file, export, on_progress=stop)
    partition = store.partition("acme")
    assert (await store.log_end(partition)).seq > 0
    assert not await store.work.claim(partition, "w", free_slots=10, lease_ms=LEASE_MS)
    with pytest.raises(ImportRefused, match=r"has events already .* interrupted import"):
        await import_log(store, file, export)


# --- refusals ------------------------------------------------------------------------------------

WHOLE = export_of(
    one_of([queued(), started(), *phases(Phase.SCAFFOLD)], 1), one_of([queued(), started()], 2)
)
LINES = WHOLE.splitlines(keepends=True)


def without(number: int) -> bytes:
    return b"".join(line for at, line in enumerate(LINES[:-1], 1) if at != number)


FAULTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends after 0 events .* it was cut"),
    "no last line": (b"".join(LINES[:-1]), "ends after 6 events .* it was cut"),
    "cut within a line": (WHOLE[:700], "ends within line .: it was cut"),
    "cut within the last line": (WHOLE[:-9], "line 7 ends an export that had other events"),
    "a changed goal": (WHOLE.replace(b"a list", b"a lost", 1), "line 7 .* it was changed"),
    "a line missing": (without(6) + LINES[-1], "line 6 .* it was changed"),
    "a gap": (with_trailer(without(2)), "line 2: job .* has version 3 where 2 comes next"),
    "no beginning": (with_trailer(without(5)), "line 5: job .* has version 2 where 1 comes"),
    "begun otherwise": (
        export_of(recorded([started()])),
        "line 1: job .* does not begin with JobQueued",
    ),
    "begun twice": (
        export_of(recorded([queued(), queued()])),
        "line 2: job .* does not begin with JobQueued",
    ),
    "two exports": (WHOLE + WHOLE, "line 7 is the last of an export, and more follows"),
    "not JSON": (b"job,state\n1,ready\n", "line 1 cannot be read"),
    "not ours": (with_trailer(b'{"specversion":"1.0","data":{}}\n'), "line 1 cannot be read"),
    "data that do not fit": (
        with_trailer(LINES[0].replace(b'"tier":"free"', b'"tier":"gold"')),
        "line 1 cannot be read: .*tier",
    ),
    "a build that comes twice": (
        export_of(one_of(build(1), 1), one_of(build(1), 2)),
        "build 1 of project shop comes after build 1",
    ),
    "an id that is no id": (
        with_trailer(LINES[0].replace(b'"tenant":"acme"', b'"tenant":"a b"', 1)),
        "line 1 cannot be read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_a_whole_export_is_refused(fault: str) -> None:
    content, message = FAULTS[fault]
    with pytest.raises(ImportRefused, match=message):
        check_export(io.BytesIO(content))


def test_what_is_wrong_with_a_payload_is_told_without_its_values() -> None:
    content = with_trailer(LINES[0].replace(b'"goal":"a list"', b'"goal":["secret"]'))
    with pytest.raises(ImportRefused, match="goal") as refused:
        check_export(io.BytesIO(content))
    assert "secret" not in str(refused.value)


def test_the_whole_file_is_whole() -> None:
    export = check_export(io.BytesIO(WHOLE))
    assert (export.events, export.jobs, len(export.living)) == (6, 2, 2)


async def test_a_log_with_events_takes_no_import(store: EventStore) -> None:
    await write(store, [queued()])
    before = await whole_log(store)
    with pytest.raises(ImportRefused, match=r"has events already \(up to 2:1-1\)"):
        await imported(store, WHOLE)
    assert await whole_log(store) == before


async def test_an_archive_with_events_takes_no_import(
    store: EventStore, engine: AsyncEngine
) -> None:
    await write(store, [queued()], tenant="initech")
    await Projector(store, engine).catch_up()
    await store.redis.hset(Keys(0).meta, "seq", 0)
    with pytest.raises(ImportRefused, match=r"has events already \(up to 0:1-1\)"):
        await imported(store, WHOLE)


async def test_an_import_ends_where_somebody_else_writes(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_BATCH", 2)
    partition = store.partition("acme")
    file = io.BytesIO(WHOLE)
    export = check_export(file)

    async def restore(*args: Any) -> int:
        monkeypatch.setattr(transfer, "_restore", real)
        last = await real(*args)
        await write(store, [queued()])
        return last

    real = transfer._restore
    monkeypatch.setattr(transfer, "_restore", restore)
    with pytest.raises(ImportRefused, match=r"somebody else writes to partition 2 .*3 .*2 were"):
        await import_log(store, file, export)
    assert (await store.log_end(partition)).seq == 3


async def test_a_batch_whose_answer_was_lost_is_sent_again_and_is_there_once(
    store: EventStore,
) -> None:
    events = recorded(build())
    partition = store.partition("acme")
    assert await transfer._restore(store, partition, 0, events) == len(events)
    assert await transfer._restore(store, partition, 0, events) == len(events)
    assert [entry.event for entry in await whole_log(store)] == events


async def test_a_job_of_which_redis_has_a_stream_is_not_written_over(store: EventStore) -> None:
    (event,) = recorded([queued()])
    key = store.keys(event.tenant).job(event.job)
    await store.redis.xadd(key, {"type": "JobQueued"}, id="1-0")
    with pytest.raises(ImportRefused, match=f"has events of job {event.job} already"):
        await imported(store, export_of([event]))
    assert await store.redis.xlen(key) == 1
    assert not await whole_log(store)


# --- files ---------------------------------------------------------------------------------------


def test_a_file_that_was_not_finished_is_not_there_and_the_old_one_stays(tmp_path: Path) -> None:
    def begin(file: IO[bytes]) -> None:
        file.write(b"half")
        raise EOFError

    path = tmp_path / "log.jsonl"
    path.write_text("old")
    with pytest.raises(EOFError), written_whole(path) as file:
        begin(file)
    assert [found.name for found in tmp_path.iterdir()] == ["log.jsonl"]
    assert path.read_text() == "old"
    with written_whole(path) as file:
        file.write(b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["log.jsonl"]
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
