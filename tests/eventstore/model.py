"""What the log promises, in plain Python: the store must agree with it after every step.

The methods are called like those of `EventStore` and `Work`, give what they give and raise what
they raise. Nothing is counted up or down here: how many jobs of a tenant run is found by counting
them, a project's newest build by looking through its history.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from eventstore import (
    Admission,
    Appended,
    Claim,
    CommandId,
    CommandIdReused,
    Fenced,
    NumberTaken,
    TooManyWaiting,
    VersionConflict,
)
from schemas import JobRef, NewEvent, Position, gets_further, partition_of
from schemas.events import TERMINAL_TYPES, CancelRequested, JobQueued, JobReady, PreviewExpired
from tests.eventstore.view import CLASSES, Logged, Run, View


@dataclass(slots=True)
class ModelJob:
    """A job. While it lives it waits (no `ticket`), may run, or runs (`owner`)."""

    ref: JobRef
    project: str
    work_class: str
    events: list[Logged] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """Entry ids of its progress."""
    in_stream_from: int | None = 1
    """The first version that its own stream still has; None when that has expired."""
    may_expire: bool = False
    lives: bool = True
    ticket: int | None = None
    """Its place among the jobs that may run: the lower, the earlier."""
    owner: str | None = None
    attempt: int = 0
    deliveries: int = 0
    silent: bool = False
    """Whether its owner's last heartbeat is longer ago than a lease."""
    handed_back: bool = False
    """Whether it has no owner because the last one gave it back."""
    cancelled_at: int | None = None
    """Where the log stood when its worker was first asked to cancel it."""

    @property
    def version(self) -> int:
        return len(self.events)

    @property
    def queued_at(self) -> int:
        return self.events[0].position.seq

    @property
    def consumer(self) -> str | None:
        """Whom its work entry is with: `-` when it was handed back."""
        return self.owner or ("-" if self.handed_back else None)

    def is_held_by(self, claim: Claim) -> bool:
        return self.lives and (self.owner, self.attempt) == (claim.worker, claim.attempt)

    def stream(self) -> list[tuple[str, str]]:
        """Entry ids of its stream, and what stands there: an event's id, or `line`."""
        if self.in_stream_from is None:
            return []
        events = [(f"{e.version}-0", e.id) for e in self.events[self.in_stream_from - 1 :]]
        return sorted(events + [(line, "line") for line in self.lines], key=_by_id)

    def has_sent(self, events: Sequence[NewEvent], after: int) -> bool:
        """Whether its stream has these events behind version `after` already."""
        begin = self.in_stream_from
        return bool(
            events
            and begin is not None
            and begin <= after + 1
            and [event.id for event in self.events[after : after + len(events)]]
            == [event.id for event in events]
        )

    def seed(self) -> None:
        """The newest event comes back from the archive, for a while."""
        self.in_stream_from, self.may_expire = self.version, True


@dataclass(slots=True)
class ModelPartition:
    """A partition's log. `opened_lately`: less than a lease ago."""

    number: int
    epoch: int = 1
    history: list[Logged] = field(default_factory=list)
    archived: int = 0
    trimmed: int = 0
    opened_lately: bool = True

    @property
    def end(self) -> Position:
        return Position(self.number, self.epoch, len(self.history))


