"""Whatever happens to jobs, in whatever order it is read, and by however many: the same rows.

`HEADRACE_EXAMPLES=400 ./headrace test tests/projector/test_any_history.py` is the long variant.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore, LogEntry, open_log
from projector import Projector, rebuild, verify
from schemas import RecordedEvent
from schemas.events import (
    JobQueued,
    JobReady,
    Known,
    PhaseCompleted,
    PreviewExpired,
    PreviewPaused,
    PreviewRequested,
    PreviewResumed,
)
from tests.histories import NOON, job_histories, recorded
from tests.logs import PARTITIONS
from tests.projector.contents import TABLES, contents, execute, folded
from tests.projector.writing import forge_event

pytestmark = pytest.mark.anyio

EXAMPLES = int(os.environ.get("HEADRACE_EXAMPLES", "4"))
# The first two share a partition.
TENANTS = ("acme", "globex", "initech")
COSTS = (0.0, 0.1, 0.2, 0.7, 1e-9, 1234.5678)
# Workers differ by what time it is.
SECONDS = st.sampled_from((-90_000, -5, -1, 0, 1, 5, 90_000))
PREVIEWS: tuple[Known, ...] = (
    PreviewRequested(by="ann"),
    PreviewPaused(),
    PreviewResumed(
        sandbox_id="sb-2", preview_url="https://b.example", ends_at=NOON + timedelta(hours=9)
    ),
    PreviewExpired(reason="time-out"),
)


@dataclass(frozen=True, slots=True)
class Fold:
    """A projector has its turn, with at most so many events of a partition."""

    projector: int
    partition: int
    events: int


Step = RecordedEvent | Fold


class Cut:
    """A log that gives at most so many events at a time."""

    def __init__(self, store: EventStore) -> None:
        self.store, self.most = store, 500
        self._read_log = store.read_log
        store.read_log = self._cut  # type: ignore[method-assign]

    async def _cut(self, *args: Any, count: int = 500, **rest: Any) -> list[LogEntry]:
        return await self._read_log(*args, count=min(count, self.most), **rest)


@st.composite
def jobs_of_tenants(draw: st.DrawFn) -> list[list[RecordedEvent]]:
    """The events of each of several jobs, with what they cost, on several days about midnight."""
    jobs: list[list[RecordedEvent]] = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        tenant, project = draw(st.sampled_from(TENANTS)), draw(st.sampled_from(("shop", "till")))
        history = draw(job_histories(max_commands=25))
        if isinstance(history[-1], JobReady):
            history += draw(st.lists(st.sampled_from(PREVIEWS), max_size=3))
        payloads = [_spent(draw, _of(one, tenant, project, number)) for one in history]
        days = draw(st.integers(0, 2))
        jobs.append(
            [
                event._replace(time=_midnight(days) + timedelta(seconds=draw(SECONDS)))
                for event in recorded(
                    payloads, job=str(UUID(int=number)), tenant=tenant, project=project
                )
            ]
        )
    return jobs


def _midnight(days: int) -> datetime:
    return NOON + timedelta(days=days, hours=12)


def _of(payload: Known, tenant: str, project: str, number: int) -> Known:
    match payload:
        case JobQueued():
            return payload.model_copy(update={"tenant": tenant, "project_id": project})
        case JobReady():
            return payload.model_copy(update={"build_number": number})
    return payload


def _spent(draw: st.DrawFn, payload: Known) -> Known:
    if not isinstance(payload, PhaseCompleted):
        return payload
    used = draw(st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from(COSTS)))
    names = ("input_tokens", "output_tokens", "cost_usd")
    return payload.model_copy(update=dict(zip(names, used, strict=True)))


@st.composite
def courses(draw: st.DrawFn) -> tuple[int, list[Step]]:
    """A number of projectors, and what comes when: events of jobs in each other's midst, turns."""
    left = draw(jobs_of_tenants())
    projectors = draw(st.sampled_from((1, 3)))
    turns = st.builds(
        Fold,
        projector=st.integers(0, projectors - 1),
        partition=st.sampled_from((0, 2)),
        events=st.sampled_from((1, 2, 5, 40)),
    )
    steps: list[Step] = []
    while left:
        history = draw(st.sampled_from(left))
        some = draw(st.integers(1, 8))
        steps += history[:some]
        del history[:some]
        left = [one for one in left if one]
        steps += draw(st.lists(turns, max_size=3))
    return projectors, steps


async def fresh_log(store: EventStore, engine: AsyncEngine) -> Cut:
    """An empty log, and nothing in the database."""
    await store.redis.flushall()
    names = ", ".join(str(table) for table in TABLES)
    await execute(engine, f"TRUNCATE {names}, headrace.log_partitions, headrace.log_epochs")
    return Cut(await open_log(store.redis, store.archive, partitions=PARTITIONS))


async def go_through(log: Cut, projectors: list[Projector], steps: Iterable[Step]) -> None:
    """Take every step, and fold what is left in the end."""
    for step in steps:
        match step:
            case RecordedEvent():
                await forge_event(log.store, step)
            case Fold():
                log.most = step.events
                await projectors[step.projector].fold_batch(step.partition)
    log.most = 40
    for projector in projectors:
        await projector.catch_up()


@given(course=courses())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@pytest.mark.timeout(3600)
async def test_any_course_of_events_and_turns_makes_the_rows_of_one_plain_fold(
    store: EventStore, engine: AsyncEngine, course: tuple[int, list[Step]]
) -> None:
    count, steps = course
    log = await fresh_log(store, engine)
    await go_through(log, [Projector(log.store, engine) for _ in range(count)], steps)
    live = await contents(engine)
    assert live == await folded(log.store)
    assert (await verify(engine))[1] == []
    replayed = await rebuild(engine)
    assert replayed.differing == ()
    assert await contents(engine) == live
