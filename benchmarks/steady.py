"""Memory under a steady load: builds come, are archived, trimmed and expire, and Redis stays small.

What an installation keeps for an hour is kept for a number of events here, so that a run of minutes
shows what weeks would.
"""

import time
from functools import partial

from benchmarks.builds import EVENTS_A_BUILD, fill, held
from benchmarks.rows import Row, Say, silent
from benchmarks.servers import Target
from eventstore import EventStore, Housekeeper, connect_postgres
from projector import Projector
from service.embedded import Servers

EVENTS = 1_000_000
SLICES = 50
"""The load comes in so many parts, each followed by what runs beside it all the time in life."""

KEEP_EVENTS = 1_000


def bench_steady(
    target: Target, say: Say = silent, *, events: int = EVENTS, slices: int = SLICES
) -> list[Row]:
    """What Redis holds while `events` go through it, archived and trimmed on the way.

    - steady_memory: its `used_memory` at the end, beside that after a tenth.
    - steady_keys: its keys at the end, beside those after a tenth.
    - steady_events: events a second through log, archive and read model, beside those of the first
      tenth.
    """
    return target.measure(partial(_measure, events, slices, say))


async def _measure(
    events: int, slices: int, say: Say, store: EventStore, servers: Servers
) -> list[Row]:
    engine = connect_postgres(servers.database_url)
    projector = Projector(store, engine)
    keeper = Housekeeper(store, keep_s=0, keep_events=KEEP_EVENTS, lease_s=15)
    found: list[tuple[float, float, float]] = []
    try:
        for part in range(1, slices + 1):
            began, had = time.perf_counter(), await held(store)
            await fill(store, max(events * part // slices, had + EVENTS_A_BUILD), say)
            await projector.catch_up()
            for partition in range(store.partitions):
                await keeper.keep(partition)
            await _expire(store)
            rate = (await held(store) - had) / (time.perf_counter() - began)
            found.append((*await _holds(store), rate))
    finally:
        await engine.dispose()
    tenth = max(1, slices // 10)
    rows = []
    for (metric, unit), values in zip(
        (("steady_memory", "bytes"), ("steady_keys", "keys"), ("steady_events", "events/s")),
        zip(*found, strict=True),
        strict=True,
    ):
        # The middle one: streams are on their way out at any one moment.
        first, last = sorted(values[:tenth]), sorted(values[-tenth:])
        rows.append(
            Row(metric, round(last[tenth // 2], 1), unit, "a tenth", round(first[tenth // 2], 1))
        )
    return rows


async def _expire(store: EventStore) -> None:
    """Let the time to live of every stream of a job pass that has one."""
    async for key in store.redis.scan_iter("hr:{*}:job:*", count=1_000):
        if await store.redis.pttl(key) > 0:
            await store.redis.pexpire(key, 0)


async def _holds(store: EventStore) -> tuple[float, float]:
    memory = await store.redis.info("memory")
    return float(memory["used_memory"]), float(await store.redis.dbsize())
