"""One reader per process tails the bells and wakes whoever waits for news of a job.

A bell says only that there is news. Followers then read the job's own stream behind the last entry
they have, so that a lost or doubled bell costs nothing but a look. However many followers there
are, the hub takes one connection.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import structlog
from redis.asyncio import Redis

from eventstore.connection import redis_errors
from eventstore.errors import EventStoreError
from eventstore.keys import Keys
from eventstore.reading import Fields, stream_end, stream_range
from eventstore.store import EventStore
from schemas import JobRef, RecordedEvent, from_fields

START = "0-0"
LOOK_AGAIN_S = 5.0
_BLOCK_MS = 1_000
_BACKOFF_S = 0.2
_BATCH = 256

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """Something worth showing that is not a fact. `kind`: log, file, note, capped."""

    id: str
    kind: str
    time: str
    data: bytes


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event of the followed job. `id` is its entry id, `<version>-0`."""

    id: str
    event: RecordedEvent


JobEntry = JobEvent | ProgressLine


class Waker:
    """Set when there may be news; waits until then."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def wake(self) -> None:
        """Let `wait` return, now or when it is called next."""
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Return at the next `wake`, or after `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            await self._event.wait()
        self._event = anyio.Event()


class Hub:
    """The bells of all partitions, heard once for a whole process. `run` must be running."""

    def __init__(self, store: EventStore, redis: Redis) -> None:
        """`redis`: a client for one blocking connection, whose time-out exceeds a second."""
        self._store = store
        self._redis = redis
        self._jobs: defaultdict[str, set[Waker]] = defaultdict(set)
        self._work: set[Waker] = set()
        self._events: defaultdict[int, set[Waker]] = defaultdict(set)

    async def run(self) -> None:
        """Listen until cancelled. A Redis that is away is waited for, and then all are woken."""
        partitions = {Keys(number).bell: number for number in range(self._store.partitions)}
        while True:
            try:
                await self._store.note_restart()
                ends = {bell: await stream_end(self._redis, bell) or START for bell in partitions}
                # Whatever rang before these ends were read, its news is looked for now.
                self._wake_all()
                while True:
                    await self._listen(ends, partitions)
            except EventStoreError as error:
                log.warning("hub_reconnects", error=str(error))
                await anyio.sleep(_BACKOFF_S)

    @contextmanager
    def listen_job(self, job: str) -> Iterator[Waker]:
        """A waker for news of one job, while the block runs."""
        waker = Waker()
        self._jobs[job].add(waker)
        try:
            yield waker
        finally:
            self._jobs[job].discard(waker)
            if not self._jobs[job]:
                del self._jobs[job]

    @contextmanager
    def listen_work(self) -> Iterator[Waker]:
        """A waker for new work in any partition, while the block runs."""
        waker = Waker()
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

    async def follow(self, ref: JobRef, after: str = START) -> AsyncGenerator[JobEntry, None]:
        """Every event of a job behind entry `after`, in order, then live, with progress between.

        Endless: the caller stops when it has seen what it wants. Events come at least once under a
        stable id. Raises `RedisUnavailable`; follow again after the last id received.
        """
        last = after
        with self.listen_job(ref.job) as waker:
            while True:
                while entries := await self._entries(ref, last):
                    for entry in entries:
                        yield entry
                    last = entries[-1].id
                await waker.wait(LOOK_AGAIN_S)

    async def _entries(self, ref: JobRef, after: str) -> list[JobEntry]:
        key = self._store.keys(ref.tenant).job(ref.job)
        found = await stream_range(self._store.redis, key, after=after, count=_BATCH)
        if found:
            return [_entry(entry_id, fields) for entry_id, fields in found]
        if after == START:
            return [JobEvent(e.stream_id, e) for e in await self._store.read_job(ref)]
        return []

    async def _listen(self, ends: dict[str, str], partitions: Mapping[str, int]) -> None:
        """Wait for the next bells and wake who waits for them; moves `ends` on."""
        with redis_errors():
            answer: Any = await self._redis.xread(dict[Any, Any](ends), block=_BLOCK_MS)
        for name, rings in answer or []:
            bell = name.decode()
            ends[bell] = rings[-1][0].decode()
            for _, fields in rings:
                self._wake(partitions[bell], fields[b"job"].decode(), fields[b"what"])

    def _wake(self, partition: int, job: str, what: bytes) -> None:
        for waker in self._jobs.get(job, ()):
            waker.wake()
        if what != b"line":
            for waker in self._events.get(partition, ()):
                waker.wake()
        if what == b"queued":
            for waker in self._work:
                waker.wake()

    def _wake_all(self) -> None:
        for wakers in (self._work, *self._jobs.values(), *self._events.values()):
            for waker in wakers:
                waker.wake()


def _entry(entry_id: str, fields: Fields) -> JobEntry:
    if b"type" in fields:
        return JobEvent(entry_id, from_fields(fields))
    return ProgressLine(
        id=entry_id,
        kind=fields[b"kind"].decode(),
        time=fields[b"time"].decode(),
        data=fields[b"data"],
    )
