"""Verifying the log: it is made exactly once, and nothing is appended to one not verified.

Postgres owns the truth about which log there is (`register.py`). Per partition:

    Postgres       Redis               what happens
    not there      empty               registered as `creating`, then made
    `creating`     empty               made, then marked `open`
    `creating`     the same lineage    an opener died in between: marked `open`
    `open`         the same lineage    compared with the archive, then opened
    `open`         empty               LogMissing
    not there      whole log           adopted: Postgres was made anew
    not there      trimmed log         LogUnverified: its beginning exists nowhere
    older          log that reaches    opened: the projector folds on from its checkpoint
                   back far enough
    older          log trimmed past    LogUnverified: what is between exists nowhere
                   the archive's end
    `open`         ends before or      LogUnverified: Redis has lost events, or has others
                   differs from the
                   archive; meta
                   without its log
    `open`         ends behind the     LogUnverified: another server has superseded this one, which
                   beginning of a      took events that nobody else knows
                   newer epoch
    any            another lineage     LogUnverified

A consumer group that is absent is made anew (`lua/regroup.lua`): no job is lost by it.

A server process on which the log was not verified yet (a restart, a replica that was promoted,
another server under the same address) begins a new epoch: nobody can know whether the events after
the last one found had been seen by somebody, so no position is used a second time. The register
has it first, under a lock that projectors share: what an isolated old server still appends to the
old epoch behind this point is never archived.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import anyio
import structlog
from redis.asyncio import Redis

from eventstore.archive import Archive, Archived, newest_ids
from eventstore.connection import Pool, redis_errors, server_id
from eventstore.errors import (
    LogMissing,
    LogUnverified,
    PostgresUnavailable,
    RedisUnavailable,
    ServerUnsuitable,
)
from eventstore.keys import FORMAT, Keys
from eventstore.reading import (
    fields_of_hashes,
    hash_fields,
    stream_edge,
    stream_ends,
    stream_exact,
)
from eventstore.register import Epoch, Held, Registration
from eventstore.scripts import Scripts
from schemas import Position

FIRST_EPOCH = 1
VERIFY_S = 30.0
_COMPARED = 100
_TRIES = 3
_MAX_SEQ = 2**64 - 1
_RESTORE_POSTGRES = "restore a newer backup of Postgres"
_REPAIR = (
    "put the data of Redis back, or, if they are gone for good, run `./headrace log repair`, which "
    "saves what is there and makes the log anew from its archive"
)

log = structlog.get_logger()


def pool_of(redis: Redis) -> Pool:
    """The pool of a client that `connect_redis` made."""
    pool = redis.connection_pool
    if not isinstance(pool, Pool):
        raise TypeError("a client of eventstore.connect_redis is needed")
    return pool


class Verification:
    """Verifies a log, once for every server process that turns up behind its address.

    `server` names the server process it was verified on, `lineages` what was found there.
    """

    def __init__(self, redis: Redis, archive: Archive, partitions: int) -> None:
        self.server = ""
        self.lineages: dict[int, str] = {}
        self._pool = pool_of(redis)
        self._archive = archive
        self._partitions = partitions
        self._lock = anyio.Lock()

    async def guard(self, redis: Redis, *, then: Callable[[], None] = lambda: None) -> None:
        """Verify every connection of `redis` from now on, and call `then` when it has been."""

        async def verify(server: str) -> None:
            await self.verify(server)
            then()

        pool = pool_of(redis)
        pool.verify = verify
        await pool.disconnect(inuse_connections=False)

    async def verify(self, server: str) -> None:
        """Return when the log is verified on `server`; raises otherwise."""
        if server == self.server:
            return
        with _for_now():
            async with self._lock:
                if server != self.server:
                    await self._open()
        if server != self.server:
            raise RedisUnavailable("Redis was replaced while its log was verified")

    async def verify_again(self) -> None:
        """Verify the log on whichever server answers now."""
        async with self._lock:
            await self._open()

    async def renew(self, refused: str) -> None:
        """Verify the log once more, as what was verified on `refused` does not hold any more.

        Of many callers who were refused at once, one verifies.
        """
        with _for_now():
            async with self._lock:
                if refused == self.server:
                    await self._open()

    async def _open(self) -> None:
        redis = self._pool.unverified()
        try:
            self.server = ""
            server = await check_server(redis)
            self.lineages = await self._open_partitions(redis, server)
            self.server = server
            # Those that others have to a superseded server, which may live on, lead nowhere now.
            await self._pool.disconnect(inuse_connections=False)
        finally:
            await redis.aclose(close_connection_pool=True)

    async def _open_partitions(self, redis: Redis, server: str) -> dict[int, str]:
        register = self._archive.register
        registered = await register.all()
        if not registered:
            keys = [Keys(number) for number in range(self._partitions)]
            registered = await register.add(
                [await _unregistered(redis, one, self._partitions) for one in keys]
            )
        if len(registered) != self._partitions:
            raise ServerUnsuitable(
                f"this log has {len(registered)} partitions, not {self._partitions}: their number "
                "is fixed when a log is made"
            )
        scripts = Scripts(redis)
        for one in registered:
            if one.state == "creating":
                await _make(scripts, one, server, self._partitions)
        for _ in range(_TRIES):
            if await self._reopen(redis, scripts, server) and await _regroup(
                scripts, registered, server
            ):
                return {one.partition: one.lineage for one in registered}
        raise RedisUnavailable("Redis is being opened by others: try again")

    async def _reopen(self, redis: Redis, scripts: Scripts, server: str) -> bool:
        """Compare each partition with its archive and let it be appended to; False: look again.

        The register has the new epochs of all partitions, or of none.
        """
        async with self._archive.register.all_held() as entries:
            numbers = [held.registration.partition for held in entries]
            archived = await newest_ids(entries[0].connection, numbers, _COMPARED)
            begun = [
                (meta, await _epoch(redis, held, meta, archived[number], server))
                for number, held, meta in zip(
                    numbers, entries, await _metas(redis, numbers), strict=True
                )
            ]
        answers = [await _let(scripts, meta, epoch, server) for meta, epoch in begun if epoch]
        return all(answers)


@dataclass(frozen=True, slots=True)
class _Meta:
    """What Redis says of a partition's log."""

    end: Position
    lineage: str
    made_as: str | None
    run: str


