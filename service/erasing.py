"""Erasing what a person wrote and had built, wherever this Headrace keeps it.

    secrets       of the project, or of all of the tenant's, are removed
    previews      of these jobs are ended
    files         that no other build has: artifacts, workspaces on this machine
    archive       tombstones; the rows of the read model are folded from them again
    Redis         job streams, results of commands, and the log up to the last of these events
    what is old   dead rows and statistics of Postgres, the embedded Redis' append-only file

In this order, and each step bears being done twice: files are found by what the archive names,
what Redis keeps by what the archive still counts. Whoever is interrupted begins again.
"""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio
import structlog
from anyio import to_thread
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid6 import uuid7

from eventstore import connect_postgres, redis_errors
from eventstore.erasing import cut_log, forget_commands, forget_streams, newest_events
from generator import ArtifactStore, GenerationError
from projector import Projector, backfill
from projector.erasing import (
    JOBS,
    artifacts_elsewhere,
    artifacts_of,
    erasable,
    erase,
    forget_old_rows,
    one_erasure,
    previews_of,
)
from projector.errors import FoldingStalled
from schemas import JobRef, NewEvent, Position, RecordedEvent, decode_or_mark, is_id
from schemas.events import JobFailed, Unreadable
from service.errors import ServiceError
from service.project_secrets import forget, kept, project_secrets
from service.wiring import Log

ARCHIVED_S = 60.0
ROUNDS = 10
STATEMENT_S = 6 * 3600.0
REWRITE_S = 60.0
_LOOK_AGAIN_S = 0.1

log = structlog.get_logger()

EndSandbox = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did.

    `left_blobs` are also of builds under way, `left_previews` could not be ended: they end
    at their time. `is_rewritten`: nothing of it is in the append-only file any more.
    """

    jobs: int
    events: int
    blobs: int
    size_bytes: int
    commands: int
    secrets: int = 0
    left_blobs: int = 0
    left_previews: int = 0
    is_rewritten: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to erase: jobs that have ended, those that must end first, secrets.

    `unreadable` have not ended either, but nobody can cancel them: an event of theirs cannot be
    decoded. An erasure ends them as failed.
    """

    ended: tuple[str, ...]
    living: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    secrets: int = 0


