"""Ends the sandboxes that nobody needs, and says in the log which previews have ended.

What lives is what the provider lists: a sandbox names its log, tenant and job in its metadata, so
that one made just before a crash is found too. Who needs it is what the log says of that job. Any
number of reapers may run: each step is one that may be done twice. Nothing is ended on a guess: a
log that does not answer, or another log's sandbox, is left alone.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import anyio
import structlog
from anyio import to_thread

from eventstore import CommandHandler, EventStoreError, VersionConflict
from generator.deadlines import deadline
from generator.errors import GenerationError, SandboxGone
from generator.handover import holder_of
from generator.sandbox import SandboxInfo, SandboxRuntime, SandboxRuntimeFactory
from generator.sandbox_life import KILL_S, LINEAGE
from schemas import (
    CommandRefused,
    Job,
    JobRef,
    JobUnknown,
    Preview,
    Status,
    UndecodableEvent,
    is_id,
)
from schemas.commands import ExpirePreview, PausePreview

GRACE_S = 300.0
"""How old a sandbox is at least before it can be one that nobody needs: longer than a worker takes
from asking for one to saying so in the log, with every wait in between."""

EVERY_S = 15.0
LIST_S = 60.0
PAUSED_BEFORE = timedelta(seconds=4 * EVERY_S)
"""So long before its end a preview is paused: a round may come late."""

MOST_A_ROUND = 100
"""How many sandboxes are ended, and how many previews looked at, in one round."""

log = structlog.get_logger()

Previews = Callable[[int], Awaitable[Sequence[JobRef]]]
"""Builds whose preview may have ended, at most so many, those first that end first.

