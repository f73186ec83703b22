"""Putting shadow tables in place of the live ones, while readers and projectors go on."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
import structlog
from asyncpg import PostgresError
from sqlalchemy import ForeignKeyConstraint, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from projector.batches import sqlstate
from projector.errors import ObjectsInTheWay, StillVerifying, SwapRefused
from projector.projection import Projection
from projector.shadow import Shadow
from projector.tables import checkpoints, fold_lock
from projector.writing import checkpoints_of, driver, mark_built, set_aside

SWAP_TRIES = 40
LOCK_MS = 40
HOLD_MS = 10_000
_PAUSE_S = 0.25
_LITTLE = 500
_MOST_LAPS = 1_000
VERIFIED_S = 3600.0
"""How long a swap waits at most for verifications that are under way."""
_VERIFYING = 0x68720004  # the key of an advisory lock, shared by verifications

log = structlog.get_logger()


@asynccontextmanager
async def no_swap(engine: AsyncEngine) -> AsyncIterator[None]:
    """Hold off swaps while the block runs; wait first for one that is under way.

    The lock has a connection of its own, so that a snapshot taken in the block is newer than it.
    """
    async with engine.begin() as connection:
        await connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({_VERIFYING})"))
        yield


async def swap(shadow: Shadow, partitions: Sequence[int]) -> float:
    """Fold what came since, then swap; how long readers may have waited, in milliseconds.

    Every partition has a row to lock. Raises `SwapRefused`, `StillVerifying`,
    `ObjectsInTheWay`.
    """
    connection = shadow.connection
    for _ in range(_MOST_LAPS):
        if await shadow.catch_up(partitions) <= _LITTLE:
            break
    await _hold_verifications(shadow, partitions)
    for _ in range(SWAP_TRIES):
        try:
            async with connection.begin_nested():
                await _hold_projectors(connection)
                await shadow.catch_up(partitions)
                # Not before: a projector that parks the same job would wait for us.
                await set_aside(connection, shadow.parked)
                return await _replace(shadow)
        except (DBAPIError, PostgresError) as error:
            # A reader holds a table: it would keep all later ones waiting behind us.
            if sqlstate(error) != "55P03":
                raise
        shadow.ends = dict(await checkpoints_of(connection, shadow.schema))
        shadow.events = sum(end.seq for end in shadow.ends.values())
        await anyio.sleep(_PAUSE_S)
        await shadow.catch_up(partitions)
    raise SwapRefused(SWAP_TRIES)


async def _hold_verifications(shadow: Shadow, partitions: Sequence[int]) -> None:
    """Wait for those under way, folding what comes meanwhile; others wait until we have ended."""
    query = text(f"SELECT pg_try_advisory_xact_lock({_VERIFYING})")
    deadline = anyio.current_time() + VERIFIED_S
    is_told = False
    while not await shadow.connection.scalar(query):
        if anyio.current_time() >= deadline:
            raise StillVerifying(VERIFIED_S)
        if not is_told:
            log.info("swap_waits", reason="a verification is under way", at_most_s=VERIFIED_S)
            is_told = True
        await anyio.sleep(_PAUSE_S)
        await shadow.catch_up(partitions)


async def _hold_projectors(connection: AsyncConnection) -> None:
    await connection.execute(text(f"SET LOCAL lock_timeout = {HOLD_MS}"))
    locks = fold_lock.select().order_by(fold_lock.c.partition)
    await connection.execute(locks.with_for_update())


async def _replace(shadow: Shadow) -> float:
    """Put the shadow tables in place of the live ones, under the same grants."""
    connection = shadow.connection
    replaced = _replaced(shadow.projections)
    names = ", ".join(f"public.{name}" for name in replaced)
    # Put together beforehand, and sent as one: readers wait meanwhile.
    swapped = "; ".join(
        [
            f"DROP TABLE {names}",
            *[f"ALTER TABLE {shadow.schema}.{name} SET SCHEMA public" for name in replaced],
            f"DROP SCHEMA {shadow.schema}",
            *await _grants(connection, replaced),
        ]
    )
    await mark_built(connection, shadow.projections)
    await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MS}"))
    began = time.perf_counter()
    await connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
    await check_dependants(connection, shadow.projections)  # some may have been made since we began
    await (await driver(connection)).execute(swapped)
    return (time.perf_counter() - began) * 1000


def _replaced(projections: Sequence[Projection]) -> list[str]:
    return [checkpoints.name, *[projection.name for projection in projections]]


async def _grants(connection: AsyncConnection, tables: Sequence[str]) -> list[str]:
    """What others may do with the live tables or with columns of them, and how Postgres keeps them.

    As statements that say it of their successors.
    """
    found = await (await driver(connection)).fetch(_GRANTS, list(tables))
    return [row["said"] for row in found]


_GRANTS = """
WITH replaced AS (
    SELECT oid, relname, relowner, relacl, reloptions FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relname = ANY($1)
), granted AS (
    SELECT relname, acl.*, '' AS columns FROM replaced, aclexplode(relacl) AS acl
    WHERE acl.grantee <> relowner
    UNION ALL
    SELECT relname, acl.*, format(' (%I)', attname)
    FROM replaced JOIN pg_attribute ON attrelid = replaced.oid AND NOT attisdropped,
    aclexplode(attacl) AS acl
    WHERE acl.grantee <> relowner
)
SELECT format(
    'GRANT %s ON public.%I TO %s%s',
    string_agg(privilege_type || columns, ', '),
    relname,
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(rolname) END,
    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
) AS said
FROM granted LEFT JOIN pg_roles ON pg_roles.oid = grantee
GROUP BY relname, grantee, rolname, is_grantable
UNION ALL
SELECT format('ALTER TABLE public.%I SET (%s)', relname, array_to_string(reloptions, ', '))
FROM replaced WHERE reloptions IS NOT NULL
"""


async def check_dependants(connection: AsyncConnection, projections: Sequence[Projection]) -> None:
    """Raises `ObjectsInTheWay` when something that is not ours would go with the replaced tables.

    Views, foreign keys, indexes, constraints, columns, triggers, rules, policies, row security,
    statistics, publications, tables that inherit.
    """
    tables = [checkpoints, *[projection.table for projection in projections]]
    found = await (await driver(connection)).fetch(
        _DEPENDANTS,
        [table.name for table in tables],
        [name for table in tables for name in _own_names(table)],
        [f"{table.name}.{column.name}" for table in tables for column in table.columns],
    )
    if found:
        raise ObjectsInTheWay([row["said"] for row in found])


def _own_names(table: Table) -> Iterator[str]:
    """What its indexes and constraints are called, by us or by Postgres."""
    yield f"{table.name}_pkey"
    for index in table.indexes:
        yield str(index.name)
    for constraint in table.constraints:
        if constraint.name is not None:
            yield str(constraint.name)
        elif isinstance(constraint, ForeignKeyConstraint):
            yield f"{table.name}_{'_'.join(constraint.column_keys)}_fkey"


# A NOT NULL constraint (contype n) is named by Postgres in various ways; it, and the default value
# of a column that we know, are lost without harm.
_DEPENDANTS = """
WITH replaced AS (
    SELECT oid, relname, relrowsecurity FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relname = ANY($1)
)
SELECT DISTINCT CASE
    WHEN ev_class IS NOT NULL AND ev_class <> replaced.oid
    THEN pg_describe_object('pg_class'::regclass, ev_class, 0)
    ELSE pg_describe_object(classid, objid, objsubid)
END AS said
FROM replaced JOIN pg_depend ON refclassid = 'pg_class'::regclass AND refobjid = replaced.oid
LEFT JOIN pg_class AS other ON classid = 'pg_class'::regclass AND other.oid = objid
LEFT JOIN pg_constraint AS bound ON classid = 'pg_constraint'::regclass AND bound.oid = objid
LEFT JOIN pg_rewrite AS rule ON classid = 'pg_rewrite'::regclass AND rule.oid = objid
WHERE deptype IN ('n', 'a') AND classid <> 'pg_attrdef'::regclass
AND NOT coalesce(other.relkind = 'i' AND other.relname = ANY($2), false)
AND NOT coalesce(bound.contype = 'n' OR bound.conname = ANY($2), false)
UNION
SELECT format('column %s of table %s', attname, relname)
FROM replaced JOIN pg_attribute ON attrelid = replaced.oid AND attnum > 0 AND NOT attisdropped
WHERE relname || '.' || attname <> ALL($3)
UNION
SELECT format('row security of table %s', relname) FROM replaced WHERE relrowsecurity
ORDER BY 1
"""
