"""Whether the read model keeps up with the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from eventstore.keys import Keys
from schemas import Position
from service.doctor.finding import Finding, count, duration, ok, partitions, problem, warning
from service.doctor.log import RedisPart

LATE_WARNING_S, LATE_PROBLEM_S = 60.0, 600.0
"""A batch of 500 takes some ten milliseconds: a minute is no backlog any more, it stands still."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What of one partition is not folded; `oldest` is None when the log lacks what comes next."""

    partition: int
    events: int
    oldest: datetime | None


async def read_backlogs(
    redis: Redis, parts: Sequence[RedisPart], folded: Mapping[int, Position]
) -> list[Backlog]:
    """The partitions that are not folded to the end."""
    backlogs = []
    for part in parts:
        checkpoint = folded.get(part.partition)
        seq = checkpoint.seq if checkpoint else 0
        if seq >= part.seq:
            continue
        after = f"({checkpoint.entry_id}" if checkpoint else "-"
        found: Any = await redis.xrange(Keys(part.partition).log, after, "+", count=1)
        is_next = found and int(found[0][0].decode().partition("-")[2]) == seq + 1
        oldest = datetime.fromisoformat(found[0][1][b"time"].decode()) if is_next else None
        backlogs.append(Backlog(part.partition, part.seq - seq, oldest))
    return backlogs


def judge_backlogs(backlogs: Sequence[Backlog], *, now: datetime, at_rest: bool) -> Finding:
    """`at_rest`: no Headrace runs on these servers, so nobody folds before the next start."""
    check = "read model"
    if broken := [backlog.partition for backlog in backlogs if backlog.oldest is None]:
        return problem(
            check,
            f"the log does not reach back to what comes next ({partitions(broken)})",
            "Events between the checkpoint and the log's beginning are in neither: nothing of "
            "these partitions is folded any more.",
            "restore the newest backup of the database, or the data of Redis",
        )
    if not backlogs:
        return ok(check, "folded to the end of the log")
    events = count(sum(backlog.events for backlog in backlogs), "event")
    if at_rest:
        return ok(check, f"{events} to fold at the next start")
    age_s = max((now - (backlog.oldest or now)).total_seconds() for backlog in backlogs)
    says = f"{events} to fold, the oldest from {duration(age_s)} ago"
    if age_s <= LATE_WARNING_S:
        return ok(check, says)
    found = problem if age_s > LATE_PROBLEM_S else warning
    return found(
        check,
        f"{says} ({partitions(backlog.partition for backlog in backlogs)})",
        "Lists of jobs and builds are that old. Either no projector runs, or it stands still: "
        "then its log output says `projector_stuck` and at which event.",
        "./headrace up",
    )