class Erasure:
    """The erasure of a tenant's jobs, or of those of one of its projects."""

    def __init__(
        self,
        opened: Log,
        artifacts: ArtifactStore,
        *,
        tenant: str,
        project: str | None,
        workspaces: Path,
        end_sandbox: EndSandbox,
        is_embedded: bool,
        free_bytes: int | None = None,
    ) -> None:
        """`is_embedded`: Redis serves nobody else, so that its files may be written anew.

        `free_bytes`: the room on Postgres' disk, where it can be seen.
        """
        self._store = opened.store
        self._engine = opened.engine
        self._projector = Projector(opened.store, opened.engine)
        self._artifacts = artifacts
        self._tenant = tenant
        self._project = project
        self._partition = opened.store.partition(tenant)
        self._workspaces = workspaces
        self._end_sandbox = end_sandbox
        self._is_embedded = is_embedded
        self._free_bytes = free_bytes

    async def survey(self) -> Survey:
        """The jobs there are by now.

        Raises `ServiceError` when they are not archived in time, `ArchiveShort`.
        """
        await self._caught_up()
        found = await erasable(self._engine, self._partition, self._tenant, self._project)
        unreadable = [job for job in found.living if not await self._is_readable(job)]
        living = [job for job in found.living if job not in unreadable]
        secrets = await kept(self._engine, self._tenant, self._project)
        return Survey(found.ended, tuple(living), tuple(unreadable), secrets)

    async def run(self, jobs: tuple[str, ...], *, unreadable: tuple[str, ...] = ()) -> Erased:
        """Erase the secrets and these jobs, which have ended; the unreadable ones it ends first.

        Run it again after whatever it raises: `ServiceError` when something is not archived in
        time, `ReplayRunning`, and what the servers and the artifact store raise.
        """
        async with patient(self._engine) as engine, one_erasure(engine):
            for job in unreadable:
                await self._end(job)
            if unreadable:
                await self._caught_up()
            return await self._run((*jobs, *unreadable), engine)

    async def _is_readable(self, job: str) -> bool:
        events = await self._read(job)
        return not any(isinstance(event.payload, Unreadable) for event in events)

    async def _read(self, job: str) -> list[RecordedEvent]:
        return await self._store.read_job(JobRef(self._tenant, job), decode=decode_or_mark)

    async def _end(self, job: str) -> None:
        """Let a job have failed, whoever holds it now. Raises `VersionConflict`."""
        last = (await self._read(job))[-1]
        debug_id = uuid7().hex
        payload = JobFailed(
            phase=None,
            kind="unreadable",
            message="Its history could not be read, so an erasure has ended it.",
            debug_id=debug_id,
        )
        event = NewEvent(id=str(uuid7()), time=datetime.now(UTC), payload=payload)
        ref = JobRef(self._tenant, job)
        await self._store.append(ref, last.project, [event], expected_version=last.version)
        log.warning("unreadable_job_ended", job=job, debug_id=debug_id)

    async def _run(self, jobs: tuple[str, ...], engine: AsyncEngine) -> Erased:
        secrets = await forget(self._engine, self._tenant, self._project)
        await backfill(self._engine, free_bytes=self._free_bytes)
        left_previews = await self._end_previews(jobs)
        named = await artifacts_of(engine, self._partition, jobs)
        kept = await artifacts_elsewhere(engine, self._partition, jobs)
        deleted = await self._artifacts.erase(
            named.manifests,
            jobs=set(jobs),
            kept=kept.manifests,
            blobs=named.logs,
            kept_blobs=kept.logs,
        )
        await to_thread.run_sync(self._remove_workspaces, jobs)
        events = await self._erase_events(jobs)
        commands = await forget_commands(self._store, self._tenant, set(jobs))
        await forget_old_rows(engine, project_secrets.fullname)
        return Erased(
            jobs=len(jobs),
            events=events,
            blobs=deleted.blobs,
            size_bytes=deleted.size_bytes,
            commands=commands,
            secrets=secrets,
            left_blobs=deleted.left,
            left_previews=left_previews,
            is_rewritten=self._is_embedded and await rewritten(self._store.redis),
        )

    async def _erase_events(self, jobs: tuple[str, ...]) -> int:
        """Erase the events in archive and Redis; how many were not erased before."""
        events, ends = 0, list[Position]()
        for first in range(0, len(jobs), JOBS):
            erased, end = await self._erase_some(jobs[first : first + JOBS])
            events += erased
            ends.append(end)
        # What is behind them and not archived yet holds some of it in memory: it is soon archived.
        while ends and not await cut_log(self._store, max(ends)):
            await self._caught_up()
        return events

    async def _erase_some(self, jobs: tuple[str, ...]) -> tuple[int, Position]:
        """The same of some jobs, but for the log; and where their last event stands."""
        events = 0
        for _ in range(ROUNDS):
            events += await erase(self._engine, self._partition, jobs)
            newest = await newest_events(self._engine, self._partition, jobs)
            if not await forget_streams(self._store, self._partition, newest):
                return events, max(one.position for one in newest)
            # Something was said of a job that had ended: that is archived, and erased next.
            await self._caught_up()
        raise ServiceError("somebody goes on writing to these jobs: run this again later")

    async def _caught_up(self) -> None:
        try:
            with anyio.fail_after(ARCHIVED_S):
                await self._projector.fold_up(self._partition)
        except (TimeoutError, FoldingStalled) as error:
            raise ServiceError(
                f"the log was not archived within {ARCHIVED_S:g} s: see that a projector folds it "
                "(./headrace doctor), and run this again"
            ) from error

    async def _end_previews(self, jobs: tuple[str, ...]) -> int:
        """End what these jobs have left running; how many could not be ended."""
        left = 0
        for sandbox_id in await previews_of(self._engine, jobs):
            try:
                await self._end_sandbox(sandbox_id)
            except GenerationError as error:
                log.warning("preview_not_ended", sandbox_id=sandbox_id, error=str(error))
                left += 1
        return left

    def _remove_workspaces(self, jobs: tuple[str, ...]) -> None:
        for job in jobs:
            folder = self._workspaces / job
            if is_id(job) and folder.exists():
                shutil.rmtree(folder)


@asynccontextmanager
async def patient(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine of the same database, for statements that go through the whole archive."""
    url = engine.url.render_as_string(hide_password=False)
    made = connect_postgres(url, pool_size=2, command_timeout_s=STATEMENT_S)
    try:
        yield made
    finally:
        await made.dispose()


async def rewritten(redis: Redis) -> bool:
    """Forget the log of slow commands and write the append-only file anew; False: not in time.

    A rewriting that is under way may have begun before the erasure: it is waited for.
    """
    with anyio.move_on_after(REWRITE_S), redis_errors():
        await redis.slowlog_reset()
        await _no_rewrite(redis)
        await redis.bgrewriteaof()
        await _no_rewrite(redis)
        return True
    return False


async def _no_rewrite(redis: Redis) -> None:
    while True:
        info = await redis.info("persistence")
        if not (info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]):
            return
        await anyio.sleep(_LOOK_AGAIN_S)
