"""Erasing what a person wrote, in archive and read model, of a tenant's or a project's ended jobs.

Each transaction takes some jobs: it holds off rebuilds and the partition's projectors, puts
tombstones in place of their payloads, and folds their rows again from these. So the read model is
the fold of the archive at every moment, and whoever is interrupted goes on by beginning again.

Numbers and times stay in a tombstone, and with them whatever sums up over jobs.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import postgres_errors
from projector.archived import EVENTS, FOLDED, entry_of, whole_archive
from projector.errors import ReplayRunning
from projector.folding import fold_entries
from projector.ground import make_locks
from projector.parking import one_replay
from projector.projections import PROJECTIONS
from projector.tables import fold_lock, parked
from projector.writing import (
    PUBLIC,
    built,
    driver,
    jobs_aside,
    set_aside,
    write_rows,
)
from schemas import TERMINAL_TYPES
from schemas.erasing import ERASED, tombstone

JOBS = 100
LOCK_MS = 30_000
_ONE_ERASURE = 0x68720003  # the key of an advisory lock, beside that of replays
# Of any event, also of one that cannot be decoded. A quotation mark within a text of the payload
# has a backslash before it, so no text can pass for this.
_NAMED = """regexp_matches(
    encode(data, 'escape'), '"(manifest|base_manifest|log)": ?"([0-9a-f]{64})"', 'g')"""


@dataclass(frozen=True, slots=True)
class Erasable:
    """The jobs of a tenant, or of one of its projects, that were archived at some moment."""

    partition: int
    ended: tuple[str, ...] = ()
    living: tuple[str, ...] = ()


async def erasable(
    engine: AsyncEngine, partition: int, tenant: str, project: str | None = None
) -> Erasable:
    """The archived jobs of a tenant, or of one of its projects: the ended ones and the living.

    Raises `ArchiveShort`: what is in a part that was detached would be left as it is.
    """
    with postgres_errors():
        async with engine.connect() as connection:
            await whole_archive(connection, partition)
            found = await (await driver(connection)).fetch(
                "SELECT job, bool_or(split_part(type, '.', 1) = ANY($4)) AS ended "  # noqa: S608
                f"FROM {EVENTS} WHERE partition = $1 AND tenant = $2 "
                "AND ($3::text IS NULL OR project = $3) GROUP BY job ORDER BY job",
                partition,
                tenant,
                project,
                list(TERMINAL_TYPES),
            )
    return Erasable(
        partition,
        tuple(row["job"] for row in found if row["ended"]),
        tuple(row["job"] for row in found if not row["ended"]),
    )


async def ended_among(engine: AsyncEngine, jobs: Sequence[str]) -> list[str]:
    """Those of the jobs whose end is archived."""
    with postgres_errors():
        async with engine.connect() as connection:
            found = await (await driver(connection)).fetch(
                f"SELECT DISTINCT job FROM {EVENTS} "  # noqa: S608
                "WHERE job = ANY($1) AND split_part(type, '.', 1) = ANY($2)",
                list(jobs),
                list(TERMINAL_TYPES),
            )
    return [row["job"] for row in found]


async def previews_of(engine: AsyncEngine, jobs: Sequence[str]) -> list[str]:
    """The sandboxes that these jobs have left running, as far as their events tell."""
    with postgres_errors():
        async with engine.connect() as connection:
            found = await (await driver(connection)).fetch(
                f"SELECT sandbox_id FROM {PUBLIC}.jobs WHERE id = ANY($1) "  # noqa: S608
                "AND sandbox_id <> $2 AND expires_at > now()",
                list(jobs),
                ERASED,
            )
    return [row["sandbox_id"] for row in found]


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Digests that events name: manifests, and whole logs."""

    manifests: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()


async def artifacts_of(engine: AsyncEngine, partition: int, jobs: Sequence[str]) -> Artifacts:
    """What events of these jobs name."""
    return await _artifacts(engine, "partition = $1 AND job = ANY($2)", partition, list(jobs))


async def artifacts_elsewhere(
    engine: AsyncEngine, partition: int, jobs: Sequence[str]
) -> Artifacts:
    """What is named of any other jobs. Reads the whole archive."""
    where = "NOT (partition = $1 AND job = ANY($2))"
    named = await _artifacts(engine, where, partition, list(jobs))
    return _both(named, await _artifacts_of_rows(engine, but=jobs))


async def artifacts_named(engine: AsyncEngine) -> Artifacts:
    """What is named of any job and not erased. Reads the whole archive."""
    return _both(await _artifacts(engine, "true"), await _artifacts_of_rows(engine))


async def _artifacts_of_rows(engine: AsyncEngine, *, but: Sequence[str] = ()) -> Artifacts:
    """What the rows of jobs name: they stay when a part of the archive is detached."""
    with postgres_errors():
        async with engine.connect() as connection:
            rows = await (await driver(connection)).fetch(
                f"SELECT manifest, log FROM {PUBLIC}.jobs "  # noqa: S608
                "WHERE (manifest IS NOT NULL OR log IS NOT NULL) AND NOT id = ANY($1)",
                list(but),
            )
    return Artifacts(
        tuple(row["manifest"] for row in rows if is_digest(row["manifest"])),
        tuple(row["log"] for row in rows if is_digest(row["log"])),
    )


def _both(one: Artifacts, other: Artifacts) -> Artifacts:
    return Artifacts(
        tuple(sorted({*one.manifests, *other.manifests})), tuple(sorted({*one.logs, *other.logs}))
    )


