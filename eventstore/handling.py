"""From a command to events in the log: read, fold, decide, append; again when overtaken."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import anyio
from uuid6 import uuid7

from eventstore.errors import PostgresUnavailable, RedisUnavailable, VersionConflict
from eventstore.store import Appended, CommandId, EventStore
from eventstore.work import Claim
from schemas import (
    Command,
    Job,
    JobRef,
    NewEvent,
    Position,
    RecordedEvent,
    decide,
    evolve,
    fold,
)
from schemas.commands import FinishBuild, RequestBuild
from schemas.errors import JobUnknown

T = TypeVar("T")

MAX_TRIES = 10
_PAUSE_S = 0.25
WORK_CLASS = {"free": "normal", "pro": "high"}


@dataclass(frozen=True, slots=True)
class Handled:
    """What became of a command: the job now, the events appended (maybe none), and where."""

    job: Job
    events: tuple[RecordedEvent, ...]
    position: Position | None
    repeated: bool = False


class CommandHandler:
    """Carries out commands. Clock and ids are given, so that tests can set them."""

    def __init__(
        self,
        store: EventStore,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        new_id: Callable[[], str] = lambda: str(uuid7()),
    ) -> None:
        self.store = store
        self.clock = clock
        self.new_id = new_id

    async def load(self, ref: JobRef) -> Job:
        """The job as its events tell it. Raises `JobUnknown`."""
        job = fold(await self.store.read_job(ref))
        if job is None:
            raise JobUnknown(ref.job, "load")
        return job

    async def handle(
        self,
        ref: JobRef,
        command: Command,
        *,
        job: Job | None = None,
        claim: Claim | None = None,
        command_id: str | None = None,
        trace: str = "",
        patience_s: float = 0.0,
    ) -> Handled:
        """Decide `command` on the job and append what follows.

        A server that is away is waited for up to `patience_s`; the very same events are then sent
        again, so that one whose answer was lost is not appended twice.

        `job` is the state if the caller has it; it is read again when somebody else spoke in
        between. A command id that was answered before is answered alike, before anything is
        decided: a repeated cancel is not a conflict. Raises what `decide` and `append` raise;
        `VersionConflict` only when overtaken ten times in a row.
        """
        known = CommandId(command_id, request_hash(ref, command)) if command_id else None
        if known and (earlier := await self.store.find_command(ref.tenant, known)):
            return await self._repeated(ref, earlier)
        conflict: VersionConflict | None = None
        for _ in range(MAX_TRIES):
            if job is None and not isinstance(command, RequestBuild):
                job = await self.load(ref)
            events = self._new_events(job, command, cause=command_id or "", trace=trace)
            append = partial(
                self.store.append,
                ref,
                job.project if job else _project(command),
                events,
                expected_version=job.version if job else 0,
                work_class=WORK_CLASS[_tier(command, job)],
                claim=claim,
                command=known,
                build_number=command.build_number if isinstance(command, FinishBuild) else None,
            )
            try:
                appended = await patiently(append, patience_s)
            except VersionConflict as error:
                conflict, job = error, None
                continue
            if appended.repeated:
                return await self._repeated(ref, appended)
            return _handled(ref, job, command, events, appended)
        assert conflict is not None  # noqa: S101 - the loop ended by nothing else
        raise conflict

    def _new_events(
        self, job: Job | None, command: Command, *, cause: str, trace: str
    ) -> list[NewEvent]:
        time = self.clock()
        return [
            NewEvent(id=self.new_id(), time=time, payload=payload, cause=cause, trace=trace)
            for payload in decide(job, command)
        ]

    async def _repeated(self, ref: JobRef, earlier: Appended) -> Handled:
        job = await self.load(JobRef(ref.tenant, earlier.job))
        return Handled(job, (), earlier.position, repeated=True)


async def patiently(action: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """What `action` gives, which is tried again while a server is away, up to `patience_s`."""
    deadline = anyio.current_time() + patience_s
    while True:
        try:
            return await action()
        except (RedisUnavailable, PostgresUnavailable):
            if anyio.current_time() >= deadline:
                raise
            await anyio.sleep(_PAUSE_S)


def request_hash(ref: JobRef, command: Command) -> str:
    """Equal for equal requests. A new build's job id is ours, not the caller's, and left out."""
    target = "" if isinstance(command, RequestBuild) else ref.job
    content = json.dumps([type(command).__name__, target, asdict(command)], default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _handled(
    ref: JobRef,
    job: Job | None,
    command: Command,
    events: Sequence[NewEvent],
    appended: Appended,
) -> Handled:
    first = appended.version - len(events) + 1
    recorded = tuple(
        RecordedEvent(
            id=event.id,
            type=event.payload.type,
            tenant=ref.tenant,
            project=job.project if job else _project(command),
            job=ref.job,
            version=first + offset,
            time=event.time,
            cause=event.cause,
            trace=event.trace,
            data=event.data,
            payload=event.payload,
        )
        for offset, event in enumerate(events)
    )
    for event in recorded:
        job = evolve(job, event)
    assert job is not None  # noqa: S101 - decide gives JobQueued first, or had a job
    return Handled(job, recorded, appended.position)


def _project(command: Command) -> str:
    return command.project_id if isinstance(command, RequestBuild) else ""


def _tier(command: Command, job: Job | None) -> str:
    return command.tier if isinstance(command, RequestBuild) else job.tier if job else "free"
