"""The parts of the archive: one for the jobs of each month, so that old ones can be detached.

Job ids are UUIDs of version 7 (RFC 9562, 5.7): their first 48 bits are the milliseconds at which
they were made. A range of ids is a range of time, and all events of a job are in one part. Ids of
another kind come to a part of their own, `events_other`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore.connection import postgres_errors
from eventstore.tables import SCHEMA

AHEAD = 3
_LOCK_MS = 1_000
_ONE_MAKER = 0x68720002  # the key of an advisory lock: any number, but this one


def part(year: int, month: int) -> tuple[str, str, str]:
    """The name of a month's part, and the bounds of its job ids: from, to (not included)."""
    return f"events_{year}_{month:02}", _first_id(year, month), _first_id(*following(year, month))


def following(year: int, month: int) -> tuple[int, int]:
    """The month behind this one."""
    return (year + month // 12, month % 12 + 1)


def months(now: datetime, ahead: int = AHEAD) -> list[tuple[int, int]]:
    """This month and so many behind it."""
    found = [(now.year, now.month)]
    for _ in range(ahead):
        found.append(following(*found[-1]))
    return found


def create_part(year: int, month: int) -> list[str]:
    """The statements that make a month's part.

    Jobs of the month that came before it are in `events_other`, and move along: otherwise Postgres
    would refuse the part for ever.
    """
    name, first, last = part(year, month)
    of_month = f"job >= '{first}' AND job < '{last}'"
    return [
        f"LOCK TABLE {SCHEMA}.events_other IN ACCESS EXCLUSIVE MODE",
        f"CREATE TABLE {SCHEMA}.{name} (LIKE {SCHEMA}.events INCLUDING DEFAULTS)",
        f"INSERT INTO {SCHEMA}.{name} SELECT * FROM {SCHEMA}.events_other WHERE {of_month}",  # noqa: S608
        f"DELETE FROM {SCHEMA}.events_other WHERE {of_month}",  # noqa: S608
        f"ALTER TABLE {SCHEMA}.events ATTACH PARTITION {SCHEMA}.{name} "
        f"FOR VALUES FROM ('{first}') TO ('{last}')",
    ]


async def make_parts(engine: AsyncEngine, *, now: datetime | None = None) -> Sequence[str]:
    """Make the parts of this month and the next three that are not there; their names.

    Raises `PostgresUnavailable`; SQLAlchemy's `DBAPIError` (55P03) when the archive is too busy to
    take a part just now.
    """
    made: list[str] = []
    with postgres_errors():
        for year, month in months(now or datetime.now(UTC)):
            name = part(year, month)[0]
            async with engine.begin() as connection:
                # One after the other: two that make the same part would fail, or wait for long.
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_ONE_MAKER})"))
                there = await connection.scalar(
                    text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.{name}"}
                )
                if there is None:
                    await connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MS}"))
                    for statement in create_part(year, month):
                        await connection.execute(text(statement))
                    made.append(name)
    return made


def _first_id(year: int, month: int) -> str:
    digits = f"{int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"
