"""Collecting from the artifacts: what any event names that is not erased stays, all else goes."""

from datetime import datetime, timedelta
from functools import partial

import anyio
import obstore
import pytest
from obstore.store import MemoryStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import CommandHandler, EventStore, Hub
from generator import ArtifactStore
from generator.errors import ArtifactMissing
from projector import Projector, ReplayRefused
from projector.erasing import erase, one_erasure
from schemas.events import JobCancelled, JobReady, Known
from service.collecting import collect, collect_daily
from service.wiring import Log
from tests.histories import all_completed, queued, ready, started
from tests.projector.writing import write

pytestmark = pytest.mark.anyio

AT_ONCE = timedelta(0)


@pytest.fixture
def artifacts() -> ArtifactStore:
    return ArtifactStore(MemoryStore())


@pytest.fixture
def log(store: EventStore, handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> Log:
    return Log(store, handler, hub, engine)


def build_of(manifest: str, printed: str | None = None) -> list[Known]:
    last = ready(1, manifest=manifest).model_copy(update={"log": printed})
    assert isinstance(last, JobReady)
    return [*all_completed(), last]


async def test_what_events_name_stays_also_where_nobody_has_folded_them(
    log: Log, artifacts: ArtifactStore
) -> None:
    made = await artifacts.put({"app.py": b"made"})
    base = await artifacts.put({"app.py": b"base"})
    printed, cancelled = await artifacts.put_blob(b"built"), await artifacts.put_blob(b"cancelled")
    loose = await artifacts.put({"app.py": b"nobody's"})
    await write(log.store, build_of(made, printed), tenant="acme")
    goes_on = queued().model_copy(update={"base_build": 1, "base_manifest": base})
    await write(log.store, [goes_on, started()], tenant="initech")
    await write(log.store, [queued(), JobCancelled(by="ann", log=cancelled)], tenant="tenant-0")
    would = await collect(log, artifacts, grace=AT_ONCE, dry_run=True)
    assert (would.blobs, would.kept) == (2, 6)
    assert (await collect(log, artifacts, grace=AT_ONCE)).blobs == 2
    for manifest, content in ((made, b"made"), (base, b"base")):
        assert await artifacts.get(manifest) == {"app.py": content}
    for digest, content in ((printed, b"built"), (cancelled, b"cancelled")):
        assert await artifacts.get_blob(digest) == content
    with pytest.raises(ArtifactMissing):
        await artifacts.get(loose)


async def test_what_only_erased_events_name_goes_and_what_others_share_stays(
    log: Log, artifacts: ArtifactStore
) -> None:
    shared = {"style.css": b"shared"}
    ours = await artifacts.put({**shared, "app.py": b"ours"})
    theirs = await artifacts.put({**shared, "app.py": b"theirs"})
    ref = await write(log.store, build_of(ours))
    await write(log.store, build_of(theirs), project="theirs")
    await Projector(log.store, log.engine).catch_up()
    await erase(log.engine, log.store.partition(ref.tenant), [ref.job])
    assert (await collect(log, artifacts, grace=AT_ONCE)).blobs == 2
    assert await artifacts.get(theirs) == {**shared, "app.py": b"theirs"}


async def test_builds_whose_part_of_the_archive_was_detached_keep_their_files(
    log: Log, artifacts: ArtifactStore
) -> None:
    made, printed = await artifacts.put({"a": b"old"}), await artifacts.put_blob(b"long ago")
    await write(log.store, build_of(made, printed))
    await Projector(log.store, log.engine).catch_up()
    async with log.engine.begin() as connection:
        await connection.execute(text("DELETE FROM headrace.events"))
    assert (await collect(log, artifacts, grace=AT_ONCE)).blobs == 0
    assert await artifacts.get(made) == {"a": b"old"}
    assert await artifacts.get_blob(printed) == b"long ago"


async def test_drafts_of_jobs_that_have_ended_go_and_those_of_living_ones_stay(
    log: Log, artifacts: ArtifactStore
) -> None:
    ended = await write(log.store, build_of(await artifacts.put({"a": b"a"})))
    living = await write(log.store, [queued(), started()])
    for job in (ended.job, living.job):
        await obstore.put_async(artifacts._store, f"drafts/{job}/1/1.json", b"{}")
    await collect(log, artifacts, grace=AT_ONCE)
    assert await artifacts.drafted_jobs() == {living.job}


async def test_a_collection_and_an_erasure_come_one_at_a_time(
    log: Log, artifacts: ArtifactStore
) -> None:
    async with one_erasure(log.engine):
        with pytest.raises(ReplayRefused, match="try again when it is done"):
            await collect(log, artifacts)


class Watched(ArtifactStore):
    """Keeps what it answered when it was asked for the last collection; at first it is away."""

    def __init__(self, *, away: int = 0) -> None:
        super().__init__(MemoryStore())
        self.answers: list[datetime | None] = []
        self.asked_often = anyio.Event()
        self._away = away

    async def collected_at(self) -> datetime | None:
        if self._away:
            self._away -= 1
            raise obstore.exceptions.GenericError("no route to host")
        self.answers.append(await super().collected_at())
        if len(self.answers) == 4:
            self.asked_often.set()
        return self.answers[-1]


async def looking(log: Log, artifacts: Watched) -> None:
    """Let an instance look every moment, until it has looked four times."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(collect_daily, log, artifacts, look_every_s=0.001))
        with anyio.fail_after(60):
            await artifacts.asked_often.wait()
        tasks.cancel_scope.cancel()


async def test_a_running_instance_collects_once_a_day(log: Log) -> None:
    artifacts = Watched()
    await looking(log, artifacts)
    before, *after = artifacts.answers
    assert before is None
    assert after[0] is not None
    assert after == after[:1] * 3


async def test_a_store_that_is_away_is_asked_again(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = Watched(away=2)
    await looking(log, artifacts)
    assert artifacts.answers[-1] is not None
    assert capsys.readouterr().out.count("artifacts_not_collected") == 2
