"""What keeps Redis small and the queues moving: trimming, expiry, admission by time, dead workers.

Any number of processes may keep house: each step is one script, and doing it twice is harmless.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import structlog
from asyncpg import PostgresError
from sqlalchemy.exc import SQLAlchemyError

from eventstore.errors import EventStoreError
from eventstore.keys import Keys
from eventstore.reading import Fields, stream_length, stream_range
from eventstore.scripts import refusal
from eventstore.store import LEAST_STREAM_LIFE_S, EventStore
from schemas import Position

EVERY_S = 10.0
STREAM_LIFE_S = 600.0
SILENT_LEASES = 40
_PAUSE_AFTER_FAULT_S = 1.0
_BATCH = 250

log = structlog.get_logger()


class Housekeeper:
    """Keeps the partitions of a log tidy.

    What is archived is kept in Redis for `keep_s` (at least as far as Postgres may be set back by a
    restore: the log must still reach back to it), but no more than `keep_events` a partition. The
    stream of a job that has ended lives for `stream_life_s` after its last event was trimmed, a
    minute at least.
    """

    def __init__(
        self,
        store: EventStore,
        *,
        keep_s: float,
        keep_events: int,
        lease_s: float,
        stream_life_s: float = STREAM_LIFE_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if stream_life_s < LEAST_STREAM_LIFE_S:
            raise ValueError(
                f"stream_life_s is {stream_life_s:g}, and must be {LEAST_STREAM_LIFE_S:g} or more: "
                "for so long an answer of the archive is taken to hold"
            )
        self._store = store
        self._keep = timedelta(seconds=keep_s)
        self._keep_events = keep_events
        self._silent_ms = round(lease_s * 1000 * SILENT_LEASES)
        self._stream_life_ms = round(stream_life_s * 1000)
        self._clock = clock

    async def run(self) -> None:
        """Keep house every ten seconds until cancelled."""
        while True:
            for partition in range(self._store.partitions):
                try:
                    await self.keep(partition)
                except EventStoreError as error:
                    log.warning("housekeeping_waits", partition=partition, error=str(error))
                    await anyio.sleep(_PAUSE_AFTER_FAULT_S)
                except (SQLAlchemyError, PostgresError) as error:
                    # Nothing of it is trimmed until somebody looks; the others go on.
                    log.error("housekeeping_stuck", partition=partition, exc_info=error)
                    await anyio.sleep(_PAUSE_AFTER_FAULT_S)
            await anyio.sleep(EVERY_S)

    async def keep(self, partition: int) -> None:
        """Do all there is to do for a partition now."""
        for tenant in await self._store.work.tenants(partition):
            await self._store.work.admit(tenant)
        if removed := await self._store.work.retire(partition, silent_ms=self._silent_ms):
            log.info("consumers_retired", partition=partition, count=removed)
        if cut := await self.trim(partition):
            log.debug("log_trimmed", partition=partition, events=cut)

    async def trim(self, partition: int) -> int:
        """Cut what is archived and not kept; how many events."""
        keys, archived = Keys(partition), await self._store.archive.end(partition)
        total = 0
        while archived:
            surplus = await stream_length(self._store.redis, keys.log) - self._keep_events
            # As they are, not decoded: what cannot be decoded does not stand in the way here.
            entries = await stream_range(self._store.redis, keys.log, count=_BATCH)
            old: list[tuple[Position, Fields]] = []
            for number, (entry_id, fields) in enumerate(entries):
                position = Position.at(partition, entry_id)
                if position > archived or not (number < surplus or self._is_old(fields)):
                    break
                old.append((position, fields))
            if old:
                total += await self._cut(keys, old)
            if len(old) < _BATCH:
                break
        return total

    def _is_old(self, fields: Fields) -> bool:
        time = datetime.fromisoformat(fields[b"time"].decode())
        return self._clock() - time >= self._keep

    async def _cut(self, keys: Keys, old: Sequence[tuple[Position, Fields]]) -> int:
        """Cut these entries, the first of the log, and let the streams of their jobs expire."""
        last, _ = old[-1]
        newest = {fields[b"job"].decode(): fields for _, fields in old}
        names = [keys.meta, keys.log, keys.runs, keys.builds, *map(keys.job, newest)]
        args: list[Any] = [f"{last.epoch}-{last.seq + 1}", self._stream_life_ms]
        for job, fields in newest.items():
            project = f"{fields[b'tenant'].decode()}/{fields[b'project'].decode()}"
            args += [job, fields[b"version"], project]
        answer = await self._store.scripts(keys.partition, "trim", names, args)
        match answer:
            case [b"ok", cut, _]:
                return int(cut)
        raise refusal(answer, partition=keys.partition)