async def _metas(redis: Redis, partitions: Sequence[int]) -> list[_Meta]:
    """What Redis says of these partitions. Raises `LogMissing`."""
    found = await fields_of_hashes(
        redis,
        [Keys(number).meta for number in partitions],
        *("lineage", "format", "run", "epoch", "seq"),
    )
    metas = []
    for number, (lineage, made_as, run, epoch, seq) in zip(partitions, found, strict=True):
        if lineage is None or epoch is None or seq is None:
            raise LogMissing(number)
        metas.append(_Meta(Position(number, int(epoch), int(seq)), lineage, made_as, run or ""))
    return metas


async def _make(scripts: Scripts, registered: Registration, server: str, partitions: int) -> None:
    """Make the log of a partition that is registered as `creating`, unless it is there."""
    keys, lineage = Keys(registered.partition), registered.lineage
    answer = await scripts(
        "create",
        [keys.meta, keys.log, keys.work("high"), keys.work("normal")],
        [lineage, registered.newest.number, server, FORMAT, partitions, 0],
    )
    check_identity(registered, lineage if answer == b"created" else answer.decode(), FORMAT)


async def _epoch(
    redis: Redis, held: Held, meta: _Meta, archived: Archived, server: str
) -> Epoch | None:
    """The epoch that a verified partition goes on in, entered; None where it is in it already."""
    registered, end, newest = held.registration, meta.end, held.registration.newest
    check_identity(registered, meta.lineage, meta.made_as)
    if registered.state == "creating":
        await held.mark_open()
    await _compare(redis, registered, archived, end)
    if end.epoch > newest.number:
        # Postgres is older than Redis: it learns what came since.
        await held.enter(await _epochs(redis, Keys(end.partition), end, after=newest.number))
        newest = Epoch(end.epoch, 0)
    if meta.run == server and end.epoch == newest.number:
        return None
    if newest.run != server:
        newest = Epoch(max(newest.number, end.epoch) + 1, end.seq + 1, server)
        await held.enter([newest])
    return newest


