"""Repairing a log that Redis lost or has another history of: made anew behind its archive.

Per broken partition, its entry of the register locked, so that neither an opener nor a projector
gets past:

    fence      whoever has the log open appends nothing more
    save       all that Redis has of it goes to a file
    epoch      a new one is registered, which begins behind the archive's end
    remove     every key that is not its own (caps, quotas, secrets), `meta` first
    make       an empty log that goes on behind the archive

Then every job that had not ended is failed like any other, for what an unarchived end held cannot
be known. Whoever dies in between leaves a partition that is as broken as before or, behind `make`,
jobs that no queue has: either way the next repair goes on from there.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from redis.asyncio import Redis
from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore.archive import Archive
from eventstore.connection import postgres_errors, redis_errors
from eventstore.errors import LogUnverified, RepairRefused
from eventstore.handling import CommandHandler
from eventstore.keys import FORMAT, Keys
from eventstore.opening import open_log
from eventstore.reading import (
    hash_fields,
    stream_edge,
    stream_end,
    stream_length,
)
from eventstore.register import Epoch, Registration
from eventstore.salvage import Found, OnProgress, Salvage, log_batches, scanned
from eventstore.scripts import Scripts
from eventstore.store import TENANT_CAP
from eventstore.tables import events_table
from eventstore.transfer import written_whole
from eventstore.verification import check_identity, check_server, compare
from schemas import TERMINAL_TYPES, JobIsTerminal, JobRef, Position
from schemas.commands import FailJob

HISTORY_LOST = "history_lost"
_BATCH = 250
_SCANNED = 1_000
_RESTORE = (
    "Postgres has lost events, not Redis: restore a newer backup of it, or let DATABASE_URL name "
    "the database with the archive; nothing was changed"
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Living:
    """A job that has not ended as far as its archive knows, up to `version`."""

    ref: JobRef
    version: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a partition whose archive ends at `archived` (None: it is empty).

    `is_broken`: its log must be made anew. Otherwise an earlier repair did that, and died before it
    had failed all of `living`, the jobs that no queue has.
    """

    partition: int
    reason: str
    archived: Position | None
    living: tuple[Living, ...]
    is_broken: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that was failed, and the debug id under which it was."""

    job: Living
    debug_id: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done about a fault."""

    fault: Fault
    found: Found
    failed: tuple[Failed, ...]