A hint where to look: what is true of each is read in the log.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A sandbox, and whether somebody needs it. `job` is None where the log has none."""

    info: SandboxInfo
    ref: JobRef | None
    job: Job | None
    needed: bool
    why: str


def judge(info: SandboxInfo, job: Job | None, *, now: datetime, grace: timedelta) -> Found:
    """Whether a sandbox is needed by the job that it was made for, as the log knows that one."""
    ref = JobRef(job.tenant, job.job) if job else None
    needed, why = _need(info, job)
    # The log may not know it yet, unless no worker has to do with the job any more.
    may_be_new = now - info.started_at < grace and not (job and job.is_settled)
    if not needed and may_be_new:
        needed, why = True, f"made just now; {why}"
    return Found(info, ref, job, needed, why)


def _need(info: SandboxInfo, job: Job | None) -> tuple[bool, str]:
    if job is None:
        return False, "the log has no such job"
    is_its = job.sandbox_id == info.sandbox_id
    if not job.is_terminal:
        return (True, f"its job is {job.status}") if is_its else (False, "its job has another")
    if job.status is not Status.READY:
        return False, f"its job is {job.status}"
    if not is_its:
        return False, f"its build's preview is {'elsewhere' if job.sandbox_id else 'expired'}"
    return True, f"its build's preview is {job.preview}"


@dataclass(slots=True)
class Round:
    """What one round did."""

    ended: int = 0
    expired: int = 0
    paused: int = 0
    left: int = 0
    """Unneeded ones that could not be ended; the next round tries again."""


class Reaper:
    """Compares the sandboxes of one provider with the log, and makes them agree."""

    def __init__(
        self,
        handler: CommandHandler,
        sandbox_runtime_factory: SandboxRuntimeFactory,
        previews: Previews,
        *,
        grace_s: float = GRACE_S,
        keep_paused_s: float = 0.0,
        sees_all: bool = True,
    ) -> None:
        """`keep_paused_s`: previews are paused at their end and kept so long; 0: they end.

        `sees_all`: the provider lists the sandboxes of all workers, wherever these are, so that one
        not listed has ended.
        """
        self._handler = handler
        self._sandbox_runtime_factory = sandbox_runtime_factory
        self._previews = previews
        self._grace = timedelta(seconds=grace_s)
        self._keep_paused = timedelta(seconds=keep_paused_s)
        self._sees_all = sees_all
        self._made: SandboxRuntime | None = None

    async def run(self) -> None:
        """Reap every fifteen seconds until cancelled."""
        while True:
            await anyio.sleep(EVERY_S)
            try:
                done = await self.reap()
                if done != Round():
                    log.info(
                        "reaped",
                        ended=done.ended,
                        expired=done.expired,
                        paused=done.paused,
                        left=done.left,
                    )
            except (EventStoreError, GenerationError) as error:
                log.warning("reaper_waits", error=str(error))
            except Exception:  # whatever a provider raises, the next round looks again
                log.exception("reaper_failed")

    async def reap(self) -> Round:
        """One round: end what nobody needs, then tell of previews that have ended."""
        done, began = Round(), self._handler.clock()
        found = await self.look()
        for one in found:
            if one.needed:
                await self._keep(one, done)
            elif done.ended + done.left < MOST_A_ROUND:
                await self.end(one, done)
        await self._tell_ended({one.info.sandbox_id: one.info for one in found}, began, done)
        return done

    async def look(self) -> list[Found]:
        """Every sandbox of this log at the provider, and who needs it; the oldest first.

        Raises `EventStoreError` and `SandboxError` when either does not answer.
        """
        runtime = await self._runtime()
        with deadline(LIST_S, "listing the sandboxes"):
            infos = await runtime.list({LINEAGE: self._handler.store.lineage})
        found = []
        for info in sorted(infos, key=lambda info: info.started_at):
            try:
                job = await self._job_of(info)
            except UndecodableEvent as error:
                why = f"its job cannot be read: {error}"
                found.append(Found(info, None, None, needed=True, why=why))
                continue
            now = self._handler.clock()
            found.append(judge(info, job, now=now, grace=self._grace))
        return found

    async def end(self, found: Found, done: Round | None = None) -> bool:
        """End a sandbox; False when the provider did not confirm it."""
        done = done or Round()
        try:
            with deadline(KILL_S, "ending a sandbox"):
                await (await self._runtime()).kill(found.info.sandbox_id)
        except GenerationError as error:
            log.error("sandbox_not_ended", sandbox=found.info.sandbox_id, error=str(error))
            done.left += 1
            return False
        log.info("sandbox_ended", sandbox=found.info.sandbox_id, why=found.why)
        done.ended += 1
        return True

    async def _runtime(self) -> SandboxRuntime:
        if self._made is None:
            # A provider's client library may take a second to import.
            self._made = await to_thread.run_sync(self._sandbox_runtime_factory)
        return self._made

    async def _job_of(self, info: SandboxInfo) -> Job | None:
        tenant, job = info.metadata.get("tenant", ""), info.metadata.get("job", "")
        if not (is_id(tenant) and is_id(job)):
            return None
        try:
            made_for = await self._handler.load(JobRef(tenant, job))
            return await holder_of(self._handler, made_for, info.sandbox_id)
        except JobUnknown:
            return None

    async def _keep(self, found: Found, done: Round) -> None:
        """Let a needed sandbox sleep where its preview does, and run where that runs."""
        job, info, runtime = found.job, found.info, await self._runtime()
        if job is None or job.sandbox_id != info.sandbox_id:
            return
        try:
            if job.preview is Preview.RUNNING and runtime.can_pause and await self._pause(job):
                done.paused += 1
                await runtime.pause(info.sandbox_id)
            elif job.preview is Preview.PAUSED and runtime.can_pause and not info.is_paused:
                await runtime.pause(info.sandbox_id)
            elif job.preview is Preview.RUNNING and info.is_paused:
                left = (job.sandbox_ends_at or self._handler.clock()) - self._handler.clock()
                if left > timedelta(0):
                    await runtime.wake(info.sandbox_id, timeout_s=int(left.total_seconds()))
        except SandboxGone:
            return  # told of below, or in the next round
        except GenerationError as error:
            log.warning("preview_not_paused", job=job.job, error=str(error))

    async def _pause(self, job: Job) -> bool:
        """Say in the log that a preview near its end sleeps from now on; the provider follows."""
        now, ends_at = self._handler.clock(), job.sandbox_ends_at
        if not self._keep_paused or ends_at is None or ends_at - now > PAUSED_BEFORE:
            return False
        try:
            pause = PausePreview(kept_until=now + self._keep_paused)
            await self._handler.handle(JobRef(job.tenant, job.job), pause, job=job)
        except (CommandRefused, VersionConflict):
            return False  # somebody wants it just now
        return True

    async def _tell_ended(
        self, listed: dict[str, SandboxInfo], began: datetime, done: Round
    ) -> None:
        """Say in the log which previews have ended, and end those whose time is over."""
        for ref in await self._previews(MOST_A_ROUND):
            try:
                job = await self._handler.load(ref)
                reason = await self._why_ended(job, listed, began)
                if reason is None:
                    continue
                if job.sandbox_id in listed:
                    over = Found(listed[job.sandbox_id], ref, job, needed=False, why=reason)
                    if not await self.end(over, done):
                        continue
                handled = await self._handler.handle(ref, ExpirePreview(reason), job=job)
                done.expired += len(handled.events)
            except (JobUnknown, UndecodableEvent, CommandRefused, VersionConflict) as error:
                log.warning("preview_not_expired", job=ref.job, error=str(error))

    async def _why_ended(
        self, job: Job, listed: dict[str, SandboxInfo], began: datetime
    ) -> str | None:
        """Why the preview of a build has ended, None where it has not."""
        if job.preview is Preview.WAKING:
            lost = not await self._handler.store.work.is_in_hand(JobRef(job.tenant, job.job))
            return "the request for it was lost: ask again" if lost else None
        if job.preview not in (Preview.RUNNING, Preview.PAUSED):
            return None
        if job.sandbox_ends_at is not None and job.sandbox_ends_at <= self._handler.clock():
            return "its time was over"
        # A sandbox that the log knew before the list was asked for would stand in it.
        provider = (await self._runtime()).provider
        is_known = self._sees_all and job.sandbox_provider == provider
        if is_known and job.sandbox_id not in listed and job.updated_at < began:
            return "its sandbox has ended"
        return None
