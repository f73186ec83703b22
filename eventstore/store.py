"""The log: append to a job, read a job, read a partition, report progress."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from eventstore.archive import Archive
from eventstore.connection import redis_errors
from eventstore.errors import (
    CommandIdReused,
    EventStoreError,
    Fenced,
    LogMissing,
    LogUnverified,
    NumberTaken,
    VersionConflict,
)
from eventstore.keys import Keys
from eventstore.reading import hash_fields, stream_end, stream_exact, stream_range
from eventstore.scripts import Scripts
from schemas import (
    JobRef,
    NewEvent,
    Position,
    RecordedEvent,
    format_time,
    from_fields,
    partition_of,
)
from schemas.events import JobReady

COMMAND_LIFE_MS = 24 * 60 * 60 * 1000
PROGRESS_CAP_LINES = 5_000
MAX_EVENT_BYTES = 256 * 1024
READ_BATCH = 500


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of one worker to run one job, from the claim until somebody else claims it."""

    ref: JobRef
    project: str
    work_class: str
    entry_id: str
    worker: str
    attempt: int


@dataclass(frozen=True, slots=True)
class CommandId:
    """An external command's idempotency key, and the digest of what was asked with it."""

    id: str
    request_hash: str


@dataclass(frozen=True, slots=True)
class Appended:
    """Where the last of the appended events stands.

    `repeated`: the command id had been answered before, with this job, version and position.
    """

    job: str
    version: int
    position: Position
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An event and its place in the log."""

    position: Position
    event: RecordedEvent


class EventStore:
    """The log of all partitions. Appends to what `open_log` has opened, and nowhere else."""

    def __init__(
        self, redis: Redis, archive: Archive, lineages: Mapping[int, str], *, partitions: int
    ) -> None:
        self.redis = redis
        self.archive = archive
        self.partitions = partitions
        self._lineages = lineages
        self._scripts = Scripts(redis)
        self._keys = tuple(Keys(number) for number in range(partitions))

    def partition(self, tenant: str) -> int:
        """The partition of a tenant."""
        return partition_of(tenant, self.partitions)

    def keys(self, tenant: str) -> Keys:
        """The keys of a tenant's partition."""
        return self._keys[self.partition(tenant)]

    # --- append ----------------------------------------------------------------------------------

    async def append(
        self,
        ref: JobRef,
        project: str,
        events: Sequence[NewEvent],
        *,
        expected_version: int,
        work_class: str = "normal",
        claim: Claim | None = None,
        command: CommandId | None = None,
        build_number: int | None = None,
    ) -> Appended:
        """Append `events` as versions `expected_version` + 1, … of the job, all or none.

        With `claim`, only while that worker owns the job. With `command`, at most once: a repeated
        command gives the first result, also when it appended nothing (`events` empty). A JobReady
        needs `build_number`. Raises `VersionConflict`, `Fenced`, `CommandIdReused`, `NumberTaken`,
        `LogMissing`, `LogUnverified`, `RedisUnavailable`; nothing was written then, except that
        after `RedisUnavailable` it may have been, and the same call may be made again.
        """
        keys, partition = self.keys(ref.tenant), self.partition(ref.tenant)
        names = [
            keys.meta,
            keys.log,
            keys.job(ref.job),
            keys.runs,
            keys.bell,
            keys.work("high"),
            keys.work("normal"),
            keys.builds,
            keys.command(ref.tenant, command.id) if command else keys.meta,
        ]
        args: list[Any] = [
            self._lineages[partition],
            expected_version,
            ref.tenant,
            project,
            ref.job,
            work_class,
            claim.worker if claim else "",
            claim.attempt if claim else "",
            command.request_hash if command else "",
            COMMAND_LIFE_MS if command else "",
            "" if build_number is None else build_number,
            len(events),
        ]
        for event in events:
            data = event.data
            if len(data) > MAX_EVENT_BYTES:
                raise EventStoreError(
                    f"{event.payload.type} has {len(data)} bytes, more than {MAX_EVENT_BYTES}"
                )
            args += [
                event.id,
                event.payload.type,
                format_time(event.time),
                event.cause,
                event.trace,
                data,
            ]
        answer = await self._scripts("append", names, args)
        if answer[0] == b"refused" and answer[1] == b"NumberUnknown":
            await self._seed_build_number(ref.tenant, project)
            answer = await self._scripts("append", names, args)
        match answer:
            case [b"ok", version, epoch, seq]:
                return Appended(ref.job, version, Position(partition, epoch, seq))
            case [b"repeated", job, version, at]:
                position = Position.parse(f"{partition}:{at.decode()}")
                return Appended(job.decode(), version, position, repeated=True)
            case [b"refused", b"VersionConflict", actual]:
                raise VersionConflict(ref.job, expected_version, actual)
            case [b"refused", b"CommandIdReused", job]:
                raise CommandIdReused(command.id if command else "", job.decode())
            case [b"refused", b"NumberTaken", last]:
                raise NumberTaken(project, last)
        raise refusal(answer, partition=partition, job=ref.job)

    async def last_build_number(self, tenant: str, project: str) -> int:
        """The number of the project's newest build, 0 when it has none."""
        (last,) = await hash_fields(self.redis, self.keys(tenant).builds, f"{tenant}/{project}")
        if last is not None:
            return int(last)
        return await self._seed_build_number(tenant, project)

    async def _seed_build_number(self, tenant: str, project: str) -> int:
        """Set an absent counter from archive and log.

        While it is absent no build of the project can become READY, so nothing is overtaken.
        """
        keys, partition = self.keys(tenant), self.partition(tenant)
        number = await self.archive.last_build(tenant, project)
        archived = await self.archive.last_event(partition)
        after = archived[0] if archived else None
        while entries := await self.read_log(partition, after, count=READ_BATCH):
            for entry in entries:
                event = entry.event
                ours = (event.tenant, event.project) == (tenant, project)
                if ours and isinstance(event.payload, JobReady):
                    number = max(number, event.payload.build_number)
            after = entries[-1].position
        field = f"{tenant}/{project}"
        with redis_errors():
            await self.redis.hsetnx(keys.builds, field, str(number))
        (seeded,) = await hash_fields(self.redis, keys.builds, field)
        return int(seeded or number)

    # --- progress --------------------------------------------------------------------------------

    async def progress(
        self, claim: Claim, kind: str, data: Mapping[str, Any], *, time: datetime
    ) -> bool:
        """Report a line of progress; False once the job's cap is reached and it was left out.

        Raises `Fenced` when the worker does not own the job any more.
        """
        keys = self.keys(claim.ref.tenant)
        answer = await self._scripts(
            "progress",
            [keys.job(claim.ref.job), keys.runs, keys.bell],
            [
                claim.ref.job,
                claim.worker,
                claim.attempt,
                PROGRESS_CAP_LINES,
                format_time(time),
                kind,
                json.dumps(data, ensure_ascii=False, separators=(",", ":")),
            ],
        )
        if answer[0] == b"refused":
            raise refusal(answer, partition=keys.partition, job=claim.ref.job)
        return bool(answer[0] == b"ok")

    # --- commands --------------------------------------------------------------------------------

    async def find_command(self, tenant: str, command: CommandId) -> Appended | None:
        """What a command id was answered with, None if it is new. Raises `CommandIdReused`."""
        keys = self.keys(tenant)
        with redis_errors():
            known = await self.redis.get(keys.command(tenant, command.id))
        if not isinstance(known, bytes):
            return None
        request_hash, job, version, at = known.decode().split(" ")
        if request_hash != command.request_hash:
            raise CommandIdReused(command.id, job)
        position = Position.parse(f"{keys.partition}:{at}")
        return Appended(job, int(version), position, repeated=True)

    # --- read ------------------------------------------------------------------------------------

    async def read_job(self, ref: JobRef) -> list[RecordedEvent]:
        """Every event of a job in order, from its stream or, once that expired, the archive.

        Empty when there is no such job. Reads events by their exact ids: a job may have thousands
        of progress lines between them.
        """
        key = self.keys(ref.tenant).job(ref.job)
        end = await stream_end(self.redis, key)
        if end is None:
            return await self.archive.read_job(ref.tenant, ref.job)
        version = int(end.split("-")[0])
        ids = [f"{number}-0" for number in range(1, version + 1)]
        found = await stream_exact(self.redis, key, ids)
        events = {number: from_fields(f) for number, f in enumerate(found, 1) if f is not None}
        if len(events) < version:
            archived = await self.archive.read_job(ref.tenant, ref.job)
            events = {event.version: event for event in archived} | events
        return [events[number] for number in sorted(events)]

    async def read_log(
        self, partition: int, after: Position | None, *, count: int = READ_BATCH
    ) -> list[LogEntry]:
        """Up to `count` events of a partition behind `after`, in order."""
        entries = await stream_range(
            self.redis,
            self._keys[partition].log,
            after=after.entry_id if after else None,
            count=count,
        )
        return [
            LogEntry(Position.parse(f"{partition}:{entry_id}"), from_fields(fields))
            for entry_id, fields in entries
        ]

    async def log_end(self, partition: int) -> Position:
        """The position of the partition's newest event; seq 0 while there is none."""
        epoch, seq = await hash_fields(self.redis, self._keys[partition].meta, "epoch", "seq")
        if epoch is None or seq is None:
            raise LogMissing(partition)
        return Position(partition, int(epoch), int(seq))

    async def note_restart(self) -> None:
        """If the server was restarted, begin the time anew in which no job is taken over.

        Idle times went on counting while it was down, and the living must report first.
        """
        with redis_errors():
            info: Any = await self.redis.info("server")
            seconds, microseconds = await self.redis.time()
        opened = int(seconds) * 1000 + int(microseconds) // 1000
        for keys in self._keys:
            (run,) = await hash_fields(self.redis, keys.meta, "run")
            if run is not None and run != info["run_id"]:
                with redis_errors():
                    await self.redis.hset(
                        keys.meta, mapping={"run": info["run_id"], "opened": str(opened)}
                    )

    # --- work ------------------------------------------------------------------------------------

    async def claim(
        self, partition: int, worker: str, *, free_slots: int, lease_ms: int
    ) -> list[Claim]:
        """Take up to `free_slots` jobs of a partition: abandoned ones, then new ones.

        A job is abandoned when its lease of `lease_ms` passed without a heartbeat.
        """
        keys = self._keys[partition]
        answer = await self._scripts(
            "claim",
            [keys.meta, keys.runs, keys.work("high"), keys.work("normal")],
            [self._lineages[partition], worker, free_slots, lease_ms],
        )
        if answer[0] != b"ok":
            raise refusal(answer, partition=partition, job="")
        return [
            Claim(
                ref=JobRef(tenant.decode(), job.decode()),
                project=project.decode(),
                work_class=work_class.decode(),
                entry_id=entry.decode(),
                worker=worker,
                attempt=attempt,
            )
            for job, tenant, project, work_class, entry, attempt in answer[1:]
        ]

    async def release(self, claim: Claim) -> bool:
        """Hand an unfinished job back for the next worker; False if it was not ours any more."""
        keys = self.keys(claim.ref.tenant)
        answer = await self._scripts(
            "release",
            [keys.runs, keys.work(claim.work_class), keys.bell],
            [claim.ref.job, claim.worker, claim.attempt, claim.project],
        )
        return bool(answer)


def refusal(answer: Sequence[Any], *, partition: int, job: str) -> EventStoreError:
    """The error for what a script refused."""
    match answer:
        case [b"refused", b"LogMissing"]:
            return LogMissing(partition)
        case [b"refused", b"LogUnverified", reason]:
            return LogUnverified(partition, f"found {reason.decode()}")
        case [b"refused", b"Fenced", owner, attempt]:
            return Fenced(job, owner.decode(), int(attempt))
    return EventStoreError(f"unexpected answer of a script: {answer!r}")
