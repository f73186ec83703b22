"""Whether the log in Redis is the one that Postgres knows, and whole.

The same cases as in `eventstore/verification.py`, looked at without opening anything.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from eventstore import Archive, LogEntry
from eventstore.keys import FORMAT, Keys
from eventstore.register import Registration
from schemas import Position
from service.doctor.finding import Finding, Level, count, ok, partitions, problem


@dataclass(frozen=True, slots=True)
class RedisPart:
    """A partition as Redis has it; `lineage` is None where there is no log."""

    partition: int
    lineage: str | None
    epoch: int
    seq: int
    run: str
    format: str
    made_with: str
    length: int
    first_seq: int | None
    last_seq: int | None


@dataclass(frozen=True, slots=True)
class Fault:
    """What can be wrong with a partition, in the same words for all of them."""

    level: Level
    says: str
    why: str
    remedy: str


_RIGHT_SERVERS = "check that REDIS_URL and DATABASE_URL name servers that belong together"
_REPAIR = (
    "let REDIS_URL name the server that has its data, or put them back; "
    "if they are gone for good: ./headrace log repair"
)
_RESTORE = "restore a newer backup of Postgres, or let DATABASE_URL name the one with the archive"

MISSING = Fault(
    Level.PROBLEM,
    "Postgres knows a log that this Redis does not have",
    "Headrace does not start: with an empty log positions and numbers would be given twice.",
    _REPAIR,
)
ANOTHER = Fault(
    Level.PROBLEM,
    "the log in this Redis is not the one that Postgres knows",
    "Headrace does not start: it would mix two histories.",
    _RIGHT_SERVERS,
)
SUPERSEDED = Fault(
    Level.PROBLEM,
    "the log ends behind the beginning of a newer epoch: another server has superseded this one",
    "What it took since is known to nobody else. Headrace does not start on it.",
    _REPAIR,
)
SHORT = Fault(
    Level.PROBLEM,
    "the log ends before its archive: Redis has lost events",
    "Positions that the archive has would be given again. Headrace does not start.",
    _REPAIR,
)
FORKED = Fault(
    Level.PROBLEM,
    "where the archive ends the log has another event",
    "Redis has another history than the one that was folded. Headrace does not start.",
    _REPAIR,
)
TORN = Fault(
    Level.PROBLEM,
    "the log's last entry is not the one that `meta` counts",
    "Somebody else wrote into the log or cut it: events are missing. Headrace does not start.",
    _REPAIR,
)
GAP = Fault(
    Level.PROBLEM,
    "the log begins behind the end of its archive",
    "What is between them exists nowhere else. Headrace does not start.",
    _RESTORE,
)
TRIMMED = Fault(
    Level.PROBLEM,
    "Postgres knows no log, and the one in this Redis has lost its beginning",
    "What was archived and cut exists only in the database that is not here.",
    _RESTORE,
)
OTHER_FORMAT = Fault(
    Level.PROBLEM,
    f"the log's format is not {FORMAT}",
    "Another version of Headrace made it; this one would misread it.",
    "run the Headrace that made the log",
)
OTHER_EPOCH = Fault(
    Level.WARNING,
    "Redis and Postgres name different epochs",
    "The log was not opened to the end; it is compared with its archive at the next start.",
    "./headrace up",
)
ADOPTED = Fault(
    Level.WARNING,
    "Postgres knows no log, and this Redis has a whole one",
    "The next start takes it over and folds it again. Was the database meant to be empty?",
    "./headrace up (or let DATABASE_URL name the database with the archive)",
)


async def read_partitions(redis: Redis, number: int) -> list[RedisPart]:
    """The first `number` partitions as Redis has them."""
    pipeline = redis.pipeline(transaction=False)
    for partition in range(number):
        keys = Keys(partition)
        pipeline.hgetall(keys.meta)
        pipeline.xlen(keys.log)
        pipeline.xrange(keys.log, count=1)
        pipeline.xrevrange(keys.log, count=1)
    answers: list[Any] = await pipeline.execute()
    return [_part(partition, *answers[4 * partition :][:4]) for partition in range(number)]


def _part(
    partition: int, meta: dict[bytes, bytes], length: int, oldest: list[Any], newest: list[Any]
) -> RedisPart:
    known = {name.decode(): value.decode() for name, value in meta.items()}
    return RedisPart(
        partition=partition,
        lineage=known.get("lineage"),
        epoch=int(known.get("epoch", 0)),
        seq=int(known.get("seq", 0)),
        run=known.get("run", ""),
        format=known.get("format", ""),
        made_with=known.get("partitions", ""),
        length=length,
        first_seq=_seq(oldest[0][0]) if oldest else None,
        last_seq=_seq(newest[0][0]) if newest else None,
    )


def _seq(entry_id: bytes) -> int:
    return int(entry_id.decode().partition("-")[2])


async def check_log(
    redis: Redis,
    archive: Archive,
    registered: Sequence[Registration],
    parts: Sequence[RedisPart],
    *,
    wanted: int,
    server: str,
) -> list[Finding]:
    """Everything about the log; `wanted` is the number of partitions in the settings."""
    known = {registration.partition: registration for registration in registered}
    if not known and all(part.lineage is None for part in parts):
        return [ok("log", "not made yet: the first start makes it")]
    made_with = str(len(known)) if known else next(filter(None, (p.made_with for p in parts)), "")
    if made_with and made_with != str(wanted):
        return [
            problem(
                "log",
                f"it has {made_with} partitions, HEADRACE_PARTITIONS is {wanted}",
                "The number is fixed when a log is made. Headrace does not start with another.",
                f"export HEADRACE_PARTITIONS={made_with}",
            )
        ]
    faults: dict[Fault, list[int]] = defaultdict(list)
    for part in parts:
        archived = await archive.tail(part.partition, 1) if known else []
        archived_seq = archived[0].position.seq if archived else 0
        found = judge_partition(known.get(part.partition), part, archived_seq)
        if found is None and archived and not await _agree(redis, archived[0]):
            found = FORKED
        if found is not None:
            faults[found].append(part.partition)
    if faults:
        return [
            Finding("log", fault.level, _in(fault, which), fault.why, fault.remedy)
            for fault, which in faults.items()
        ]
    says = f"{count(len(parts), 'partition')}, {count(sum(part.seq for part in parts), 'event')}"
    if any(part.run != server for part in parts):
        says += "; verified anew at the next start"
    return [ok("log", says)]


def judge_partition(
    registered: Registration | None, part: RedisPart, archived_seq: int
) -> Fault | None:
    """What is wrong with a partition by what both sides say of it."""
    if registered is None:
        if part.lineage is None:
            return None
        return ADOPTED if part.seq == part.length else TRIMMED
    if part.lineage is None:
        return MISSING if registered.state == "open" else None
    if part.lineage != registered.lineage:
        return ANOTHER
    if part.format != FORMAT:
        return OTHER_FORMAT
    if archived_seq > part.seq:
        return SHORT
    if not registered.rightful(Position(part.partition, part.epoch, part.seq)):
        return SUPERSEDED
    # A log that is archived to its end may be empty.
    if part.seq != (archived_seq if part.last_seq is None else part.last_seq):
        return TORN
    if part.first_seq is not None and part.first_seq > archived_seq + 1:
        return GAP
    return OTHER_EPOCH if part.epoch != registered.newest.number else None


async def _agree(redis: Redis, archived: LogEntry) -> bool:
    """Whether at the archive's end the log has the same event, or has cut it already."""
    at = archived.position
    found: Any = await redis.xrange(Keys(at.partition).log, at.entry_id, at.entry_id)
    return not found or found[0][1][b"id"].decode() == archived.event.id


def _in(fault: Fault, which: Sequence[int]) -> str:
    return f"{fault.says} ({partitions(which)})"