class Repair:
    """Examines a log, and makes its broken partitions anew."""

    def __init__(
        self,
        redis: Redis,
        engine: AsyncEngine,
        folder: Path,
        *,
        tenant_cap: int = TENANT_CAP,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_progress: OnProgress = lambda what, done, total: None,
    ) -> None:
        """`redis`: a client of `connect_redis` that nothing verifies yet; `folder`: for files."""
        self._redis = redis
        self._engine = engine
        self._archive = Archive(engine)
        self._folder = folder
        self._tenant_cap = tenant_cap
        self._clock = clock
        self._salvage = Salvage(redis, engine, on_progress)
        self._tell = on_progress

    # --- examine ---------------------------------------------------------------------------------

    async def examine(self) -> list[Fault]:
        """The faults of all partitions; none where the log can be opened. Changes nothing.

        Raises `RepairRefused` where a repair would not help, `ServerUnsuitable`,
        `RedisUnavailable`, `PostgresUnavailable`.
        """
        await check_server(self._redis)
        registered = await self._archive.register.all()
        if not registered:
            await self._refuse_a_log_without_archive()
        faults = []
        for number, one in enumerate(registered):
            self._tell("comparing", number, len(registered))
            reason = await self._broken(one)
            archived = await self._archive.end(one.partition)
            if reason:
                living = await self._living(one.partition)
                faults.append(Fault(one.partition, reason, archived, tuple(living)))
            elif forgotten := await self._forgotten(one.partition):
                reason = "jobs that have not ended stand in no queue: an earlier repair broke off"
                faults.append(Fault(one.partition, reason, archived, tuple(forgotten), False))
        return faults

    async def survey(self, fault: Fault) -> Found:
        """What `run` would save of a partition."""
        return await self._salvage.save(Keys(fault.partition), None)

    async def _broken(self, registered: Registration) -> str:
        """Why a partition's log cannot be opened, '' if it can. Raises `RepairRefused`."""
        keys = Keys(registered.partition)
        lineage, made_as, epoch, seq = await hash_fields(
            self._redis, keys.meta, "lineage", "format", "epoch", "seq"
        )
        if lineage is None and registered.state == "creating":
            return ""
        if lineage is not None:
            try:
                check_identity(registered, lineage, made_as)
            except LogUnverified as error:
                raise RepairRefused(f"{error}; nothing was changed") from error
        archived = await self._archive.end(keys.partition)
        first = await stream_edge(self._redis, keys.log)
        known = archived.seq if archived else 0
        if first and (begin := Position.at(keys.partition, first)).seq > known + 1:
            ends = f"its archive ends at {archived}" if archived else "its archive is empty"
            raise RepairRefused(
                f"the log of partition {keys.partition} begins at {begin}, and {ends}: {_RESTORE}"
            )
        if lineage is None or epoch is None or seq is None:
            return "Redis has no log of it" if first is None else "Redis has a log without its meta"
        try:
            end = Position(keys.partition, int(epoch), int(seq))
            await compare(self._redis, self._archive, keys, end)
        except LogUnverified as error:
            return error.reason
        return ""

    async def _refuse_a_log_without_archive(self) -> None:
        """Postgres knows no log: one that Redis has must be whole, or Postgres has lost it."""
        with redis_errors():
            metas: Any = [name async for name in self._redis.scan_iter("hr:{*}:meta", _SCANNED)]
        for name in metas:
            (seq,) = await hash_fields(self._redis, name.decode(), "seq")
            length = await stream_length(self._redis, name.decode().removesuffix("meta") + "log")
            if seq != str(length):
                raise RepairRefused(f"Postgres knows no log, Redis has the end of one: {_RESTORE}")

    async def _living(self, partition: int) -> list[Living]:
        """The jobs that have not ended as far as the archive knows."""
        table = events_table
        ended = func.bool_or(func.split_part(table.c.type, ".", 1).in_(TERMINAL_TYPES))
        query = (
            select(table.c.tenant, table.c.job, func.max(table.c.version).label("version"))
            .where(table.c.partition == partition)
            .group_by(table.c.tenant, table.c.job)
            .having(~ended)
            .order_by(table.c.job)
        )
        rows = await self._rows(query)
        return [Living(JobRef(row.tenant, row.job), row.version) for row in rows]

    async def _forgotten(self, partition: int) -> list[Living]:
        """Living jobs that no queue has: append and queue are one step, so a repair died here."""
        keys, found = Keys(partition), await self._living(partition)
        lost: list[Living] = []
        for some in _chunks(found, _BATCH):
            runs = await hash_fields(self._redis, keys.runs, *(one.ref.job for one in some))
            lost += [one for one, run in zip(some, runs, strict=True) if run is None]
        if not lost:
            return []
        ended = {
            fields[b"job"].decode()
            async for batch in log_batches(self._redis, keys, await self._archive.end(partition))
            for _, fields in batch
            if fields[b"type"].decode() in TERMINAL_TYPES
        }
        return [one for one in lost if one.ref.job not in ended]

    # --- repair ----------------------------------------------------------------------------------

    async def run(self, faults: Sequence[Fault]) -> list[Repaired]:
        """Mend these faults. Raises what `examine` raises; run again after whatever stopped it."""
        if not faults:
            return []
        server = await check_server(self._redis)
        found = {
            fault.partition: await self._remake(fault.partition, server)
            for fault in faults
            if fault.is_broken
        }
        partitions = len(await self._archive.register.all())
        store = await open_log(
            self._redis, self._archive, partitions=partitions, tenant_cap=self._tenant_cap
        )
        handler = CommandHandler(store, clock=self._clock)
        return [
            Repaired(
                fault,
                found.get(fault.partition, Found()),
                await self._fail_forgotten(handler, fault.partition),
            )
            for fault in faults
        ]

    async def _remake(self, partition: int, server: str) -> Found:
        """Make a partition's log anew, unless somebody else just did."""
        keys = Keys(partition)
        async with self._archive.register.held(partition) as held:
            if not await self._broken(held.registration):
                return Found()
            newest = await self._newest_epoch(keys, held.registration)
            await self._fence(keys)
            found = await self._save(keys)
            end = await self._archive.end(partition)
            epoch = Epoch(newest + 1, (end.seq if end else 0) + 1, server)
            await held.enter([epoch])
            await self._remove(keys)
            await self._make(keys, held.registration.lineage, epoch)
        log.warning("log_repaired", partition=partition, epoch=epoch.number, after=str(end))
        return found

    async def _newest_epoch(self, keys: Keys, registered: Registration) -> int:
        """The newest epoch that a position may have been given out in, whoever knows of it."""
        (epoch,) = await hash_fields(self._redis, keys.meta, "epoch")
        last = await stream_end(self._redis, keys.log)
        archived = await self._archive.end(keys.partition)
        return max(
            registered.newest.number,
            int(epoch or 0),
            Position.at(keys.partition, last).epoch if last else 0,
            archived.epoch if archived else 0,
        )

    async def _fence(self, keys: Keys) -> None:
        """Whoever has the log open must verify it before the next append, and waits for us."""
        (lineage,) = await hash_fields(self._redis, keys.meta, "lineage")
        if lineage is not None:
            with redis_errors():
                await self._redis.hset(keys.meta, "run", "")

    async def _save(self, keys: Keys) -> Found:
        """Write what Redis has to a file, which is whole and on the disk before this returns."""
        path = self._folder / f"{self._clock():%Y%m%dT%H%M%S.%fZ}-p{keys.partition}.jsonl"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                found = await self._salvage.save(keys, file)
        except OSError as error:
            raise RepairRefused(f"{path}: {error.strerror}; nothing was removed") from error
        if found.events:
            found.file = path
        else:
            path.unlink()
        return found

    async def _remove(self, keys: Keys) -> None:
        """Remove the partition's keys, `meta` first; what others keep there stays."""
        removed = 0
        with redis_errors():
            await self._redis.unlink(keys.meta)
            async for some in scanned(self._redis, f"hr:{{{keys.partition}}}:*"):
                names = [name for name in some if name not in keys.kept]
                if names:
                    removed += await self._redis.unlink(*names)
                self._tell(f"removing the keys of partition {keys.partition}", removed, None)

    async def _make(self, keys: Keys, lineage: str, epoch: Epoch) -> None:
        """Make the partition's log: empty, and behind its archive."""
        partitions = len(await self._archive.register.all())
        answer = await Scripts(self._redis)(
            "create",
            [keys.meta, keys.log, keys.work("high"), keys.work("normal")],
            [lineage, epoch.number, epoch.run, FORMAT, partitions, epoch.start_seq - 1],
        )
        if answer != b"created":
            raise LogUnverified(keys.partition, "somebody else made it at the same time")

    async def _fail_forgotten(self, handler: CommandHandler, partition: int) -> tuple[Failed, ...]:
        """Fail the partition's living jobs that no queue has."""
        failed: list[Failed] = []
        living = await self._forgotten(partition)
        for number, one in enumerate(living):
            self._tell(f"failing jobs of partition {partition}", number, len(living))
            debug_id = f"dbg-{secrets.token_hex(6)}"
            message = (
                f"Redis lost data, and this job's history may have been lost after version "
                f"{one.version}: submit it again"
            )
            try:
                await handler.handle(one.ref, FailJob(HISTORY_LOST, message, debug_id))
            except JobIsTerminal:
                continue
            log.warning("history_lost", job=one.ref.job, version=one.version, debug_id=debug_id)
            failed.append(Failed(one, debug_id))
        return tuple(failed)

    async def _rows(self, query: Select[Any]) -> list[Any]:
        with postgres_errors():
            async with self._engine.connect() as connection:
                return list((await connection.execute(query)).all())


def _chunks(items: Sequence[Any], size: int) -> Iterable[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))
