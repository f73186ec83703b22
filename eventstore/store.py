"""The log: append to a job, read a job, read a partition, report progress."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

from eventstore.archive import Archive
from eventstore.connection import redis_errors
from eventstore.entries import LogEntry
from eventstore.errors import (
    CommandIdReused,
    LogMissing,
    LogUnverified,
    NumberTaken,
    RedisUnavailable,
    TooManyWaiting,
    VersionConflict,
)
from eventstore.keys import Keys
from eventstore.payloads import event_data, line_data
from eventstore.quotas import DayLimits, Quotas, counts_of, day_of
from eventstore.reading import (
    FIRST_ENTRIES,
    StreamEntry,
    hash_fields,
    server_time_ms,
    stream_end,
    stream_exact,
    stream_part,
    stream_range,
)
from eventstore.scripts import refusal
from eventstore.verification import SealedScripts, Verification
from eventstore.work import Claim, Work
from schemas import (
    JobRef,
    NewEvent,
    Position,
    RecordedEvent,
    decode,
    entry_fields,
    format_time,
    from_fields,
    gets_further,
    partition_of,
)
from schemas.envelope import Decode
from schemas.events import (
    CancelRequested,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    PreviewExpired,
    PreviewPaused,
    PreviewRequested,
    PreviewResumed,
)

COMMAND_LIFE_MS = 24 * 60 * 60 * 1000
PROGRESS_CAP_LINES = 5_000
MAX_WAITING = 10_000
TENANT_CAP = 4
READ_BATCH = 500
SEED_TRIES = 10
LEAST_STREAM_LIFE_S = 60.0
"""No stream of a job is gone sooner after its last event: `lua/seed.lua` trusts in that."""
FRESH_S = LEAST_STREAM_LIFE_S / 2  # the other half is for clocks that disagree

# What an append says to the script about its events. A preview that is asked for is work as a job
# is, from the request to whatever ends it.
_MEANING: Mapping[str, frozenset[type]] = {
    "queued": frozenset({JobQueued, PreviewRequested}),
    "ready": frozenset({JobReady}),
    "ended": frozenset(
        {JobReady, JobFailed, JobCancelled, PreviewResumed, PreviewPaused, PreviewExpired}
    ),
}


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


class EventStore:
    """The log of all partitions. `open_log` makes it."""

    def __init__(
        self,
        redis: Redis,
        archive: Archive,
        verification: Verification,
        *,
        partitions: int,
        tenant_cap: int = TENANT_CAP,
    ) -> None:
        self.redis = redis
        self.archive = archive
        self.partitions = partitions
        self.tenant_cap = tenant_cap
        self.verification = verification
        self.scripts = SealedScripts(redis, verification)
        self._keys = tuple(Keys(number) for number in range(partitions))
        self.quotas = Quotas(redis, self.scripts, self._keys)
        self.work = Work(redis, self.scripts, self._keys, tenant_cap=tenant_cap)

    def partition(self, tenant: str) -> int:
        """The partition of a tenant."""
        return partition_of(tenant, self.partitions)

    def keys(self, tenant: str) -> Keys:
        """The keys of a tenant's partition."""
        return self._keys[self.partition(tenant)]

    @property
    def lineage(self) -> str:
        """The id of this log, which no other has: that of its first partition."""
        return self.verification.lineages[0]

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
        day_limits: DayLimits | None = None,
        wall_ms: int = 0,
    ) -> Appended:
        """Append `events` as versions `expected_version` + 1, … of the job, all or none.

        With `claim`, only while that worker owns the job. With `command`, at most once: a repeated
        command gives the first result, also when it appended nothing (`events` empty). A JobReady
        needs `build_number`. What the events use is counted for the tenant's day, with `wall_ms`
        that the job took if they end it; with `day_limits` nothing is appended once the day has
        used as much.

        Raises `VersionConflict`, `Fenced`, `CommandIdReused`, `NumberTaken`, `TooManyWaiting`,
        `QuotaSpent`, `PayloadRefused`, `LogMissing`, `LogUnverified`, `LogDamaged`,
        `RedisUnavailable`, and `PostgresUnavailable` where the archive must be asked; nothing was
        written then, except that after `RedisUnavailable` it may have been, and the same call may
        be made again.
        """
        keys, tenant = self.keys(ref.tenant), ref.tenant
        names = [
            keys.meta,
            keys.log,
            keys.job(ref.job),
            keys.runs,
            keys.bell,
            keys.command(tenant, command.id) if command else keys.meta,
        ]
        payloads = [event.payload for event in events]
        kinds = set(map(type, payloads))
        meaning = [word for word, those in _MEANING.items() if not those.isdisjoint(kinds)]
        if meaning:
            names += [
                keys.builds,
                keys.tenants,
                keys.caps,
                keys.waiting(tenant),
                keys.work("high"),
                keys.work("normal"),
            ]
        if any(isinstance(payload, CancelRequested) for payload in payloads):
            meaning.append("cancelling")
            names.append(keys.cancelling)
        if any(gets_further(payload) for payload in payloads):
            meaning.append("further")
        counts = counts_of(payloads, wall_ms)
        if counts:
            names.append(keys.day(tenant, day_of(events[0].time)))
        args: list[Any] = [
            expected_version,
            tenant,
            project,
            ref.job,
            work_class,
            claim.worker if claim else "",
            claim.attempt if claim else "",
            " ".join(meaning),
            command.request_hash if command else "",
            COMMAND_LIFE_MS if command else "",
            "" if build_number is None else build_number,
            self.tenant_cap,
            MAX_WAITING,
            counts,
            day_limits.as_argument() if day_limits else "",
            len(events),
        ]
        for event in events:
            args += [
                event.id,
                event.payload.type,
                format_time(event.time),
                event.cause,
                event.trace,
                event_data(event),
            ]
        answer = await self._append(ref, project, names, args, expected_version)
        match answer:
            case [b"ok", version, epoch, seq]:
                return Appended(ref.job, version, Position(keys.partition, epoch, seq))
            case [b"repeated", job, version, at]:
                position = Position.at(keys.partition, at.decode())
                return Appended(job.decode(), version, position, repeated=True)
            case [b"refused", b"VersionConflict", actual]:
                raise VersionConflict(ref.job, expected_version, actual)
            case [b"refused", b"CommandIdReused", job]:
                raise CommandIdReused(command.id if command else "", job.decode())
            case [b"refused", b"NumberTaken", last]:
                raise NumberTaken(project, last)
            case [b"refused", b"TooManyWaiting", limit]:
                raise TooManyWaiting(tenant, int(limit))
            case [b"refused", b"QuotaSpent", name, used] if day_limits:
                raise day_limits.spent(tenant, name.decode(), int(used), now=events[0].time)
        raise refusal(answer, partition=keys.partition, job=ref.job)

    async def _append(
        self, ref: JobRef, project: str, names: list[str], args: list[Any], expected_version: int
    ) -> Any:
        """The script's answer, after putting back from the archive what it misses."""
        partition = self.partition(ref.tenant)
        if not expected_version and not _is_fresh(ref.job):
            # Sent again when its stream has expired, it would be version 1 for a second time.
            await self._seed_job(ref)
        answer = await self.scripts(partition, "append", names, args)
        if answer == [b"refused", b"VersionConflict", 0] and expected_version:
            await self._seed_job(ref)
            answer = await self.scripts(partition, "append", names, args)
        if answer == [b"refused", b"NumberUnknown"]:
            await self._seed_build_number(ref.tenant, project)
            answer = await self.scripts(partition, "append", names, args)
        return answer

    # --- what expired comes back from the archive ------------------------------------------------

    async def _seed_job(self, ref: JobRef) -> None:
        """Put the newest event of a job back into its stream, if that has expired."""
        asked_at = await server_time_ms(self.redis)
        newest = await self.archive.newest_of_job(ref.tenant, ref.job)
        if newest is None:
            return
        fields = entry_fields(newest.event, at=newest.position)
        await self.scripts.plain(
            "seed",
            [self.keys(ref.tenant).job(ref.job)],
            [asked_at, newest.event.stream_id, *(part for pair in fields.items() for part in pair)],
        )

    async def last_build_number(self, tenant: str, project: str) -> int:
        """The number of the project's newest build, 0 when it has none."""
        (last,) = await hash_fields(self.redis, self.keys(tenant).builds, f"{tenant}/{project}")
        if last is not None:
            return int(last)
        return await self._seed_build_number(tenant, project)

    async def _seed_build_number(self, tenant: str, project: str) -> int:
        """Put an absent number back from archive and log; what it is now."""
        keys, field = self.keys(tenant), f"{tenant}/{project}"
        for _ in range(SEED_TRIES):
            (cut,) = await hash_fields(self.redis, keys.meta, "cut")
            number = await self._newest_build(keys, tenant, project)
            there = await self.scripts.plain(
                "seed_number", [keys.meta, keys.builds], [cut or "", field, number]
            )
            if there is not None:
                return int(there)
        raise RedisUnavailable(f"the log is cut faster than the builds of {field} can be counted")

    async def _newest_build(self, keys: Keys, tenant: str, project: str) -> int:
        """The number of the project's newest build: in what is not archived yet, or archived."""
        end = await self.archive.end(keys.partition)
        number = await self.archive.last_build(tenant, project)
        after = end.entry_id if end else None
        ours = (tenant.encode(), project.encode())
        while entries := await stream_range(self.redis, keys.log, after=after, count=READ_BATCH):
            for _, fields in entries:
                # Looked at as they are: a backlog is long, and all but a few are of no interest.
                if (fields[b"tenant"], fields[b"project"]) == ours and b"Ready" in fields[b"type"]:
                    event = from_fields(fields)
                    if isinstance(event.payload, JobReady):
                        number = max(number, event.payload.build_number)
            after = entries[-1][0]
        return number

    # --- progress --------------------------------------------------------------------------------

    async def progress(
        self, claim: Claim, kind: str, data: Mapping[str, Any], *, time: datetime
    ) -> bool:
        """Report a line of progress; False once the job's cap is reached and it was left out.

        Raises `Fenced` when the worker does not own the job any more, `PayloadRefused`.
        """
        keys = self.keys(claim.ref.tenant)
        answer = await self.scripts.plain(
            "progress",
            [keys.job(claim.ref.job), keys.runs, keys.bell],
            [
                claim.ref.job,
                claim.worker,
                claim.attempt,
                PROGRESS_CAP_LINES,
                format_time(time),
                kind,
                line_data(kind, data),
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
        position = Position.at(keys.partition, at)
        return Appended(job, int(version), position, repeated=True)

    # --- read ------------------------------------------------------------------------------------

    async def read_job(
        self, ref: JobRef, *, begin: Sequence[StreamEntry] = (), decode: Decode = decode
    ) -> list[RecordedEvent]:
        """Every event of a job in order, from its stream and, what that lacks, the archive.

        Raises `UndecodableEvent`, unless it is to `decode_or_mark`. Empty when there is no such
        job. Beyond the first entries it reads events by their exact ids: a job may have thousands
        of progress lines between. `begin`: those first entries, if the caller has them.
        """
        key = self.keys(ref.tenant).job(ref.job)
        entries = begin or await stream_part(self.scripts.plain.trips, key, count=FIRST_ENTRIES)
        if not entries:
            return await self.archive.read_job(ref.tenant, ref.job, decode=decode)
        found = [fields for _, fields in entries if b"type" in fields]
        version = int(entries[-1][0].split("-")[0])
        if len(entries) == FIRST_ENTRIES and (end := await stream_end(self.redis, key)):
            version = int(end.split("-")[0])
            ids = [f"{number}-0" for number in range(1, version + 1)]
            found = [fields for fields in await stream_exact(self.redis, key, ids) if fields]
        events = {
            event.version: event for event in (from_fields(fields, decode) for fields in found)
        }
        if len(events) < version:
            archived = await self.archive.read_job(ref.tenant, ref.job, decode=decode)
            events = {event.version: event for event in archived} | events
        for number in range(1, max(events, default=0) + 1):
            if number not in events:
                raise LogUnverified(
                    self.partition(ref.tenant), f"version {number} of job {ref.job} is nowhere"
                )
        return [events[number] for number in sorted(events)]

    async def read_log(
        self,
        partition: int,
        after: Position | None,
        *,
        count: int = READ_BATCH,
        decode: Decode = decode,
    ) -> list[LogEntry]:
        """Up to `count` events behind `after` that Redis still has of a partition, in order."""
        key, behind = self._keys[partition].log, after.entry_id if after else None
        if count <= READ_BATCH:
            entries = await stream_part(self.scripts.plain.trips, key, after=behind, count=count)
        else:  # all answers of a shared trip have one time-out
            entries = await stream_range(self.redis, key, after=behind, count=count)
        return [
            LogEntry(
                Position(partition, *map(int, entry_id.split("-"))), from_fields(fields, decode)
            )
            for entry_id, fields in entries
        ]

    async def log_end(self, partition: int) -> Position:
        """The position of the partition's newest event; seq 0 while there is none."""
        epoch, seq = await hash_fields(self.redis, self._keys[partition].meta, "epoch", "seq")
        if epoch is None or seq is None:
            raise LogMissing(partition)
        return Position(partition, int(epoch), int(seq))


def _is_fresh(job: str) -> bool:
    """Whether an id was made so lately that no stream of its job can have expired."""
    try:
        made = UUID(job)
    except ValueError:
        return False
    age_s = time.time() - (made.int >> 80) / 1000  # RFC 9562: milliseconds come first
    return made.version == 7 and abs(age_s) < FRESH_S