def is_digest(text: str | None) -> bool:
    """Whether this can name a blob: an event says what its worker said."""
    return text is not None and len(text) == 64 and not set(text) - set("0123456789abcdef")


async def _artifacts(engine: AsyncEngine, where: str, *values: object) -> Artifacts:
    with postgres_errors():
        async with engine.connect() as connection:
            found = await (await driver(connection)).fetch(
                f"SELECT DISTINCT named[1] = 'log' AS is_log, named[2] AS digest "  # noqa: S608
                f"FROM (SELECT {_NAMED} AS named FROM {EVENTS} WHERE {where}) AS all_named "
                "ORDER BY digest",
                *values,
            )
    return Artifacts(
        tuple(row["digest"] for row in found if not row["is_log"]),
        tuple(row["digest"] for row in found if row["is_log"]),
    )


@asynccontextmanager
async def one_erasure(engine: AsyncEngine) -> AsyncIterator[None]:
    """Hold off other erasures while the block runs. Raises `ReplayRunning`."""
    async with AsyncExitStack() as stack:
        with postgres_errors():
            connection = await stack.enter_async_context(engine.connect())
            # Not in a transaction: one that is idle for so long would be ended.
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            to = await driver(connection)
            if not await to.fetchval("SELECT pg_try_advisory_lock($1)", _ONE_ERASURE):
                raise ReplayRunning
        try:
            yield
        finally:
            # With the connection, if that is lost, the lock has gone as well.
            if not to.is_closed():
                await to.execute("SELECT pg_advisory_unlock($1)", _ONE_ERASURE)


async def erase(engine: AsyncEngine, partition: int, jobs: Sequence[str]) -> int:
    """Put tombstones in place of these jobs' archived payloads, and fold their rows from them.

    How many events were not erased before. Raises `ReplayRunning`, `PostgresUnavailable`; some of
    the jobs may be erased then, the others not, and none by half.
    """
    erased = 0
    for first in range(0, len(jobs), JOBS):
        some = jobs[first : first + JOBS]
        with postgres_errors():
            async with engine.begin() as connection:
                await one_replay(connection)
                await _hold_projectors(connection, partition)
                erased += await _bury(connection, partition, some)
                await _fold_again(connection, partition, some)
                await connection.execute(
                    update(parked).where(parked.c.job.in_(some)).values(error=ERASED)
                )
    return erased


async def forget_old_rows(engine: AsyncEngine, *more: str) -> None:
    """Let Postgres clear away the rows that were replaced, and renew the statistics of the tables.

    These hold samples of what stood there. `more` are tables of others.
    """
    names = [EVENTS, f"{parked.schema}.{parked.name}", *more]
    names += [f"{PUBLIC}.{one.name}" for one in PROJECTIONS]
    with postgres_errors():
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            for name in names:
                await connection.execute(text(f"VACUUM (ANALYZE) {name}"))


async def _hold_projectors(connection: AsyncConnection, partition: int) -> None:
    await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MS}"))
    await make_locks(connection, [partition])
    await connection.execute(
        select(fold_lock).where(fold_lock.c.partition == partition).with_for_update()
    )


async def _bury(connection: AsyncConnection, partition: int, jobs: Sequence[str]) -> int:
    """Replace the payloads of all events of these jobs; how many were not tombstones already."""
    to = await driver(connection)
    rows = await to.fetch(
        f"SELECT epoch, seq, job, type, data, cause, trace FROM {EVENTS} "  # noqa: S608
        "WHERE partition = $1 AND job = ANY($2)",
        partition,
        list(jobs),
    )
    changed = [
        (row["epoch"], row["seq"], row["job"], data)
        for row in rows
        if (data := _tombstone(row["type"], row["data"])) != row["data"]
        or row["cause"]
        or row["trace"]
    ]
    if changed:
        await to.execute(
            f"UPDATE {EVENTS} AS event SET data = left_of.data, cause = '', trace = '' "  # noqa: S608
            "FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::bytea[]) "
            "AS left_of (epoch, seq, job, data) WHERE event.partition = $1 "
            "AND event.epoch = left_of.epoch AND event.seq = left_of.seq "
            "AND event.job = left_of.job",
            partition,
            *map(list, zip(*changed, strict=True)),
        )
    return len(changed)


def _tombstone(event_type: str, data: bytes) -> bytes:
    return tombstone(event_type, data, sha256=sha256(data).hexdigest())


async def _fold_again(connection: AsyncConnection, partition: int, jobs: Sequence[str]) -> None:
    """Write the rows that belong to these jobs anew, as a rebuild does.

    What sums up over jobs is left as it is: it would come out the same.
    """
    to = await driver(connection)
    projections = [one for one in await built(connection, PROJECTIONS) if one.job]
    aside = await jobs_aside(connection, [partition])
    rows = await to.fetch(
        f"SELECT {FOLDED} FROM {EVENTS} "  # noqa: S608
        "WHERE partition = $1 AND job = ANY($2) ORDER BY job, epoch, seq",
        partition,
        list(jobs),
    )
    folding = fold_entries(projections, map(entry_of, rows), {}, aside)
    # Those that refer to others come behind them, and go before them.
    for projection in reversed(projections):
        await to.execute(
            f"DELETE FROM {PUBLIC}.{projection.name} WHERE {projection.job} = ANY($1)",  # noqa: S608
            list(jobs),
        )
    await write_rows(connection, folding.rows())
    await set_aside(connection, folding.parked)
