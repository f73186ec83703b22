"""A projection of eventsourcing: builds like ours, and a row of a table like ours after each event.

It stands behind all of its events and catches up, as ours does when its rate is measured; with
`rebuild` once more, after its rows and its position have been thrown away.

Run by a Python of its own, with one JSON object; prints how many events it folded a second, as
JSON.
"""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.conninfo import conninfo_to_dict

EVENTS_A_BUILD = 12
AT_ONCE = 50
WAIT_S = 250.0
TENANTS = 16
MANIFEST = "6f1ed002ab5595859014ebf0951522d9e3d7cf9a5b7b0c1d2e3f405162738495"
SANDBOX = "sb-0123456789abcdef"


class Build(Aggregate):  # type: ignore[misc]
    """Its methods are its events: nothing asks it for more."""

    @event("Queued")  # type: ignore[untyped-decorator]
    def __init__(self, tenant: str, user_id: str, project_id: str, goal: str) -> None: ...

    @event("Started")  # type: ignore[untyped-decorator]
    def start(self, attempt: int, worker: str) -> None: ...

    @event("PhaseStarted")  # type: ignore[untyped-decorator]
    def start_phase(self, phase: str) -> None: ...

    @event("PhaseCompleted")  # type: ignore[untyped-decorator]
    def complete_phase(
        self,
        phase: str,
        duration_ms: int,
        evidence: dict[str, Any],
        manifest: str,
        input_tokens: int,
        output_tokens: int,
        cost_usd: float,
    ) -> None: ...

    @event("SandboxCreated")  # type: ignore[untyped-decorator]
    def create_sandbox(self, sandbox_id: str, provider: str, ends_at: datetime) -> None: ...

    @event("Ready")  # type: ignore[untyped-decorator]
    def end(
        self,
        build_number: int,
        build_version: str,
        sandbox_id: str,
        preview_url: str,
        manifest: str,
    ) -> None: ...


class Builds(Application[UUID]):  # type: ignore[misc]
    pass


QUEUED = """
    INSERT INTO peer.jobs (
        id, tenant, user_id, project_id, goal, tier, status, attempt, round, version,
        input_tokens, output_tokens, cost_usd, queued_at, updated_at, position
    ) VALUES (
        %(job)s, %(tenant)s, %(user_id)s, %(project_id)s, %(goal)s, 'normal', 'queued', 0, 1,
        %(originator_version)s, 0, 0, 0, %(timestamp)s, %(timestamp)s, %(position)s
    )"""
COMPLETED = """
    manifest = %(manifest)s, input_tokens = input_tokens + %(input_tokens)s,
    output_tokens = output_tokens + %(output_tokens)s, cost_usd = cost_usd + %(cost_usd)s"""
CHANGES = {
    Build.Started: """
        status = 'starting', attempt = %(attempt)s, worker = %(worker)s,
        started_at = %(timestamp)s""",
    Build.PhaseStarted: "status = %(phase)s",
    Build.SandboxCreated: "sandbox_id = %(sandbox_id)s, expires_at = %(ends_at)s",
    Build.Ready: """
        status = 'ready', build_number = %(build_number)s, build_version = %(build_version)s,
        sandbox_id = %(sandbox_id)s, preview_url = %(preview_url)s, preview = 'running',
        manifest = %(manifest)s, finished_at = %(timestamp)s""",
}


def written(change: Any) -> str:
    """The statement that brings a build's row up to date."""
    match change:
        case Build.Queued():
            return QUEUED
        case Build.PhaseCompleted(phase=phase):
            columns = f"{COMPLETED}, {phase}_ms = %(duration_ms)s"
        case _:
            columns = CHANGES[type(change)]
    return f"""
        UPDATE peer.jobs SET {columns}, version = %(originator_version)s,
            updated_at = %(timestamp)s, position = %(position)s
        WHERE id = %(job)s"""  # noqa: S608


class Jobs(PostgresTrackingRecorder):  # type: ignore[misc]
    def write(self, change: Any, tracking: Tracking) -> None:
        """Row and position in one transaction, in the form that its documentation recommends."""
        values = {
            **vars(change),
            "job": str(change.originator_id),
            "position": str(tracking.notification_id),
        }
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(written(change), values, prepare=True)


class Folding(Projection[Jobs]):  # type: ignore[misc]
    name = "jobs"
    ended_at = 0.0

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.write(domain_event, tracking)
        self.ended_at = time.perf_counter()


def build(number: int) -> Any:
    """What happens to a job until it is build `number`, as in `benchmarks/builds.py`."""
    one = Build(
        tenant=f"tenant-{number % TENANTS}",
        user_id="u",
        project_id="p",
        goal="a todo list for two people, with a done button",
    )
    one.start(attempt=1, worker="worker-1")
    for phase in ("scaffold", "code", "deps", "checks"):
        one.start_phase(phase=phase)
        if phase == "deps":
            ends_at = datetime.now(UTC) + timedelta(hours=1)
            one.create_sandbox(sandbox_id=SANDBOX, provider="local", ends_at=ends_at)
        one.complete_phase(
            phase=phase,
            duration_ms=1_200,
            evidence={"files": 7, "tests": "12 passed"},
            manifest=MANIFEST,
            input_tokens=1_200,
            output_tokens=3_000,
            cost_usd=0.05,
        )
    one.end(
        build_number=number,
        build_version=f"build_v0_{number}",
        sandbox_id=SANDBOX,
        preview_url="http://127.0.0.1:40123/",
        manifest=MANIFEST,
    )
    return one


def fill(env: dict[str, str], builds: int) -> int:
    """Stores so many builds; how many events they are."""
    with Builds(env) as app:
        for first in range(0, builds, AT_ONCE):
            app.save(*(build(number) for number in range(first, min(first + AT_ONCE, builds))))
        return int(app.recorder.max_notification_id())


def fold(env: dict[str, str], events: int) -> float:
    """How many events a second a runner folds that has not begun yet."""
    began = time.perf_counter()
    with ProjectionRunner(
        application_class=Builds, projection_class=Folding, view_class=Jobs, env=env
    ) as runner:
        runner.wait(events, timeout=WAIT_S)
        took_s: float = runner.projection.ended_at - began
    return events / took_s


def main() -> None:
    asked = json.loads(sys.argv[1])
    where = conninfo_to_dict(asked["database_url"])
    env = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(where["dbname"]),
        "POSTGRES_HOST": str(where["host"]),
        "POSTGRES_PORT": str(where.get("port", "")),
        "POSTGRES_USER": str(where["user"]),
        "POSTGRES_PASSWORD": str(where.get("password", "")),
        "POSTGRES_SCHEMA": "peer",
    }
    with psycopg.connect(asked["database_url"], autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS peer CASCADE")
        connection.execute("CREATE SCHEMA peer")
        # Columns, checks and indexes of our own.
        connection.execute("CREATE TABLE peer.jobs (LIKE public.jobs INCLUDING ALL)")
        events = fill(env, max(1, asked["events"] // EVENTS_A_BUILD))
        connection.execute("VACUUM ANALYZE peer.builds_events")
        connection.execute("CHECKPOINT")
        per_s = fold(env, events)
        if asked["rebuild"]:
            connection.execute("TRUNCATE peer.jobs")
            connection.execute("DELETE FROM peer.jobs_tracking WHERE application_name = 'Builds'")
            connection.execute("CHECKPOINT")
            per_s = fold(env, events)
    sys.stdout.write(json.dumps({"per_s": per_s}) + "\n")


main()
