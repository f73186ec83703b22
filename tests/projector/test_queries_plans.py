"""On tables with many rows, everything that is asked of the read model finds its rows by an index.

30,000 jobs; HEADRACE_ROWS=1000000 in the environment makes it a million.
"""

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import connect_postgres
from projector import (
    build_by_number,
    job_by_id,
    list_builds,
    list_jobs,
    list_projects,
    living_previews,
    project_by_id,
    stats,
    timeline,
)
from projector.projections import PROJECTIONS
from schemas import Status

pytestmark = pytest.mark.anyio

ROWS = int(os.environ.get("HEADRACE_ROWS", "30000"))
_FILL_S = 900.0
TENANTS = 100
TENANT, PROJECT, JOB, OLDER = "tenant-7", "p-7", "job-0000107", f"job-{ROWS // 2 + 7:07}"
LARGE, LARGE_OLDER = "large", f"job-{ROWS // 2 + 6:07}"
"""A tenant that has half of all jobs."""
RARE = "w777"
SINCE, UNTIL = datetime(2026, 1, 3, tzinfo=UTC), datetime(2026, 1, 5, tzinfo=UTC)

FILL = (
    """
    INSERT INTO jobs (id, tenant, user_id, project_id, goal, tier, status, attempt, round, version,
        build_number, input_tokens, output_tokens, cost_usd, queued_at, started_at, updated_at,
        position)
    SELECT 'job-' || lpad(n::text, 7, '0'),
        CASE WHEN n % 2 = 0 THEN 'large' ELSE 'tenant-' || n % :tenants END, 'u', 'p-' || n % 1000,
        'list v' || n % 211 || ' w' || n % 1009 || ' ' || md5(n::text),
        CASE WHEN n % 10 = 0 THEN 'pro' ELSE 'free' END,
        (ARRAY['ready', 'failed', 'queued', 'code'])[1 + (n / :tenants) % 4], 1, 1, 9, n,
        1, 1, 0, timestamptz '2026-01-01Z' + n * interval '4 s',
        timestamptz '2026-01-01Z' + n * interval '5 s', now(), '0:1-1'
    FROM generate_series(1, :rows) AS n
    """,
    """
    INSERT INTO phases (job_id, attempt, round, phase, tenant, project_id, started_at, duration_ms,
        outcome, input_tokens, output_tokens, cost_usd)
    SELECT id, 1, 1, phase, tenant, project_id, queued_at, 7, 'completed', 1, 1, 0
    FROM jobs, unnest(ARRAY['scaffold', 'code']) AS phase
    """,
    """
    INSERT INTO builds (tenant, project_id, number, job_id, version, goal, cost_usd, ready_at)
    SELECT tenant, project_id, build_number, id, 'v', goal, 0, queued_at FROM jobs
    """,
    """
    INSERT INTO projects SELECT 'tenant-' || n % :tenants, 'p-' || n, 1, 1, 1, 0, 0, 1, 1, 0,
        now(), now()
    FROM generate_series(1, :rows / 10) AS n
    """,
    """
    INSERT INTO daily_stats SELECT 'tenant-' || n % :tenants, 'p-' || n / 30,
        date '2026-01-01' + n % 30, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0
    FROM generate_series(1, :rows / 10) AS n ON CONFLICT DO NOTHING
    """,
    "ANALYZE jobs, phases, builds, projects, daily_stats",
)
Question = Callable[[AsyncConnection], Awaitable[Any]]
LISTS: dict[str, dict[str, Any]] = {
    "of a tenant": {},
    "of a project": {"project": PROJECT},
    "in a state": {"status": Status.CODE},
    "of a tier": {"tier": "pro"},
    "of a time": {"since": SINCE, "until": UNTIL},
    "with words": {"goal": "list v7"},
    "with all of it": {
        "project": PROJECT,
        "status": Status.CODE,
        "tier": "free",
        "since": SINCE,
        "until": UNTIL,
        "goal": "li",
    },
}
DAYS = date(2026, 1, 3), date(2026, 1, 4)


