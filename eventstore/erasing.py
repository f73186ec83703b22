"""Taking erased jobs out of Redis: their streams with all progress, their commands, their log.

The archive is erased first; what is put here in place of anything comes from there. Nothing that is
not archived is removed, so positions, numbers and followers go on as after any trimming.
"""

from collections.abc import Collection, Sequence
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore.archive import recorded
from eventstore.connection import asking, redis_errors
from eventstore.entries import LogEntry
from eventstore.housekeeping import Housekeeper
from eventstore.keys import Keys
from eventstore.reading import stream_edge
from eventstore.scripts import refusal
from eventstore.store import LEAST_STREAM_LIFE_S, EventStore
from eventstore.tables import events_table
from schemas import Position, decode_or_mark, entry_fields

NODE_ENTRIES = 100
"""Entries that share a node of a stream at most (`stream-node-max-entries`).

A trimmed entry is only marked as deleted as long as its node has another that is not: its bytes go
with the node. https://redis.io/docs/latest/operate/oss_and_stack/management/config/
"""
_JOBS = 50
_SCANNED = 1_000
_FOR_EVER_S = 100 * 365 * 86_400.0


async def newest_events(
    engine: AsyncEngine, partition: int, jobs: Collection[str]
) -> list[LogEntry]:
    """The newest archived event of each of these jobs of a partition; also what does not decode."""
    table = events_table
    async with asking(engine) as connection:
        found = await connection.execute(
            select(table)
            .where(table.c.partition == partition, table.c.job.in_(jobs))
            .ext(distinct_on(table.c.job))
            .order_by(table.c.job, table.c.epoch.desc(), table.c.seq.desc())
        )
        return [
            LogEntry(
                Position(row.partition, row.epoch, row.seq),
                recorded(row._asdict(), decode_or_mark),
            )
            for row in found
        ]


async def forget_streams(store: EventStore, partition: int, newest: Sequence[LogEntry]) -> int:
    """Remove the streams of ended jobs, whose newest archived events these are.

    How many could not be: something was appended that is not archived yet. Raises
    `RedisUnavailable`, `LogMissing`, `LogUnverified`.
    """
    keys, left = Keys(partition), 0
    for first in range(0, len(newest), _JOBS):
        some = newest[first : first + _JOBS]
        args: list[Any] = [round(LEAST_STREAM_LIFE_S * 1000)]
        for position, event in some:
            args += [event.job, event.version]
            args += [part for pair in entry_fields(event, at=position).items() for part in pair]
        names = [keys.meta, keys.runs, *(keys.job(event.job) for _, event in some)]
        match answer := await store.scripts(partition, "forget", names, args):
            case [b"ok", number]:
                left += number
            case _:
                raise refusal(answer, partition=partition)
    return left


async def forget_commands(store: EventStore, tenant: str, jobs: Collection[str]) -> int:
    """Remove what commands of a tenant were answered with, if it names one of these jobs.

    Sent again, such a command is a new one. How many were removed. Raises `RedisUnavailable`.
    """
    pattern, cursor, removed = store.keys(tenant).command(tenant, "*"), 0, 0
    while True:
        with redis_errors():
            cursor, found = await store.redis.scan(cursor, match=pattern, count=_SCANNED)
            names = [cast("bytes", name) for name in found]
            values = cast("list[bytes | None]", await store.redis.mget(names) if names else [])
        ours = {
            name: value
            for name, value in zip(names, values, strict=True)
            if value is not None and value.decode().split(" ")[1] in jobs
        }
        if ours:
            removed += await store.scripts.plain(
                "forget_commands", [name.decode() for name in ours], list(ours.values())
            )
        if not cursor:
            return removed


async def cut_log(store: EventStore, last: Position) -> bool:
    """Cut the log past `last`, as far as it is archived; whether no byte up to there is left.

    False: an event behind it that is not archived yet shares a node with it. Raises what
    `Housekeeper.trim` raises.
    """
    end = await store.log_end(last.partition)
    behind = max(0, end.seq - last.seq - NODE_ENTRIES)
    # A log that grows meanwhile is cut by as much more: it is archived all the same.
    keeper = Housekeeper(store, keep_s=_FOR_EVER_S, keep_events=behind, lease_s=1.0)
    await keeper.trim(last.partition)
    first = await stream_edge(store.redis, Keys(last.partition).log)
    return first is None or Position.at(last.partition, first).seq > last.seq + NODE_ENTRIES
