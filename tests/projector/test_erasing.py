"""Erasing in archive and read model: nothing of a person stays, and everything else does."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, cast

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from eventstore.parts import make_parts
from projector import Projector, erasing, parked_jobs, rebuild, verify
from projector.erasing import (
    JOBS,
    Artifacts,
    Erasable,
    artifacts_elsewhere,
    artifacts_named,
    artifacts_of,
    erasable,
    erase,
    forget_old_rows,
    one_erasure,
    previews_of,
)
from projector.errors import ArchiveShort, ReplayRunning
from projector.parking import one_replay
from schemas import JobRef
from schemas.erasing import ERASED, HASH
from schemas.events import (
    JobCancelled,
    JobReady,
    Known,
    Payload,
    PhaseCompleted,
    PreviewExpired,
    SandboxCreated,
)
from tests.histories import (
    PROJECT,
    TENANT,
    all_completed,
    build,
    failed,
    queued,
    ready,
    repaired_build,
    started,
)
from tests.projector.contents import contents, execute, scalar
from tests.projector.writing import ONE_PER_PARTITION, write
from tests.remains import found_in_postgres

SECRET = "a diary for Erika Mustermann"
MANIFEST, OTHERS = "ab" * 32, "cd" * 32
OURS = ONE_PER_PARTITION.index(TENANT)
JOB_TABLES = ("jobs", "phases", "builds")
TALLIES = ("projects", "daily_stats")


def secretly(history: Sequence[Payload], manifest: str = MANIFEST) -> list[Known]:
    """The same, with the secret wherever there is room for one."""
    return [_secret(cast("Known", payload), manifest) for payload in history]


def _secret(payload: Known, manifest: str) -> Known:
    changes: dict[str, object] = {}
    for name in ("goal", "message", "output", "reason", "by", "command", "worker", "preview_url"):
        if name in type(payload).model_fields:
            changes[name] = SECRET
    if isinstance(payload, PhaseCompleted):
        changes |= {"evidence": {"said": SECRET}}
    if getattr(payload, "manifest", None) is not None:
        changes["manifest"] = manifest
    return payload.model_copy(update=changes)


@pytest.fixture
async def ours(store: EventStore, projector: Projector) -> list[JobRef]:
    """Ended jobs of a project with the secret, beside others of its tenant and of all; folded."""
    for tenant in ONE_PER_PARTITION:
        await write(store, build(), tenant=tenant, project="other")
    written = [
        await write(store, secretly(history))
        for history in (
            build(1),
            repaired_build(2),
            [queued(), started(), failed()],
        )
    ]
    await write(store, [queued(), started()], project="other")
    await projector.catch_up()
    return written


def ids(jobs: Sequence[JobRef]) -> list[str]:
    return [ref.job for ref in jobs]


async def test_of_a_project_all_ended_jobs_can_be_erased_and_no_others(
    store: EventStore, engine: AsyncEngine, ours: list[JobRef]
) -> None:
    found = await erasable(engine, OURS, TENANT, PROJECT)
    assert found == Erasable(OURS, tuple(sorted(ids(ours))), ())
    whole = await erasable(engine, OURS, TENANT)
    assert set(ids(ours)) < set(whole.ended)
    assert (len(whole.ended), len(whole.living)) == (4, 1)
    assert await erasable(engine, OURS, "nobody") == Erasable(OURS)


async def test_after_an_erasure_the_words_are_in_no_table_of_the_database(
    engine: AsyncEngine, ours: list[JobRef]
) -> None:
    await execute(engine, "ANALYZE")
    assert {"jobs", "builds", "pg_statistic"} <= set(await found_in_postgres(engine, SECRET))
    await erase(engine, OURS, ids(ours))
    await forget_old_rows(engine)
    assert await found_in_postgres(engine, SECRET) == []


async def test_an_erasure_changes_the_jobs_rows_and_leaves_sums_and_all_other_rows(
    engine: AsyncEngine, ours: list[JobRef]
) -> None:
    before = await contents(engine)
    await erase(engine, OURS, ids(ours))
    after = await contents(engine)
    for name in (*TALLIES, "checkpoints", "parked"):
        assert after[name] == before[name], name
        assert before[name] or name == "parked"
    for name in JOB_TABLES:
        key = "id" if name == "jobs" else "job_id"
        others = [row for row in before[name] if row[key] not in ids(ours)]
        assert [row for row in after[name] if row[key] not in ids(ours)] == others
        assert len(after[name]) == len(before[name])
    erased = {row["id"]: row for row in after["jobs"]}[ours[0].job]
    assert (erased["goal"], erased["user_id"], erased["preview_url"]) == (
        "[erased]",
        "erased",
        None,
    )
    assert (erased["build_version"], erased["cost_usd"]) == ("build_v0_1", 1.0)
    timelines = [
        [
            {k: v for k, v in row.items() if k != "worker"}
            for row in rows["phases"]
            if row["job_id"] == ours[1].job
        ]
        for rows in (before, after)
    ]
    assert timelines[0] == timelines[1]


async def test_archived_events_keep_their_place_and_the_hash_of_what_stood_there(
    engine: AsyncEngine, ours: list[JobRef]
) -> None:
    await execute(engine, "UPDATE headrace.events SET cause = 'ask-1', trace = '00-ab-cd-01'")
    before = (await contents(engine))["events"]
    assert await erase(engine, OURS, ids(ours)) == sum(e["job"] in ids(ours) for e in before)
    for old, new in zip(before, (await contents(engine))["events"], strict=True):
        if old["job"] not in ids(ours):
            assert new == old
            continue
        assert json.loads(new["data"])[HASH] == sha256(old["data"]).hexdigest()
        assert (new["cause"], new["trace"]) == ("", "")
        same = ("partition", "epoch", "seq", "id", "type", "job", "version", "time")
        assert [new[name] for name in same] == [old[name] for name in same]


async def test_the_read_model_is_the_fold_of_the_archive_after_an_erasure(
    engine: AsyncEngine, ours: list[JobRef]
) -> None:
    await erase(engine, OURS, ids(ours))
    assert (await verify(engine))[1] == []
    before = await contents(engine)
    assert (await rebuild(engine)).differing == ()
    assert await contents(engine) == before


async def test_an_erasure_repeated_changes_nothing(engine: AsyncEngine, ours: list[JobRef]) -> None:
    await erase(engine, OURS, ids(ours))
    before = await contents(engine)
    assert await erase(engine, OURS, ids(ours)) == 0
    assert await contents(engine) == before


async def test_an_erasure_that_ends_in_the_middle_leaves_whole_jobs_and_is_finished_by_another(
    engine: AsyncEngine, ours: list[JobRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "JOBS", 1)
    before = await contents(engine)
    # The second job's first event cannot be written: its transaction is rolled back.
    await execute(
        engine,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'refused by a trigger'; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON headrace.events FOR EACH ROW "
        f"WHEN (OLD.job = '{ours[1].job}') EXECUTE FUNCTION refuse()",
    )
    with pytest.raises(Exception, match="refused by a trigger"):
        await erase(engine, OURS, ids(ours))
    after = await contents(engine)
    for row, was in zip(after["jobs"], before["jobs"], strict=True):
        assert (row["goal"] == "[erased]") == (row["id"] == ours[0].job)
        assert row == was or row["id"] == ours[0].job
    assert (await verify(engine))[1] == []
    await execute(engine, "DROP TRIGGER refuse ON headrace.events")
    await erase(engine, OURS, ids(ours))
    assert SECRET.encode() not in b"".join(e["data"] for e in (await contents(engine))["events"])
    assert (await verify(engine))[1] == []


async def test_what_is_said_of_an_erased_job_later_is_folded_onto_its_tombstones(
    store: EventStore, engine: AsyncEngine, projector: Projector, ours: list[JobRef]
) -> None:
    await erase(engine, OURS, ids(ours))
    await write(store, [PreviewExpired(reason="time-out")], job=ours[0].job, after=len(build()))
    assert await projector.catch_up() == 1
    row = {one["id"]: one for one in (await contents(engine))["jobs"]}[ours[0].job]
    assert (row["preview"], row["goal"], row["version"]) == (
        "expired",
        "[erased]",
        len(build()) + 1,
    )
    assert (await verify(engine))[1] == []


async def test_an_erasure_waits_its_turn_behind_a_rebuild_and_changes_nothing(
    engine: AsyncEngine, ours: list[JobRef]
) -> None:
    before = await contents(engine)
    async with engine.begin() as other:
        await one_replay(other)
        with pytest.raises(ReplayRunning):
            await erase(engine, OURS, ids(ours))
    assert await contents(engine) == before


async def test_two_erasures_at_once_are_one_too_many(engine: AsyncEngine) -> None:
    async with one_erasure(engine):
        with pytest.raises(ReplayRunning):
            async with one_erasure(engine):
                raise AssertionError("a second one has begun")
    async with one_erasure(engine):
        pass


# --- what cannot be folded -----------------------------------------------------------------------


async def test_a_parked_job_is_erased_and_stays_parked_without_what_was_said_of_it(
    store: EventStore, engine: AsyncEngine, projector: Projector, ours: list[JobRef]
) -> None:
    await write(store, secretly([queued(), started(), failed()]))
    (damaged,) = set(await whole_jobs(store)) - set(ids(ours))
    await make_undecodable(store, damaged, version=2)
    await projector.catch_up()
    await execute(engine, f"UPDATE headrace.parked SET error = 'said {SECRET}'")
    found = await erasable(engine, OURS, TENANT, PROJECT)
    assert damaged in found.ended
    await erase(engine, OURS, found.ended)
    async with engine.connect() as connection:
        (parked,) = await parked_jobs(connection)
    assert (parked.job_id, parked.version, parked.state) == (damaged, 2, "parked")
    assert parked.error == "[erased]"
    await forget_old_rows(engine)
    assert await found_in_postgres(engine, SECRET) == []
    assert (await verify(engine))[1] == []
    left = await scalar(
        engine,
        f"SELECT data FROM headrace.events WHERE job = '{damaged}' AND version = 2",
    )
    assert json.loads(left).keys() == {HASH}


async def test_a_job_that_was_discarded_is_not_folded_further_by_its_erasure(
    engine: AsyncEngine, ours: list[JobRef]
) -> None:
    job = ours[2].job
    await execute(
        engine,
        "INSERT INTO headrace.parked "
        "SELECT job, tenant, partition, epoch, seq, version, type, 'no', 'discarded' "
        f"FROM headrace.events WHERE job = '{job}' AND version = 3",
    )
    await rebuild(engine)
    await erase(engine, OURS, ids(ours))
    row = {one["id"]: one for one in (await contents(engine))["jobs"]}[job]
    assert (row["version"], row["goal"]) == (2, "[erased]")
    assert (await verify(engine))[1] == []


async def whole_jobs(store: EventStore) -> list[str]:
    """The jobs of our project, as Redis has them."""
    entries: Any = await store.redis.xrange(store.keys(TENANT).log)
    return [f[b"job"].decode() for _, f in entries if f[b"project"] == PROJECT.encode()]


async def make_undecodable(store: EventStore, job: str, version: int) -> None:
    """Put a payload into the log that nobody can decode."""
    log = store.keys(TENANT).log
    entries: Any = await store.redis.xrange(log)
    await store.redis.delete(log)
    for entry, fields in entries:
        if (fields[b"job"], fields[b"version"]) == (job.encode(), str(version).encode()):
            fields[b"data"] = json.dumps({"attempt": SECRET}).encode()
        await store.redis.xadd(log, fields, id=entry)


# --- what is found by the events -----------------------------------------------------------------


async def test_files_are_known_by_the_events_that_name_them(
    store: EventStore, engine: AsyncEngine, projector: Projector, ours: list[JobRef]
) -> None:
    await write(store, secretly(build(), manifest=OTHERS), project="third")
    await projector.catch_up()
    assert await artifacts_of(engine, OURS, ids(ours)) == Artifacts((MANIFEST,))
    assert await artifacts_elsewhere(engine, OURS, ids(ours)) == Artifacts((OTHERS,))
    both = Artifacts(tuple(sorted((MANIFEST, OTHERS))))
    assert await artifacts_named(engine) == both
    await erase(engine, OURS, ids(ours))
    assert await artifacts_named(engine) == Artifacts((OTHERS,))


async def test_an_event_can_name_several_artifacts(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    base, made, printed = ("a" * 64, "b" * 64, "c" * 64)
    *early, last = build()
    assert isinstance(last, JobReady)
    begun = queued().model_copy(update={"base_build": 1, "base_manifest": base})
    history = [begun, *early[1:], last.model_copy(update={"manifest": made, "log": printed})]
    ref = await write(store, history)
    other = await write(store, [queued(), JobCancelled(by="ann", log="d" * 64)])
    await projector.catch_up()
    assert await artifacts_of(engine, OURS, [ref.job]) == Artifacts((base, made), (printed,))
    assert await artifacts_of(engine, OURS, [other.job]) == Artifacts((), ("d" * 64,))


async def test_no_goal_passes_for_a_manifest(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    sly = f'{{"manifest":"{OTHERS}"}}'
    ref = await write(store, [queued(sly), started(), failed()])
    await projector.catch_up()
    assert await artifacts_of(engine, OURS, [ref.job]) == Artifacts()


async def test_previews_that_go_on_are_known_until_they_are_erased(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    ends_at = datetime(2999, 1, 1, tzinfo=UTC)
    history = [
        payload.model_copy(update={"ends_at": ends_at})
        if isinstance(payload, SandboxCreated)
        else payload
        for payload in [*all_completed(), ready()]
    ]
    going_on, over = await write(store, history), await write(store, build(2))
    await projector.catch_up()
    assert await previews_of(engine, [going_on.job, over.job]) == ["sb-1"]
    await erase(engine, OURS, [going_on.job, over.job])
    assert await previews_of(engine, [going_on.job, over.job]) == []


async def test_what_is_not_archived_is_waited_for(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    await write(store, build())
    assert await projector.fold_up(OURS) == len(build())
    assert await scalar(engine, "SELECT count(*) FROM headrace.events") == len(build())


async def test_more_jobs_than_one_transaction_takes_are_erased(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    history: list[Known] = [queued(), failed()]
    jobs = [(await write(store, history)).job for _ in range(JOBS + 1)]
    await projector.catch_up()
    assert await erase(engine, OURS, jobs) == len(jobs) * len(history)
    goals = "SELECT array_agg(DISTINCT goal) FROM jobs"
    assert await scalar(engine, goals) == [ERASED]
    assert await erase(engine, OURS, jobs) == 0
    assert (await verify(engine))[1] == []


async def test_an_erasure_does_not_pass_over_a_part_that_was_detached(
    store: EventStore, engine: AsyncEngine, projector: Projector
) -> None:
    march = datetime(2031, 3, 14, tzinfo=UTC)
    await make_parts(engine, now=march)
    digits = f"{int(march.timestamp() * 1000):012x}"
    await write(store, build(), job=f"{digits[:8]}-{digits[8:]}-7000-8000-000000000001")
    await write(store, build(2))
    await projector.catch_up()
    await execute(engine, "ALTER TABLE headrace.events DETACH PARTITION headrace.events_2031_03")
    with pytest.raises(ArchiveShort, match="attach the missing parts"):
        await erasable(engine, OURS, TENANT)
