"""What a Postgres says of itself, and whether the tables are this Headrace's."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from service.doctor.finding import Finding, address, ok, problem, warning
from service.migrating import newest_revision

CHECKS = ("postgres", "database")

OLDEST = 15


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """What a server says; `revision` is None for a database in which nothing was made yet."""

    url: str
    is_embedded: bool
    version: str
    major: int
    is_replica: bool
    revision: str | None

    @property
    def has_tables(self) -> bool:
        """Whether the tables are those that this code asks for."""
        return self.revision == newest_revision()


async def ask_postgres(engine: AsyncEngine, url: str, *, is_embedded: bool) -> PostgresServer:
    """Everything that the checks look at."""
    async with engine.connect() as connection:
        about = await connection.execute(text(
            "SELECT current_setting('server_version'),"
            " current_setting('server_version_num')::int / 10000,"
            " pg_is_in_recovery(), to_regclass('public.alembic_version') IS NOT NULL"
        ))  # fmt: skip
        version, major, is_replica, is_made = about.one()
        revision = None
        if is_made:
            found = await connection.execute(text("SELECT version_num FROM public.alembic_version"))
            revision = found.scalar_one_or_none()
    return PostgresServer(url, is_embedded, version.split()[0], major, is_replica, revision)


def examine_postgres(server: PostgresServer) -> list[Finding]:
    """Every check of the server itself, in the order of `CHECKS`."""
    return [check_server(server), check_revision(server)]


def check_server(server: PostgresServer) -> Finding:
    """PostgreSQL 15 at least, and one that can be written to."""
    where = "embedded" if server.is_embedded else f"at {address(server.url)}"
    says = f"PostgreSQL {server.version}, {where}"
    if server.major < OLDEST:
        return problem(
            "postgres",
            says,
            f"Headrace is made for PostgreSQL {OLDEST} or newer, and tested with nothing older.",
            f"upgrade the server to PostgreSQL {OLDEST} or newer",
        )
    if server.is_replica:
        return problem(
            "postgres",
            f"{says}, a replica",
            "It cannot be written to, so nothing is folded. Headrace does not start.",
            "let DATABASE_URL name the primary",
        )
    return ok("postgres", says)


def check_revision(server: PostgresServer) -> Finding:
    """Whether the database is at the newest revision."""
    newest = newest_revision()
    if server.revision is None:
        return ok("database", "empty: the first start makes its tables")
    if server.revision > newest:
        return problem(
            "database",
            f"at revision {server.revision}, this Headrace knows {newest}",
            "A newer Headrace made it; an older one would misread it and does not start.",
            "run the newer Headrace",
        )
    if server.revision < newest:
        return warning(
            "database",
            f"at revision {server.revision}, the newest is {newest}",
            "Log and read model cannot be examined before; each start of Headrace does it too.",
            "./headrace migrate",
        )
    return ok("database", f"at revision {newest}, the newest")
