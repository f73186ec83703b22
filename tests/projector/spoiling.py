"""What keeps a job from being folded, and how the cause goes away again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import EventStore
from projector import parked_jobs
from projector.projection import Change, Projection
from schemas import Job, JobRef, Position, Status
from schemas.events import JobStarted, Known, Payload, PhaseCompleted
from tests.histories import PROJECT, TENANT, build
from tests.projector.contents import Rows, contents, execute, folded
from tests.projector.writing import forge


class _Damaged(Payload):
    """A completed phase that nobody can read; too long to be kept decoded."""

    type: ClassVar[str] = PhaseCompleted.type
    phase: str = "no phase that there is: a letter to the reader, sixty-four bytes long at least"


def damaged() -> Known:
    """An event of a known type whose payload cannot be decoded."""
    return cast("Known", _Damaged())


def spoilt_build() -> list[Known]:
    """A build whose fourth event cannot be decoded."""
    return [*build()[:3], damaged(), *build()[4:]]


def enormous(payload: Known) -> Known:
    """The same with a number that no column holds."""
    match payload:
        case PhaseCompleted():
            return payload.model_copy(update={"input_tokens": 2**70})
        case JobStarted():
            return payload.model_copy(update={"attempt": 2**40})
    raise AssertionError(payload)


async def spoil(
    store: EventStore, *, tenant: str = TENANT, project: str = PROJECT, after: int = 3
) -> JobRef:
    """A job of which version `after` + 1 cannot be decoded, and more behind it."""
    history = [*build()[:after], damaged(), *build()[after + 1 :]]
    return await forge(store, history, tenant=tenant, project=project)


def stumbling(one: Projection, project: str) -> Projection:
    """A projection that fails over the jobs of this project as long as they are in code."""
    of_sum = one.of_sum
    assert of_sum is not None

    def stumble(job: Job) -> Change:
        if job.project == project and job.status is Status.CODE:
            raise ZeroDivisionError("no seats")
        return of_sum(job)

    return replace(one, of_sum=stumble)


async def refuse_job(engine: AsyncEngine, job: str, *, table: str = "phases") -> None:
    """From now on Postgres refuses every row of this job."""
    column = "id" if table == "jobs" else "job_id"
    await execute(
        engine,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF NEW.{column} = '{job}' THEN RAISE EXCEPTION 'refused by a trigger'; END IF; "
        "RETURN NEW; END $$",
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION refuse()",
    )


async def refuse_no_more(engine: AsyncEngine) -> None:
    """The cause is gone."""
    await execute(engine, "DROP FUNCTION refuse CASCADE")


async def mend(engine: AsyncEngine, job: str, version: int) -> None:
    """The archived payload can be decoded again: it is what it was before it was damaged."""
    data = build()[version - 1].model_dump_json()
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE headrace.events SET data = $1 WHERE job = $2 AND version = $3",
            (data.encode(), job, version),
        )


async def parked(engine: AsyncEngine) -> Mapping[str, Position]:
    """From where on which jobs are not folded."""
    async with engine.connect() as connection:
        return {one.job_id: Position.parse(one.position) for one in await parked_jobs(connection)}


async def assert_only_parked(store: EventStore, engine: AsyncEngine, *jobs: JobRef) -> None:
    """These jobs are parked, and everything else is as a plain fold of the log has it."""
    aside = await parked(engine)
    assert aside.keys() == {job.job for job in jobs}
    assert without_parked(await contents(engine)) == without_parked(await folded(store, aside))


def without_parked(tables: dict[str, Rows]) -> dict[str, Any]:
    """All tables but that of the parked jobs."""
    return {name: rows for name, rows in tables.items() if name != "parked"}
