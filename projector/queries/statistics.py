"""How it went, over whole days (UTC): what succeeded, how long it took, what it cost."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from projector.projections import DAILY_STATS

MOST_DAYS = 10_000


class PhaseStats(BaseModel):
    """How often a phase was completed, and how long that took."""

    model_config = ConfigDict(frozen=True)

    phase: str
    completed: int
    p50_ms: int
    p95_ms: int


class Wait(BaseModel):
    """How long jobs waited for a worker, of those queued in the time that was asked about."""

    model_config = ConfigDict(frozen=True)

    started: int
    p50_ms: int | None
    p95_ms: int | None


class DayRow(BaseModel):
    """What happened in a project on a day. `queue_wait_ms` is the mean of those started then."""

    model_config = ConfigDict(frozen=True)

    project_id: str
    day: date
    queued: int
    started: int
    queue_wait_ms: int | None
    takeovers: int
    repairs: int
    ready: int
    failed: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    wall_ms: int


class Stats(BaseModel):
    """A tenant's days from `since` to `until`, both counted, of one project or of all.

    `success_rate` is the share of READY among those that became READY or FAILED; None when none
    did. A cancel is nobody's failure.
    """

    model_config = ConfigDict(frozen=True)

    since: date
    until: date
    success_rate: float | None
    queued: int
    ready: int
    failed: int
    cancelled: int
    takeovers: int
    repairs: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    wall_ms: int
    queue_wait: Wait
    phases: list[PhaseStats]
    days: list[DayRow]


_SUMS = (
    "queued",
    "ready",
    "failed",
    "cancelled",
    "takeovers",
    "repairs",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "wall_ms",
)
_TOTALS = (
    f"SELECT {', '.join(f'coalesce(sum({name}), 0) AS {name}' for name in _SUMS)} "  # noqa: S608
    "FROM daily_stats WHERE tenant = :tenant AND day >= :since AND day <= :until"
)
_DAYS = (
    "SELECT daily_stats.*, queue_wait_ms / nullif(started, 0) AS mean_wait_ms FROM daily_stats "
    "WHERE tenant = :tenant AND day >= :since AND day <= :until"
)
_PHASES = (
    "SELECT phase, count(*) AS completed, "
    "percentile_disc(0.5) WITHIN GROUP (ORDER BY duration_ms) AS p50_ms, "
    "percentile_disc(0.95) WITHIN GROUP (ORDER BY duration_ms) AS p95_ms "
    "FROM phases WHERE tenant = :tenant AND started_at >= :begin AND started_at < :end "
    "AND outcome = 'completed'"
)
_WAIT_MS = "round(extract(epoch FROM started_at - queued_at) * 1000)::bigint"
_WAIT = (
    "SELECT count(*) AS started, "  # noqa: S608 - of constants
    f"percentile_disc(0.5) WITHIN GROUP (ORDER BY {_WAIT_MS}) AS p50_ms, "
    f"percentile_disc(0.95) WITHIN GROUP (ORDER BY {_WAIT_MS}) AS p95_ms "
    "FROM jobs WHERE tenant = :tenant AND queued_at >= :begin AND queued_at < :end "
    "AND started_at IS NOT NULL"
)
_OF_PROJECT = " AND project_id = :project"


async def stats(
    connection: AsyncConnection,
    tenant: str,
    *,
    since: date,
    until: date,
    project: str | None = None,
) -> Stats:
    """What became of a tenant's jobs on the days from `since` to `until`.

    `days` has the newest ten thousand rows, newest first.
    """
    values: dict[str, Any] = {"tenant": tenant}
    if project is not None:
        values["project"] = project
    days = {**values, "since": since, "until": until}
    times = {**values, "begin": _midnight(since), "end": _midnight(until + timedelta(days=1))}
    only = _OF_PROJECT if project is not None else ""

    async def ask(query: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        found = await connection.execute(text(query), values)
        return [dict(row) for row in found.mappings()]

    (totals,) = await ask(_TOTALS + only, days)
    (wait,) = await ask(_WAIT + only, times)
    of_phases = await ask(f"{_PHASES}{only} GROUP BY phase ORDER BY min(started_at)", times)
    newest_first = f" ORDER BY day DESC, project_id LIMIT {MOST_DAYS}"
    of_days = await ask(_DAYS + only + newest_first, days)
    ended = totals["ready"] + totals["failed"]
    return Stats(
        since=since,
        until=until,
        success_rate=totals["ready"] / ended if ended else None,
        **totals,
        queue_wait=Wait.model_validate(wait),
        phases=[PhaseStats.model_validate(row) for row in of_phases],
        days=[
            DayRow.model_validate({**row, "queue_wait_ms": row["mean_wait_ms"]}) for row in of_days
        ],
    )


async def used_on(
    connection: AsyncConnection, tenant: str, day: date
) -> tuple[int, int, int, int] | None:
    """What a tenant has used on a day: jobs queued, tokens, billionths of a dollar, wall ms.

    None while the table waits for its backfill.
    """
    query = (
        "SELECT coalesce(sum(queued), 0), coalesce(sum(input_tokens + output_tokens), 0), "
        "coalesce(sum(cost_usd), 0), coalesce(sum(wall_ms), 0), "
        "(SELECT version FROM headrace.projections WHERE name = 'daily_stats') "
        "FROM daily_stats WHERE tenant = :tenant AND day = :day"
    )
    found = (await connection.execute(text(query), {"tenant": tenant, "day": day})).one()
    if found[4] != DAILY_STATS.version:
        return None
    return int(found[0]), int(found[1]), int(found[2] * 1_000_000_000), int(found[3])


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
