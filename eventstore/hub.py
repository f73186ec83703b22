"""One reader per process tails the bells and wakes whoever waits for news of a job.

A bell says only that there is news. Who is woken then reads behind the last entry that it has, so
that a lost or doubled bell costs nothing but a look. However many listen, the hub takes one
connection.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
import structlog
from redis.asyncio import Redis

from eventstore.connection import redis_errors
from eventstore.errors import EventStoreError
from eventstore.keys import Keys
from eventstore.lookout import Look, Lookout
from eventstore.reading import stream_end
from eventstore.store import EventStore
from eventstore.waker import Waker, WorkWaker

_BLOCK_MS = 1_000
_MOST_HEARINGS = 32
_IN_S = 0.125
_BACKOFF_S = 0.2
_LOOKS_AT_ONCE = 16
# The scripts trim a bell to no fewer rings than these.
_BELL_KEEPS = 1_000
_OF_ITS_WORKER = frozenset({b"event", b"line"})

log = structlog.get_logger()


class Hub:
    """The bells of all partitions, heard once for a whole process. `run` must be running."""

    def __init__(self, store: EventStore, redis: Redis) -> None:
        """`redis`: a client for one blocking connection, whose time-out exceeds a second."""
        self.store = store
        self._redis = redis
        # Thousands of followers that are woken together take turns at the connections.
        self.looking = anyio.CapacityLimiter(_LOOKS_AT_ONCE)
        self._jobs: defaultdict[str, set[Waker]] = defaultdict(set)
        self._requests = Lookout()
        self._work: set[WorkWaker] = set()
        self._events: defaultdict[int, set[Waker]] = defaultdict(set)

    async def run(self) -> None:
        """Listen until cancelled. A Redis that is away is waited for, and then all are woken."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._requests.run)
            await self._run()

    async def _run(self) -> None:
        partitions = {Keys(number).bell: number for number in range(self.store.partitions)}
        # The driver connects anew by itself: who listens must hear of it, news may have passed by.
        await self.store.verification.guard(self._redis, then=self._wake_all)
        while True:
            try:
                ends = {bell: await stream_end(self._redis, bell) or "0-0" for bell in partitions}
                # Whatever rang before these ends were read, its news is looked for now.
                self._wake_all()
                hearings: deque[float] = deque(maxlen=_MOST_HEARINGS)
                while True:
                    # Each costs a trip, however many bells rang: where they ring all the time, they
                    # are heard together. What rings now and then is heard at once.
                    if len(hearings) == _MOST_HEARINGS:
                        await anyio.sleep_until(hearings[0] + _IN_S)
                    hearings.append(anyio.current_time())
                    await self._listen(ends, partitions)
            except EventStoreError as error:
                log.warning("hub_reconnects", error=str(error))
                await anyio.sleep(_BACKOFF_S)

    @contextmanager
    def listen_job(self, job: str) -> Iterator[Waker]:
        """A waker for news of one job, while the block runs."""
        with _listening(self._jobs, job) as waker:
            yield waker

    def look_for_requests(self, job: str, look: Look) -> AbstractContextManager[None]:
        """While the block runs, call `look` when others than its worker did something to a job.

        It may be called more often, and is called again when it raises `EventStoreError`.
        """
        return self._requests.looking(job, look)

    @contextmanager
    def listen_work(self) -> Iterator[WorkWaker]:
        """A waker for new work in any partition, while the block runs."""
        waker = WorkWaker()
        self._work.add(waker)
        try:
            yield waker
        finally:
            self._work.discard(waker)

    @contextmanager
    def listen_events(self, partition: int) -> Iterator[Waker]:
        """A waker for new events of a partition, while the block runs."""
        waker = Waker()
        self._events[partition].add(waker)
        try:
            yield waker
        finally:
            self._events[partition].discard(waker)

    async def _listen(self, ends: dict[str, str], partitions: Mapping[str, int]) -> None:
        """Wait for the next bells and wake who waits for them; moves `ends` on."""
        with redis_errors():
            answer: Any = await self._redis.xread(dict[Any, Any](ends), block=_BLOCK_MS)
        for name, rings in answer or []:
            bell = name.decode()
            ends[bell] = rings[-1][0].decode()
            if len(rings) >= _BELL_KEEPS:
                # So many that older ones may be gone, and with them the names of who should wake.
                self._wake_all()
            for _, fields in rings:
                self._wake(
                    partitions[bell],
                    fields.get(b"job", b"").decode(),
                    fields.get(b"what", b"event"),
                )

    def _wake(self, partition: int, job: str, what: bytes) -> None:
        for waker in self._jobs.get(job, ()):
            waker.wake()
        if what not in _OF_ITS_WORKER:
            self._requests.ring(job)
        if what != b"line":
            for waker in self._events.get(partition, ()):
                waker.wake()
        if what == b"queued":
            for one in self._work:
                one.ring(partition, job)

    def _wake_all(self) -> None:
        self._requests.ring_all()
        for one in self._work:
            one.wake()
        for kind in (self._jobs, self._events):
            for wakers in kind.values():
                for waker in wakers:
                    waker.wake()


@contextmanager
def _listening(wakers: defaultdict[str, set[Waker]], job: str) -> Iterator[Waker]:
    waker = Waker()
    wakers[job].add(waker)
    try:
        yield waker
    finally:
        wakers[job].discard(waker)
        if not wakers[job]:
            del wakers[job]
