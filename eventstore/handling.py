"""From commands to events in the log: read, fold, decide, append; again when overtaken."""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import anyio

from eventstore.errors import PostgresUnavailable, RedisUnavailable, VersionConflict
from eventstore.ids import new_id
from eventstore.payloads import event_data
from eventstore.quotas import DayLimits
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
        new_id: Callable[[], str] = new_id,
    ) -> None:
        self.store = store
        self.clock = clock
        self.new_id = new_id

    async def load(self, ref: JobRef) -> Job:
        """The job as its events tell it. Raises `JobUnknown`."""
        return _folded(ref, await self.store.read_job(ref))

    async def load_claimed(self, claim: Claim) -> Job:
        """The job as it was when it was claimed, if the claim tells, else as it is now.

        What was appended since is met by the next append. Raises `JobUnknown`.
        """
        return _folded(claim.ref, await self.store.read_job(claim.ref, begin=claim.begin))

    async def handle(
        self,
        ref: JobRef,
        *commands: Command,
        job: Job | None = None,
        claim: Claim | None = None,
        command_id: str | None = None,
        asked: object = None,
        day_limits: DayLimits | None = None,
        trace: str = "",
        patience_s: float = 0.0,
    ) -> Handled:
        """Decide `commands` on the job, each on what the one before led to; append what follows.

        Their events are appended in one, all or none: when one command is refused, none was given.
        A server that is away is waited for up to `patience_s`; the very same events are then sent
        again, so that one whose answer was lost is not appended twice.

        `job` is the state if the caller has it; it is read again when somebody else spoke in
        between. A command id that was answered before is answered alike, before anything is
        decided: a repeated cancel is not a conflict. `asked` is what the caller asked for, where
        the command was made from more than that: by it a repetition is known. Raises what `decide`
        and `append` raise; `VersionConflict` only when overtaken ten times in a row.
        """
        known = (
            CommandId(command_id, request_hash(ref, *commands, asked=asked)) if command_id else None
        )
        if known and (earlier := await self.store.find_command(ref.tenant, known)):
            return await self._repeated(ref, earlier)
        request = next((one for one in commands if isinstance(one, RequestBuild)), None)
        finish = next((one for one in commands if isinstance(one, FinishBuild)), None)
        conflict: VersionConflict | None = None
        for _ in range(MAX_TRIES):
            if job is None and request is None:
                job = await self.load(ref)
            after, events = self._decided(job, ref, commands, cause=command_id or "", trace=trace)
            append = partial(
                self.store.append,
                ref,
                after.project,
                [event for event, _ in events],
                expected_version=job.version if job else 0,
                work_class=WORK_CLASS[after.tier],
                claim=claim,
                command=known,
                build_number=finish.build_number if finish else None,
                day_limits=day_limits,
                wall_ms=0 if job and job.is_terminal else after.wall_ms,
            )
            try:
                appended = await patiently(append, patience_s)
            except VersionConflict as error:
                conflict, job = error, None
                continue
            if appended.repeated:
                return await self._repeated(ref, appended)
            return Handled(after, tuple(recorded for _, recorded in events), appended.position)
        assert conflict is not None  # noqa: S101 - the loop ended by nothing else
        raise conflict

    async def answered(
        self, ref: JobRef, command: type[Command], *, command_id: str, asked: object
    ) -> Handled | None:
        """What a command of this id was answered with, if it was: before it is made again."""
        known = CommandId(command_id, _hash(ref, (command, asked)))
        earlier = await self.store.find_command(ref.tenant, known)
        return await self._repeated(ref, earlier) if earlier else None

    def _decided(
        self, job: Job | None, ref: JobRef, commands: Sequence[Command], *, cause: str, trace: str
    ) -> tuple[Job, list[tuple[NewEvent, RecordedEvent]]]:
        """The job as `commands` make it, and the events of that, as they are and will be."""
        now = self.clock()
        events: list[tuple[NewEvent, RecordedEvent]] = []
        for command in commands:
            for payload in decide(job, command):
                event = NewEvent(self.new_id(), now, payload, cause, trace)
                event_data(event)  # refused here: what cannot be written cannot be recorded
                if job is not None:
                    recorded = event.recorded(ref, job.project, job.version + 1)
                else:
                    assert isinstance(command, RequestBuild)  # noqa: S101 - all else needs a job
                    recorded = event.recorded(ref, command.project_id, 1)
                job = evolve(job, recorded)
                events.append((event, recorded))
        assert job is not None  # noqa: S101 - decide gives JobQueued first, or had a job
        return job, events

    async def _repeated(self, ref: JobRef, earlier: Appended) -> Handled:
        job = await self.load(JobRef(ref.tenant, earlier.job))
        return Handled(job, (), earlier.position, repeated=True)


def _folded(ref: JobRef, events: Sequence[RecordedEvent]) -> Job:
    job = fold(events)
    if job is None:
        raise JobUnknown(ref.job, "load")
    return job


async def patiently(action: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """What `action` gives, which is tried again while a server is away, up to `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await action()
        except (RedisUnavailable, PostgresUnavailable):
            if time.monotonic() >= deadline:
                raise
            await anyio.sleep(_PAUSE_S)


def request_hash(ref: JobRef, *commands: Command, asked: object = None) -> str:
    """Equal for equal requests. A new build's job id is ours, not the caller's, and left out."""
    parts = [(type(command), asdict(command) if asked is None else asked) for command in commands]
    return _hash(ref, *parts)


def _hash(ref: JobRef, *parts: tuple[type[Command], object]) -> str:
    content = [
        part
        for command, asked in parts
        for part in (
            command.__name__,
            "" if command is RequestBuild else ref.job,
            asked,
        )
    ]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