def listing(tenant: str, wanted: dict[str, Any]) -> Question:
    """The question for a page of jobs."""
    return lambda connection: list_jobs(connection, tenant, **wanted)


def stating(project: str | None) -> Question:
    """The question for stats."""
    return lambda connection: stats(
        connection, TENANT, since=DAYS[0], until=DAYS[1], project=project
    )


QUESTIONS: dict[str, Question] = {
    **{
        f"jobs {name} of {tenant}, {cursor}": listing(tenant, wanted | cursor)
        for name, wanted in LISTS.items()
        for tenant, older in ((TENANT, OLDER), (LARGE, LARGE_OLDER))
        for cursor in ({}, {"before": older})
    },
    "a job": lambda connection: job_by_id(connection, TENANT, JOB),
    "a timeline": lambda connection: timeline(connection, TENANT, JOB),
    "projects": lambda connection: list_projects(connection, TENANT, behind="p-5"),
    "a project": lambda connection: project_by_id(connection, TENANT, PROJECT),
    "builds": lambda connection: list_builds(connection, TENANT, PROJECT, before=100_000),
    "a build": lambda connection: build_by_number(connection, TENANT, PROJECT, 7),
    "living previews": lambda connection: living_previews(connection, 100),
    "stats": stating(None),
    "stats of a project": stating(PROJECT),
}


@contextmanager
def statements_of(engine: AsyncEngine) -> Iterator[list[tuple[str, Any]]]:
    """What is sent to Postgres in the block: statements and their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def steps_of(
    connection: AsyncConnection, statements: list[tuple[str, Any]]
) -> list[dict[str, Any]]:
    """Every step that Postgres would take for these statements."""
    found: list[dict[str, Any]] = []
    for statement, parameters in statements:
        plan = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
        (explained,) = plan.scalars()
        document = json.loads(explained) if isinstance(explained, str) else explained
        found += _with_those_below(document[0]["Plan"])
    return found


def _with_those_below(step: dict[str, Any]) -> list[dict[str, Any]]:
    below = [one for child in step.get("Plans", []) for one in _with_those_below(child)]
    return [step, *below]


def scanned_whole(steps: list[dict[str, Any]]) -> list[str]:
    """The tables of the read model that are read from end to end."""
    names = {projection.name for projection in PROJECTIONS}
    scans = [step for step in steps if step["Node Type"] == "Seq Scan"]
    return [step["Relation Name"] for step in scans if step["Relation Name"] in names]


async def fill(database_url: str) -> None:
    patient = connect_postgres(database_url, command_timeout_s=_FILL_S)
    async with patient.begin() as connection:
        for statement in FILL:
            values = {"rows": ROWS, "tenants": TENANTS}
            used = {name: value for name, value in values.items() if f":{name}" in statement}
            await connection.execute(text(statement), used)
    await patient.dispose()


@pytest.mark.timeout(_FILL_S)
async def test_no_question_reads_a_table_from_end_to_end(
    engine: AsyncEngine, database_url: str
) -> None:
    await fill(database_url)
    scanned: dict[str, list[str]] = {}
    async with engine.connect() as connection:
        for name, ask in QUESTIONS.items():
            with statements_of(engine) as statements:
                await ask(connection)
            assert statements, name
            if tables := scanned_whole(await steps_of(connection, statements)):
                scanned[name] = tables
        assert scanned == {}
        without_index = [("SELECT * FROM jobs WHERE worker IS NOT NULL", ())]
        assert scanned_whole(await steps_of(connection, without_index)) == ["jobs"]
        with statements_of(engine) as statements:
            await list_jobs(connection, LARGE, goal=RARE)
        steps = await steps_of(connection, statements)
        assert "jobs_goal" in [step.get("Index Name") for step in steps]
