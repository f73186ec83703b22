"""`EventStore.read_log` beside raw `XRANGE` by the same client on the same server.

Ours gives positions and typed events, whose payloads are checked models; the raw side gives what
the client makes of the answer, fields as bytes.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from benchmarks.builds import fill
from benchmarks.rows import Round, Row, Say, compared, silent
from benchmarks.servers import Target
from eventstore import EventStore
from eventstore.keys import Keys
from schemas import Position
from service.embedded import Servers

EVENTS = 100_000
BATCH = 500
ROUNDS = 9
"""More than elsewhere: they are short, and neighbours on the machine show in them."""

Batches = Callable[[EventStore, int], AsyncGenerator[int, None]]


def bench_log(target: Target, say: Say = silent, *, events: int = EVENTS) -> list[Row]:
    """How many events a second are read from a log of `events` and decoded.

    - log_read: batches of 500, one partition after the other, whole builds of twelve events.
    """
    return target.measure(partial(_measure, events, say))


async def _measure(events: int, say: Say, store: EventStore, _: Servers) -> list[Row]:
    await fill(store, events, say)
    ours: list[Round] = []
    theirs: list[Round] = []
    for number in range(1, ROUNDS + 1):
        say(f"log_read: round {number} of {ROUNDS}")
        theirs.append(await _round(store, raw_batches))
        ours.append(await _round(store, typed_batches))
    return compared("log_read", ours, f"XRANGE, COUNT {BATCH}", theirs)


async def _round(store: EventStore, batches: Batches) -> Round:
    latencies_ms: list[float] = []
    events = 0
    began = last = time.perf_counter()
    for partition in range(store.partitions):
        async with aclosing(batches(store, partition)) as sizes:
            async for size in sizes:
                now = time.perf_counter()
                latencies_ms.append((now - last) * 1000)
                events, last = events + size, now
    return Round(events / (last - began), latencies_ms)


async def typed_batches(store: EventStore, partition: int) -> AsyncGenerator[int, None]:
    after: Position | None = None
    while entries := await store.read_log(partition, after, count=BATCH):
        after = entries[-1].position
        yield len(entries)


async def raw_batches(store: EventStore, partition: int) -> AsyncGenerator[int, None]:
    stream, begin = Keys(partition).log, "-"
    while True:
        entries: Any = await store.redis.xrange(stream, begin, count=BATCH)
        if not entries:
            return
        begin = f"({entries[-1][0].decode()}"
        yield len(entries)
