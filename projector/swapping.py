"""Putting shadow tables in place of the live ones, while readers and projectors go on."""

import time
from collections.abc import Sequence

import anyio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from projector.errors import SwapRefused, ViewsInTheWay
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


async def swap(shadow: Shadow, partitions: Sequence[int]) -> float:
    """Fold what came since, then swap; how long readers may have waited, in milliseconds.

    Every partition has a row to lock. Raises `SwapRefused`, `ViewsInTheWay`.
    """
    connection = shadow.connection
    for _ in range(_MOST_LAPS):
        if await shadow.catch_up(partitions) <= _LITTLE:
            break
    for _ in range(SWAP_TRIES):
        try:
            async with connection.begin_nested():
                await _hold_projectors(connection)
                await shadow.catch_up(partitions)
                # Not before: a projector that parks the same job would wait for us.
                await set_aside(connection, shadow.parked)
                return await _replace(shadow)
        except DBAPIError as error:
            # A reader holds a table: it would keep all later ones waiting behind us.
            if getattr(error.orig, "sqlstate", None) != "55P03":
                raise
        shadow.ends = dict(await checkpoints_of(connection, shadow.schema))
        shadow.events = sum(end.seq for end in shadow.ends.values())
        await anyio.sleep(_PAUSE_S)
        await shadow.catch_up(partitions)
    raise SwapRefused(SWAP_TRIES)


async def _hold_projectors(connection: AsyncConnection) -> None:
    await connection.execute(text(f"SET LOCAL lock_timeout = {HOLD_MS}"))
    locks = fold_lock.select().order_by(fold_lock.c.partition)
    await connection.execute(locks.with_for_update())


async def _replace(shadow: Shadow) -> float:
    """Put the shadow tables in place of the live ones, under the same grants."""
    connection = shadow.connection
    replaced = _replaced(shadow.projections)
    grants = await _grants(connection, replaced)
    names = ", ".join(f"public.{name}" for name in replaced)
    began = time.perf_counter()
    await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_MS}"))
    await connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
    await check_views(connection, shadow.projections)  # one may have been made since we began
    await connection.execute(text(f"DROP TABLE {names}"))
    for name in replaced:
        await connection.execute(text(f"ALTER TABLE {shadow.schema}.{name} SET SCHEMA public"))
    await connection.execute(text(f"DROP SCHEMA {shadow.schema}"))
    for grant in grants:
        await connection.execute(text(grant))
    await mark_built(connection, shadow.projections)
    return (time.perf_counter() - began) * 1000


def _replaced(projections: Sequence[Projection]) -> list[str]:
    return [checkpoints.name, *[projection.name for projection in projections]]


async def _grants(connection: AsyncConnection, tables: Sequence[str]) -> list[str]:
    """What others may do with the live tables, as statements that say it of their successors."""
    found = await (await driver(connection)).fetch(
        "SELECT format('GRANT %s ON public.%I TO %s', string_agg(acl.privilege_type, ', '), "
        "relname, CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(rolname) END) AS said "
        "FROM pg_class JOIN aclexplode(relacl) AS acl ON true "
        "LEFT JOIN pg_roles ON pg_roles.oid = acl.grantee "
        "WHERE relnamespace = 'public'::regnamespace AND relname = ANY($1) "
        "AND acl.grantee <> relowner GROUP BY relname, acl.grantee, rolname",
        list(tables),
    )
    return [row["said"] for row in found]


async def check_views(connection: AsyncConnection, projections: Sequence[Projection]) -> None:
    """Raises `ViewsInTheWay` when views of somebody's depend on the tables to be replaced."""
    found = await (await driver(connection)).fetch(
        "SELECT DISTINCT view.oid::regclass::text AS view FROM pg_depend "
        "JOIN pg_rewrite ON pg_rewrite.oid = pg_depend.objid "
        "JOIN pg_class AS view ON view.oid = pg_rewrite.ev_class "
        "JOIN pg_class AS base ON base.oid = pg_depend.refobjid "
        "WHERE pg_depend.classid = 'pg_rewrite'::regclass "
        "AND base.relnamespace = 'public'::regnamespace AND base.relname = ANY($1) "
        "AND view.oid <> base.oid ORDER BY 1",
        _replaced(projections),
    )
    if found:
        raise ViewsInTheWay([row["view"] for row in found])
