"""Compares tables of the read model with freshly folded ones, in the database."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from projector.archived import EVENTS, FOLDED, entry_of
from projector.errors import RowRefused
from projector.folding import Folding
from projector.projection import Key, Projection
from projector.writing import PUBLIC, checkpoints_of, driver
from schemas import Job, Position

MOST = 1_000


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where the live read model is not what its events say.

    `column` is `row` where there is none, or one too many; `event` names the one that should have
    written it, where that is one.
    """

    table: str
    key: Key
    column: str
    live: Any
    folded: Any
    event: str | None = None

    def __str__(self) -> str:
        by = f" (by {self.event})" if self.event else ""
        row = "/".join(map(str, self.key))
        return f"{self.table} {row}: {self.column} is {self.live!r}, not {self.folded!r}{by}"


async def digests(
    connection: AsyncConnection, projections: Sequence[Projection], schema: str
) -> Mapping[str, tuple[int, str]]:
    """By table: its number of rows, and a digest of them all whatever their order."""
    to = await driver(connection)
    found: dict[str, tuple[int, str]] = {}
    for one in projections:
        columns = ", ".join(one.columns)
        digest = f"hash_record_extended(ROW({columns}), 0)::numeric"
        row = await to.fetchrow(
            f"SELECT count(*), coalesce(sum({digest}), 0) FROM {schema}.{one.name}"  # noqa: S608
        )
        assert row is not None  # noqa: S101 - a count is always there
        found[one.name] = (row[0], str(row[1]))
    return found


async def compared(
    connection: AsyncConnection,
    projections: Sequence[Projection],
    schema: str,
    *,
    jobs: Sequence[str] | None = None,
) -> list[Difference]:
    """Every difference between the live tables and those in `schema`, at most a thousand.

    With `jobs`, only of the rows of these jobs, and not of checkpoints.
    """
    differences: list[Difference] = []
    for projection in projections:
        differences += await _of_table(connection, projection, schema, jobs)
    if jobs is None:
        differences += await _of_checkpoints(connection, schema)
    return differences[:MOST]


async def _of_table(
    connection: AsyncConnection,
    projection: Projection,
    schema: str,
    jobs: Sequence[str] | None,
) -> list[Difference]:
    name, key = projection.name, ", ".join(projection.key)
    live_row, folded_row = (
        f"ROW({', '.join(f'{side}.{column}' for column in projection.columns)})"
        for side in ("live", "folded")
    )
    only = f"WHERE {projection.job} = ANY($1)" if jobs is not None else ""
    found = await (await driver(connection)).fetch(
        f"SELECT to_jsonb(live)::text AS live, to_jsonb(folded)::text AS folded "  # noqa: S608
        f"FROM (SELECT * FROM {PUBLIC}.{name} {only}) AS live "
        f"FULL JOIN (SELECT * FROM {schema}.{name} {only}) AS folded USING ({key}) "
        f"WHERE {live_row} IS DISTINCT FROM {folded_row} ORDER BY {key} LIMIT {MOST}",
        *([list(jobs)] if jobs is not None else []),
    )
    differences: list[Difference] = []
    for row in found:
        differences += await _of_row(connection, projection, row["live"], row["folded"])
    return differences


async def _of_row(
    connection: AsyncConnection, projection: Projection, live: str | None, folded: str | None
) -> list[Difference]:
    # Sums have more digits than a float.
    there, should = (json.loads(row or "null", parse_float=Decimal) for row in (live, folded))
    key = projection.key_of(there or should)
    if there is None or should is None:
        columns = ["row"]
    else:
        columns = [name for name in projection.columns if there[name] != should[name]]
    job = (should or {}).get(projection.job) if projection.job else None
    writers = await _writers(connection, projection, job, key) if job else {}
    if there is None or should is None:
        there, should = {"row": _presence(there)}, {"row": _presence(should)}
    return [
        Difference(projection.name, key, name, there[name], should[name], writers.get(name))
        for name in columns
    ]


def _presence(row: Any) -> str:
    return "missing" if row is None else "there"


async def _writers(
    connection: AsyncConnection, projection: Projection, job: str, key: Key
) -> Mapping[str, str]:
    """By column, the last event of the job that changed it in this row; by `row`, its first."""
    rows = await (await driver(connection)).fetch(
        f"SELECT {FOLDED} FROM {EVENTS} WHERE job = $1 ORDER BY epoch, seq",  # noqa: S608
        job,
    )
    writers: dict[str, str] = {}
    folding, states, before = Folding([projection]), dict[str, Job](), None
    for found in rows:
        entry = entry_of(found)
        folding.add(job, [entry], states)
        try:
            made = folding.rows()[projection]
        except RowRefused:  # it is parked here: nothing later has written anything
            break
        after = next((row for other, row in made.items() if _same(other, key)), None)
        said = f"{entry.event.type} at {entry.position}"
        if after is not None:
            if before is None:
                writers["row"] = said
            for column in projection.columns:
                if before is None or before[column] != after[column]:
                    writers[column] = said
            before = dict(after)
    return writers


def _same(key: Key, other: Key) -> bool:
    """Whether two keys are one; JSON has brought dates back as text."""
    return [str(part) for part in key] == [str(part) for part in other]


async def _of_checkpoints(connection: AsyncConnection, schema: str) -> list[Difference]:
    live, ends = await checkpoints_of(connection), await _archive_ends(connection)
    return [
        Difference("checkpoints", (number,), "position", live.get(number), ends.get(number))
        for number in sorted(live.keys() | ends.keys())
        if live.get(number) != ends.get(number)
    ]


async def _archive_ends(connection: AsyncConnection) -> dict[int, Position]:
    """The newest archived position of each partition."""
    found = await (await driver(connection)).fetch(
        "SELECT DISTINCT ON (partition) partition, epoch, seq "  # noqa: S608
        f"FROM {EVENTS} ORDER BY partition, epoch DESC, seq DESC"
    )
    return {row["partition"]: Position(*row) for row in found}
