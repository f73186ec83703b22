"""A migrated database for each test, as new: emptied where that is enough, else copied anew.

Emptying takes a hundredth of what copying does. It is enough unless the test before has changed
more than rows: tables, statistics, or so much that what is dead fills the files.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from anyio.from_thread import BlockingPortal, start_blocking_portal

from service.embedded import DATABASE

NAME = "test"
_END_MS = 10_000
_LARGE_BYTES = 8_000_000

# A row of a catalog that is written anew has a later `xmin` than all there were: both sums are the
# same only where nothing was made, dropped or altered. VACUUM and ANALYZE change `reltuples`.
_NAMES = {
    "class": "relname",
    "namespace": "nspname",
    "type": "typname",
    "constraint": "conname",
    "proc": "proname",
    "trigger": "tgname",
    "rewrite": "rulename",
    "extension": "extname",
}
_SHAPE = f"""
SELECT sum(rows)::text, sum(xmins)::text,
  (SELECT sum(reltuples)::text FROM pg_class WHERE oid >= 16384),
  (SELECT count(*) FROM pg_statistic WHERE starelid >= 16384),
  (SELECT count(*) FROM pg_db_role_setting)
FROM ({
    " UNION ALL ".join(
        f"SELECT count(*) AS rows, sum(xmin::text::bigint) AS xmins FROM pg_{catalog} "
        f"WHERE oid >= 16384 AND {name} NOT LIKE 'pg_%temp_%'"
        for catalog, name in _NAMES.items()
    )
} UNION ALL
  SELECT count(*), sum(xmin::text::bigint) FROM pg_attribute WHERE attrelid >= 16384 UNION ALL
  SELECT count(*), sum(xmin::text::bigint) FROM pg_attrdef UNION ALL
  SELECT count(*), sum(xmin::text::bigint) FROM pg_index WHERE indrelid >= 16384) AS catalogs
"""
_SIZE = "SELECT sum(pg_relation_size(oid))::bigint FROM pg_class WHERE oid >= 16384"
_TABLES = """
SELECT oid::regclass::text FROM pg_class
WHERE oid >= 16384 AND relkind IN ('r', 'p') AND NOT relispartition
"""
_END_OTHERS = f"""
SELECT pg_terminate_backend(pid, {_END_MS}) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class Databases:
    """Gives the same database again and again, like the template each time."""

    def __init__(self, template_url: str) -> None:
        self._template_url = template_url
        self._connection: asyncpg.Connection | None = None
        self._shape: asyncpg.Record | None = None
        self._reset = ""

    async def renew(self) -> str:
        """The database of the test before is that of the next one; its URL."""
        if self._connection is None or not await self._emptied(self._connection):
            await self.close()
            self._connection = await self._copied()
        return self._named(NAME)

    async def execute(self, statements: str) -> None:
        """Run these in the database of the test."""
        assert self._connection is not None
        await self._connection.execute(statements)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _emptied(self, connection: asyncpg.Connection) -> bool:
        """Whether it is like the template again, now that it has been emptied."""
        try:
            await connection.execute(_END_OTHERS)
            if await connection.fetchrow(_SHAPE) != self._shape:
                return False
            if await connection.fetchval(_SIZE) > _LARGE_BYTES:
                return False
            await connection.execute(self._reset)
        except (asyncpg.InterfaceError, asyncpg.PostgresConnectionError):
            return False  # the test has closed it to everybody
        return True

    async def _copied(self) -> asyncpg.Connection:
        admin = await asyncpg.connect(self._named("postgres"))
        try:
            await admin.execute(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)")
            await admin.execute(f"CREATE DATABASE {NAME} TEMPLATE {DATABASE}")
        finally:
            await admin.close()
        connection = await asyncpg.connect(self._named(NAME))
        self._shape = await connection.fetchrow(_SHAPE)
        tables = [name for (name,) in await connection.fetch(_TABLES)]
        # Without foreign keys and triggers, so in any order; for good, since to change it makes
        # Postgres plan all anew.
        await connection.execute("SET session_replication_role = replica")
        reset = ["BEGIN"]
        for name in tables:
            reset.append(f"DELETE FROM {name}")
            rows = await connection.fetchval(f"SELECT json_agg(one)::text FROM {name} AS one")
            if rows:
                there = f"json_populate_recordset(NULL::{name}, $json${rows}$json$)"
                reset.append(f"INSERT INTO {name} SELECT * FROM {there}")
        self._reset = "; ".join([*reset, "COMMIT"])
        return connection

    def _named(self, name: str) -> str:
        return self._template_url.replace(f"/{DATABASE}?", f"/{name}?")


class NewDatabase:
    """The same, for callers in whatever event loop."""

    def __init__(self, databases: Databases, portal: BlockingPortal) -> None:
        self._databases = databases
        self._portal = portal

    def renew(self) -> str:
        """A database as new; its URL."""
        return self._portal.call(self._databases.renew)

    def execute(self, statements: str) -> None:
        """Run these in the one that was given last."""
        self._portal.call(self._databases.execute, statements)


@contextmanager
def new_databases(template_url: str) -> Iterator[NewDatabase]:
    """Gives databases while the block runs."""
    with start_blocking_portal() as portal:
        databases = Databases(template_url)
        yield NewDatabase(databases, portal)
        portal.call(databases.close)
