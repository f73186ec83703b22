"""Remembers the number of each project's newest archived build, whatever becomes of the archive."""

from collections.abc import Iterable
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import LogEntry
from eventstore.tables import last_builds_table
from projector.writing import driver
from schemas.events import JobReady

_NAME = f"{last_builds_table.schema}.{last_builds_table.name}"


async def keep_last_builds(connection: AsyncConnection, entries: Iterable[LogEntry]) -> None:
    """Remember the builds among these events, in the transaction that archives them."""
    last: dict[tuple[str, str], int] = {}
    for _, event in entries:
        if isinstance(event.payload, JobReady):
            project = event.tenant, event.project
            last[project] = max(last.get(project, 0), event.payload.build_number)
    if last:
        await (await driver(connection)).execute(
            f"INSERT INTO {_NAME} AS there (tenant, project, number) "  # noqa: S608
            "SELECT * FROM unnest($1::text[], $2::text[], $3::numeric[]) "
            "ON CONFLICT (tenant, project) "
            "DO UPDATE SET number = greatest(there.number, excluded.number)",
            [tenant for tenant, _ in last],
            [project for _, project in last],
            [Decimal(number) for number in last.values()],
        )