async def _let(scripts: Scripts, meta: _Meta, epoch: Epoch, server: str) -> bool:
    """Let a partition be appended to in an epoch; False: it has changed since it was compared."""
    keys = Keys(meta.end.partition)
    answer = await scripts(
        "reopen",
        [keys.meta],
        [meta.lineage, meta.run, meta.end.seq, server, epoch.number],
    )
    log.info("log_reopened", partition=keys.partition, epoch=epoch.number, after=str(meta.end))
    return bool(answer)


async def _regroup(scripts: Scripts, registered: Sequence[Registration], server: str) -> bool:
    """Make consumer groups anew that somebody has destroyed; False: look again."""
    for one in registered:
        keys = Keys(one.partition)
        names = [keys.meta, keys.runs, keys.work("high"), keys.work("normal")]
        answer = await scripts("regroup", names, [one.lineage, server])
        if answer[0] != b"ok":
            return False
        if answer[1]:
            log.warning("groups_made_anew", partition=keys.partition, groups=answer[1])
    return True


@contextmanager
def _for_now() -> Iterator[None]:
    """Whoever works on the log waits while it cannot be verified, as for a Redis that is away."""
    try:
        with anyio.fail_after(VERIFY_S):
            yield
    except (PostgresUnavailable, ServerUnsuitable, TimeoutError) as error:
        raise RedisUnavailable(
            "Redis was restarted or replaced, and its log cannot be verified yet: "
            f"{error or 'Postgres did not answer in time'}"
        ) from error


async def _unregistered(redis: Redis, keys: Keys, partitions: int) -> Registration:
    """What to register for a partition that Postgres does not know."""
    lineage, epoch, seq, made_with = await hash_fields(
        redis, keys.meta, "lineage", "epoch", "seq", "partitions"
    )
    if lineage is None or epoch is None:
        return Registration(keys.partition, str(uuid4()), "creating", (Epoch(FIRST_EPOCH, 1),))
    if made_with != str(partitions):
        raise ServerUnsuitable(
            f"the log in this Redis has {made_with} partitions, not {partitions}: their number is "
            "fixed when a log is made"
        )
    with redis_errors():
        length = await redis.xlen(keys.log)
    if seq != str(length):
        raise LogUnverified(
            keys.partition,
            f"Postgres is empty, and Redis has only {length} of {seq} events",
            "DATABASE_URL must name the database with its archive, or one restored from a backup",
        )
    log.info("log_adopted", partition=keys.partition, events=length)
    end = Position(keys.partition, int(epoch), int(seq))
    epochs = await _epochs(redis, keys, end, after=0)
    return Registration(keys.partition, lineage, "open", tuple(epochs))


async def _epochs(redis: Redis, keys: Keys, end: Position, *, after: int) -> list[Epoch]:
    """The epochs behind number `after` as the log's entries show them, up to that of `end`."""
    found: list[Epoch] = []
    while edge := await stream_edge(redis, keys.log, after=f"{after}-{_MAX_SEQ}"):
        position = Position.at(keys.partition, edge)
        found.append(Epoch(position.epoch, position.seq))
        after = position.epoch
    if after < end.epoch:
        found.append(Epoch(end.epoch, end.seq + 1))
    return found


def check_identity(registered: Registration, lineage: str, made_as: str | None) -> None:
    """Raises `LogUnverified` unless a log found is the registered one, in the format read here."""
    if lineage != registered.lineage:
        raise LogUnverified(
            registered.partition, f"found lineage {lineage}, registered is {registered.lineage}"
        )
    if made_as != FORMAT:
        raise LogUnverified(
            registered.partition,
            f"it has format {made_as}, this Headrace reads format {FORMAT}",
            "use the Headrace that made it: finish its jobs, or export it and import it anew",
        )


