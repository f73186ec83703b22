"""Reads of streams and hashes with exact types; the driver's own say `bytes | str | None`."""

from typing import Any, cast

from redis.asyncio import Redis

from eventstore.connection import redis_errors
from eventstore.trips import Trips

Fields = dict[bytes, bytes]
StreamEntry = tuple[str, Fields]

FIRST_ENTRIES = 64
"""Of a job's stream, read in one go: that is all there is of most."""


def stream_entries(found: list[tuple[bytes, list[bytes]]]) -> list[StreamEntry]:
    """Entries as a script gives them."""
    return [
        (entry_id.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
        for entry_id, fields in found
    ]


async def stream_range(
    redis: Redis, key: str, *, after: str | None = None, count: int | None = None
) -> list[StreamEntry]:
    """Entries behind id `after` (from the beginning when None), in order."""
    with redis_errors():
        found: Any = await redis.xrange(key, f"({after}" if after else "-", count=count)
    return [(entry_id.decode(), fields) for entry_id, fields in found]


async def stream_part(
    trips: Trips, key: str, *, after: str | None = None, count: int
) -> list[StreamEntry]:
    """What `stream_range` gives, in a trip that is shared with whatever else is due."""
    begin = f"({after}" if after else "-"
    with redis_errors():
        found: Any = await trips("XRANGE", key, begin, "+", "COUNT", count)
    return [(entry_id.decode(), fields) for entry_id, fields in found]


async def stream_behind(
    redis: Redis, key: str, after: str, *, count: int, at: str
) -> tuple[list[StreamEntry], Fields | None]:
    """Entries behind id `after`, and then the fields of the one with id `at`; one trip."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.xrange(key, f"({after}", count=count)
    pipeline.xrange(key, at, at)
    with redis_errors():
        found: Any = await pipeline.execute()
    entries, exact = found
    return [(one.decode(), fields) for one, fields in entries], exact[0][1] if exact else None


async def stream_ends(redis: Redis, key: str) -> tuple[str | None, str | None]:
    """The ids of a stream's first entry and of its newest one; one trip."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.xrange(key, count=1)
    pipeline.xrevrange(key, count=1)
    with redis_errors():
        found: Any = await pipeline.execute()
    first, last = (entries[0][0].decode() if entries else None for entries in found)
    return first, last


async def stream_end(redis: Redis, key: str) -> str | None:
    """The id of a stream's newest entry."""
    with redis_errors():
        newest: Any = await redis.xrevrange(key, count=1)
    return newest[0][0].decode() if newest else None


async def stream_edge(redis: Redis, key: str, *, after: str | None = None) -> str | None:
    """The id of a stream's first entry, or of the first behind `after`."""
    with redis_errors():
        found: Any = await redis.xrange(key, f"({after}" if after else "-", count=1)
    return found[0][0].decode() if found else None


async def stream_length(redis: Redis, key: str) -> int:
    """How many entries a stream has."""
    with redis_errors():
        return int(await redis.xlen(key))


async def stream_exact(redis: Redis, key: str, ids: list[str]) -> list[Fields | None]:
    """The fields of the entries with exactly these ids, None where there is none; one trip."""
    pipeline = redis.pipeline(transaction=False)
    for entry_id in ids:
        pipeline.xrange(key, entry_id, entry_id)
    with redis_errors():
        found: Any = await pipeline.execute()
    return [entries[0][1] if entries else None for entries in found]


async def hash_fields(redis: Redis, key: str, *names: str) -> list[str | None]:
    """The values of a hash's fields, None for those it lacks."""
    with redis_errors():
        values = cast("list[bytes | None]", await redis.hmget(key, list(names)))
    return [None if value is None else value.decode() for value in values]


async def fields_of_hashes(redis: Redis, keys: list[str], *names: str) -> list[list[str | None]]:
    """What `hash_fields` gives, of each of these hashes; one trip."""
    pipeline = redis.pipeline(transaction=False)
    for key in keys:
        pipeline.hmget(key, list(names))
    with redis_errors():
        found = cast("list[list[bytes | None]]", await pipeline.execute())
    return [[None if value is None else value.decode() for value in values] for values in found]


async def server_time_ms(redis: Redis) -> int:
    """The server's clock, in milliseconds since 1970."""
    with redis_errors():
        seconds, microseconds = await redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