class Model:
    """The log of all partitions."""

    def __init__(
        self, partitions: int, *, tenant_cap: int, max_waiting: int, max_lines: int
    ) -> None:
        self.partitions = [ModelPartition(number) for number in range(partitions)]
        self.jobs: dict[str, ModelJob] = {}
        self.caps: dict[str, int] = {}
        self.commands: dict[tuple[str, str], tuple[CommandId, Appended]] = {}
        self._tenant_cap = tenant_cap
        self._max_waiting = max_waiting
        self._max_lines = max_lines
        self._tickets = count()

    def partition(self, tenant: str) -> ModelPartition:
        return self.partitions[partition_of(tenant, len(self.partitions))]

    # --- append ----------------------------------------------------------------------------------

    def append(
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
        job, partition = self.jobs.get(ref.job), self.partition(ref.tenant)
        if job and job.in_stream_from is None and not expected_version:
            job.seed()  # asked for first: these ids do not say when they were made
        if command and (known := self.find_command(ref.tenant, command)):
            return known
        version = job.version if job else 0
        if job and job.in_stream_from is None and not claim:
            job.seed()  # a claim of a job that has ended is refused before
        if job and version != expected_version and job.has_sent(events, expected_version):
            last = job.events[expected_version + len(events) - 1]
            return Appended(ref.job, last.version, last.position)
        if claim and job and not job.is_held_by(claim):
            raise _fenced(job)
        if version != expected_version:
            raise VersionConflict(ref.job, expected_version, version)
        types = {event.payload.type for event in events}
        self._check_room(ref.tenant, types)
        self._check_number(ref.tenant, project, types, build_number)

        if JobQueued.type in types:
            job = self.jobs[ref.job] = ModelJob(ref, project, work_class)
        for event in events:
            assert job is not None
            self._log(partition, job, event)
        if job and events:
            job.may_expire = False
        if job and job.lives and types & TERMINAL_TYPES:
            job.lives, job.ticket, job.owner, job.handed_back = False, None, None, False
        if job and job.lives and CancelRequested.type in types and job.cancelled_at is None:
            job.cancelled_at = partition.end.seq
        if job and job.lives and any(gets_further(event.payload) for event in events):
            job.deliveries = 0
        if types & {JobQueued.type, PreviewExpired.type, *TERMINAL_TYPES}:
            self._let_in(ref.tenant)
        appended = Appended(ref.job, expected_version + len(events), partition.end)
        if command:
            self.commands[ref.tenant, command.id] = (command, appended)
        return appended

    def _check_room(self, tenant: str, types: set[str]) -> None:
        if JobQueued.type not in types or len(self.running(tenant)) < self.cap(tenant):
            return
        if len(self.waiting(tenant)) >= self._max_waiting:
            raise TooManyWaiting(tenant, self._max_waiting)

    def _check_number(
        self, tenant: str, project: str, types: set[str], proposed: int | None
    ) -> None:
        last = self.last_build_number(tenant, project)
        if JobReady.type in types and proposed != last + 1:
            raise NumberTaken(project, last)

    def _log(self, partition: ModelPartition, job: ModelJob, event: NewEvent) -> None:
        at = Position(partition.number, partition.epoch, len(partition.history) + 1)
        logged = Logged(at, event.id, event.payload.type, job.ref.job, job.version + 1)
        partition.history.append(logged)
        job.events.append(logged)

    def find_command(self, tenant: str, command: CommandId) -> Appended | None:
        known = self.commands.get((tenant, command.id))
        if known is None:
            return None
        first, appended = known
        if first != command:
            raise CommandIdReused(command.id, appended.job)
        return Appended(appended.job, appended.version, appended.position, repeated=True)

    def last_build_number(self, tenant: str, project: str) -> int:
        return sum(
            event.type == JobReady.type
            for job in self.jobs.values()
            if (job.ref.tenant, job.project) == (tenant, project)
            for event in job.events
        )

    # --- admission -------------------------------------------------------------------------------

    def living(self, tenant: str) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.lives and job.ref.tenant == tenant]

    def running(self, tenant: str) -> list[ModelJob]:
        return [job for job in self.living(tenant) if job.ticket is not None]

    def waiting(self, tenant: str) -> list[ModelJob]:
        """In the order in which they will be let in."""
        waiting = [job for job in self.living(tenant) if job.ticket is None]
        return sorted(waiting, key=lambda job: (CLASSES.index(job.work_class), job.queued_at))

    def cap(self, tenant: str) -> int:
        return self.caps.get(tenant, self._tenant_cap)

    def set_cap(self, tenant: str, cap: int | None) -> Admission:
        self.caps.pop(tenant, None)
        if cap is not None:
            self.caps[tenant] = cap
        return self.admit(tenant)

    def admit(self, tenant: str) -> Admission:
        admitted = self._let_in(tenant)
        return Admission(len(self.running(tenant)), self.cap(tenant), admitted)

    def _let_in(self, tenant: str) -> int:
        admitted = self.waiting(tenant)[: max(0, self.cap(tenant) - len(self.running(tenant)))]
        for job in admitted:
            job.ticket = next(self._tickets)
        return len(admitted)

    # --- claims ----------------------------------------------------------------------------------

    def claim(self, partition: int, worker: str, *, free_slots: int) -> list[Claim]:
        """Abandoned jobs before new ones, each by class and then by age.

        Before all, and beyond the slots, those that are being cancelled, by when that was asked.
        """
        may_be_silent = not self.partitions[partition].opened_lately
        runnable = self._runnable(partition)
        abandoned = [
            job
            for job in runnable
            if job.handed_back or (job.owner and job.silent and may_be_silent)
        ]
        new = [job for job in runnable if not job.owner and not job.handed_back]
        cancelled = sorted(
            (job for job in abandoned if job.cancelled_at is not None),
            key=lambda job: job.cancelled_at or 0,
        )
        others = [job for job in abandoned + new if job not in cancelled]
        return [self._take(job, worker) for job in cancelled + others[:free_slots]]

    def _runnable(self, partition: int) -> list[ModelJob]:
        return [job for name in CLASSES for job in self.work(partition, name)]

    def work(self, partition: int, work_class: str) -> list[ModelJob]:
        """The jobs of a class that may run or do, in order."""
        found = [
            (job.ticket, job)
            for job in self.jobs_of(partition)
            if job.lives and job.ticket is not None and job.work_class == work_class
        ]
        return [job for _, job in sorted(found, key=lambda pair: pair[0])]

    def _take(self, job: ModelJob, worker: str) -> Claim:
        job.owner, job.silent, job.handed_back = worker, False, False
        job.attempt += 1
        job.deliveries += 1
        return Claim(
            ref=job.ref,
            project=job.project,
            work_class=job.work_class,
            entry_id="",
            worker=worker,
            attempt=job.attempt,
            deliveries=job.deliveries,
        )

    def heartbeat(self, claim: Claim) -> bytes:
        job = self.jobs[claim.ref.job]
        if not job.lives:
            return b"ended"
        if not job.is_held_by(claim):
            return b"lost"
        job.silent = False
        return b"held"

    def release(self, claim: Claim) -> bool:
        job = self.jobs[claim.ref.job]
        if not job.is_held_by(claim):
            return False
        job.owner, job.handed_back = None, True
        job.deliveries = max(0, job.deliveries - 1)
        return True

    def progress(self, claim: Claim) -> bool:
        job = self.jobs[claim.ref.job]
        if not job.is_held_by(claim):
            raise _fenced(job)
        if len(job.lines) > self._max_lines:
            return False
        number = 1 + sum(line.startswith(f"{job.version}-") for line in job.lines)
        job.lines.append(f"{job.version}-{number}")
        return True

    # --- time passes -----------------------------------------------------------------------------

    def archive(self) -> None:
        for partition in self.partitions:
            partition.archived = len(partition.history)

    def trim(self, partition: int, keep: int) -> int:
        """Cut all but the newest `keep`, as far as it is archived; how many events."""
        log = self.partitions[partition]
        end = max(log.trimmed, min(log.archived, len(log.history) - keep))
        cut = log.history[log.trimmed : end]
        for job in {event.job: self.jobs[event.job] for event in cut}.values():
            if not job.lives and job.events[-1] in cut:
                job.may_expire = job.in_stream_from is not None
        log.trimmed = end
        return len(cut)

    def expire(self, job: ModelJob) -> None:
        assert job.may_expire
        job.in_stream_from, job.may_expire = None, False
        job.lines.clear()

    def restart(self) -> None:
        """Another server process: nobody knows what was seen of the old one."""
        for partition in self.partitions:
            partition.epoch += 1
            partition.opened_lately = True

    # --- look ------------------------------------------------------------------------------------

    def view(self, number: int) -> View:
        partition, jobs = self.partitions[number], self.jobs_of(number)
        living = [job for job in jobs if job.lives]
        tenants = sorted({job.ref.tenant for job in living})
        return View(
            end=partition.end,
            log=partition.history[partition.trimmed :],
            streams={job.ref.job: stream for job in jobs if (stream := job.stream())},
            may_expire={job.ref.job for job in jobs if job.may_expire},
            runs={
                job.ref.job: Run(
                    job.ref.tenant,
                    job.work_class,
                    job.ticket is None,
                    job.owner,
                    job.attempt,
                    job.deliveries,
                )
                for job in living
            },
            work={name: _names(self.work(number, name)) for name in CLASSES},
            held={
                name: {job.ref.job: job.consumer for job in self.work(number, name) if job.consumer}
                for name in CLASSES
            },
            waiting={name: _names(found) for name in tenants if (found := self.waiting(name))},
            running={name: len(self.running(name)) for name in tenants},
            caps={
                name: cap for name, cap in self.caps.items() if self.partition(name) is partition
            },
            commands={
                f"{tenant}:{key}": " ".join(
                    (command.request_hash, done.job, str(done.version), done.position.entry_id)
                )
                for (tenant, key), (command, done) in self.commands.items()
                if self.partition(tenant) is partition
            },
        )

    def jobs_of(self, partition: int) -> list[ModelJob]:
        return [
            job for job in self.jobs.values() if self.partition(job.ref.tenant).number == partition
        ]


def _fenced(job: ModelJob) -> Fenced:
    if not job.lives:
        return Fenced(job.ref.job, "-", 0)
    return Fenced(job.ref.job, job.owner or "-", job.attempt)


def _names(jobs: Iterable[ModelJob]) -> list[str]:
    return [job.ref.job for job in jobs]


def _by_id(entry: tuple[str, str]) -> tuple[int, ...]:
    return tuple(int(part) for part in entry[0].split("-"))
