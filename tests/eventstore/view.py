"""All that can be seen of a partition in Redis, freed of what is chance: entry ids and clocks."""

from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from eventstore.keys import GROUP, Keys
from schemas import Position

CLASSES = ("high", "normal")


@dataclass(frozen=True, slots=True)
class Logged:
    """An event in the log: where it stands, and enough to know it again."""

    position: Position
    id: str
    type: str
    job: str
    version: int


@dataclass(frozen=True, slots=True)
class Run:
    """A job that lives. `deliveries`: workers it was given to in vain, and the one that has it."""

    tenant: str
    work_class: str
    waits: bool
    owner: str | None
    attempt: int
    deliveries: int


@dataclass(frozen=True, slots=True)
class View:
    """Dictionaries by job, by tenant or by class."""

    end: Position
    log: list[Logged]
    streams: dict[str, list[tuple[str, str]]]
    """Entry ids, and what stands there: an event's id, or `line`."""
    may_expire: set[str]
    runs: dict[str, Run]
    work: dict[str, list[str]]
    held: dict[str, dict[str, str]]
    """The owner of each job, as the consumer group has it."""
    waiting: dict[str, list[str]]
    running: dict[str, int]
    caps: dict[str, int]
    commands: dict[str, str]
    """By tenant and command id, with a colon between them."""
    builds: dict[tuple[str, str], int] = field(default_factory=dict, compare=False)
    """By tenant and project; only those that were needed lately."""


_READ = {
    "bell": "XLEN",
    "builds": "HGETALL",
    "cancelling": "ZRANGE",
    "caps": "HGETALL",
    "cmd": "GET",
    "day": "HGETALL",
    "job": "XRANGE",
    "log": "XRANGE",
    "meta": "HGETALL",
    "quotas": "HGETALL",
    "runs": "HGETALL",
    "tenants": "HGETALL",
    "waiting": "ZRANGE",
    "work": "XRANGE",
}
_ALL: dict[str, tuple[Any, ...]] = {"XRANGE": ("-", "+"), "ZRANGE": (0, -1)}


async def look(redis: Redis, partition: int) -> View:
    """What stands there now. A key that nobody knows of is a `KeyError`."""
    found, lives_ms, pending = await _read(redis, partition)
    meta, runs = found["meta", ""], found.get(("runs", ""), {})
    told = {job: one.split() for job, one in runs.items()}
    entries = {name: found["work", name] for name in CLASSES}
    # Where a job says that its work entry is, there it is.
    assert {job: one[2] for job, one in told.items() if one[2] != "-"} == {
        fields["job"]: entry for name in CLASSES for entry, fields in entries[name]
    }
    return View(
        end=Position(partition, int(meta["epoch"]), int(meta["seq"])),
        log=[
            Logged(
                Position.at(partition, entry),
                fields["id"],
                fields["type"],
                fields["job"],
                int(fields["version"]),
            )
            for entry, fields in found.get(("log", ""), [])
        ],
        streams={
            job: [(entry, fields.get("id", "line")) for entry, fields in stream]
            for job, stream in _of("job", found).items()
        },
        may_expire={job for job, left_ms in lives_ms.items() if left_ms >= 0},
        runs={
            job: Run(
                tenant, name, entry == "-", owner.strip("-") or None, int(attempt), int(deliveries)
            )
            for job, (tenant, name, entry, owner, attempt, deliveries) in told.items()
        },
        work={name: [fields["job"] for _, fields in entries[name]] for name in CLASSES},
        held={
            name: {
                fields["job"]: pending[entry] for entry, fields in entries[name] if entry in pending
            }
            for name in CLASSES
        },
        waiting={
            tenant: [one.split()[0] for one in those]
            for tenant, those in _of("waiting", found).items()
        },
        running={tenant: int(n) for tenant, n in found.get(("tenants", ""), {}).items()},
        caps={tenant: int(n) for tenant, n in found.get(("caps", ""), {}).items()},
        commands=_of("cmd", found),
        builds={
            (tenant, project): int(number)
            for name, number in found.get(("builds", ""), {}).items()
            for tenant, project in [name.split("/")]
        },
    )


async def _read(
    redis: Redis, partition: int
) -> tuple[dict[tuple[str, str], Any], dict[str, int], dict[str, str]]:
    """Contents by kind of key and the rest of its name; lives of job streams; entries' owners."""
    begin = Keys(partition).meta.removesuffix("meta")
    names = [name.removeprefix(begin) for name in text_of(await redis.keys(f"{begin}*"))]
    kinds = [(kind, rest) for kind, _, rest in (name.partition(":") for name in sorted(names))]
    jobs = [rest for kind, rest in kinds if kind == "job"]
    pipeline = redis.pipeline(transaction=False)
    for kind, rest in kinds:
        command = _READ[kind]
        key = f"{begin}{kind}:{rest}" if rest else f"{begin}{kind}"
        pipeline.execute_command(command, key, *_ALL.get(command, ()))
    for job in jobs:
        pipeline.pttl(Keys(partition).job(job))
    for name in CLASSES:
        pipeline.xpending_range(Keys(partition).work(name), GROUP, "-", "+", 100)
    answers = text_of(await pipeline.execute())
    contents, rest_of_them = answers[: len(kinds)], answers[len(kinds) :]
    pending = [one for those in rest_of_them[len(jobs) :] for one in those]
    return (
        dict(zip(kinds, contents, strict=True)),
        dict(zip(jobs, rest_of_them, strict=False)),
        {one["message_id"]: one["consumer"] for one in pending},
    )


def _of(kind: str, found: dict[tuple[str, str], Any]) -> dict[str, Any]:
    return {rest: content for (one, rest), content in found.items() if one == kind}


def text_of(answer: Any) -> Any:
    """The same with text for bytes."""
    match answer:
        case bytes():
            return answer.decode()
        case dict():
            return {text_of(key): text_of(value) for key, value in answer.items()}
        case list() | tuple():
            return [text_of(one) for one in answer]
    return answer