async def compare(redis: Redis, archive: Archive, keys: Keys, end: Position) -> None:
    """Raises `LogUnverified` unless archive and log are two parts of one history."""
    registered = await archive.register.one(keys.partition)
    archived = await archive.newest_ids(keys.partition, _COMPARED)
    await _compare(redis, registered, archived, end)


async def _compare(
    redis: Redis, registered: Registration, archived: Archived, end: Position
) -> None:
    keys = Keys(registered.partition)
    if not registered.rightful(end):
        raise LogUnverified(
            keys.partition,
            f"it ends at {end.entry_id}, and a newer epoch began before that on another server",
            _REPAIR,
        )
    known = archived[-1][0] if archived else Position(keys.partition, 0, 0)
    if end.seq < known.seq:
        raise LogUnverified(
            keys.partition,
            f"it ends at {end.entry_id}, its archive at {known.entry_id}: Redis has lost events",
            _REPAIR,
        )
    first, last = await stream_ends(redis, keys.log)
    if first is None or last is None:
        if end.seq > known.seq:
            raise LogUnverified(
                keys.partition,
                f"its newest event was {end.entry_id}, and there is no event",
                _REPAIR,
            )
        return
    # Others may append and trim meanwhile: further on is fine, further back is not.
    if Position.at(keys.partition, last).seq < end.seq:
        raise LogUnverified(
            keys.partition, f"its newest event was {end.entry_id}, and is {last}", _REPAIR
        )
    begin = Position.at(keys.partition, first)
    if begin.seq > known.seq + 1:
        raise LogUnverified(
            keys.partition,
            f"it begins at {begin.entry_id}, and its archive ends at {known.entry_id}",
            _RESTORE_POSTGRES,
        )
    in_log = await stream_exact(redis, keys.log, [position.entry_id for position, _ in archived])
    first = await stream_edge(redis, keys.log)
    begin_seq = Position.at(keys.partition, first).seq if first else end.seq + 1
    for (position, event_id), fields in zip(archived, in_log, strict=True):
        found = fields[b"id"].decode() if fields else None
        if found != event_id and (found or position.seq >= begin_seq):
            raise LogUnverified(
                keys.partition,
                f"at {position.entry_id} stands another event than in the archive",
                _REPAIR,
            )


async def check_server(redis: Redis) -> str:
    """The server's run id. Refuses one that may drop events; warns of one that may lose some."""
    with redis_errors():
        info: Mapping[str, str] = await redis.info()
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ServerUnsuitable(
            f"this Redis may evict events (maxmemory-policy {policy}): "
            "set it with `CONFIG SET maxmemory-policy noeviction`"
        )
    if info.get("role") != "master":
        raise ServerUnsuitable("this Redis is a read-only replica: REDIS_URL must name its primary")
    if not int(info.get("aof_enabled", 0)):
        log.warning(
            "redis_not_durable",
            reason="AOF is off: acknowledged events are lost when Redis ends",
            remedy="CONFIG SET appendonly yes; CONFIG SET appendfsync always",
        )
    return server_id(info)


class SealedScripts:
    """Scripts that write only to a log which this process has verified on this server."""

    def __init__(self, redis: Redis, verification: Verification) -> None:
        self.plain = Scripts(redis)
        self._verification = verification

    async def __call__(self, partition: int, name: str, keys: list[str], args: list[Any]) -> Any:
        """The script's answer; lineage and run id go before `args`.

        Raises `RedisUnavailable`, `LogMissing`, `LogUnverified`.
        """
        for _ in range(2):
            lineage, server = self._verification.lineages[partition], self._verification.server
            answer = await self.plain(name, keys, [lineage, server, *args])
            if not isinstance(answer, list) or answer[:2] != [b"refused", b"RunChanged"]:
                return answer
            # Another server process has had this log since: a failover there and back again.
            await self._verification.renew(server)
        raise RedisUnavailable("Redis was restarted or replaced again and again meanwhile")
