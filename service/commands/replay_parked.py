"""Jobs that could not be folded: replay parked list, show, retry, discard."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import Archive
from projector import NotParked, ParkedJob, parked_jobs
from projector import discard as discard_job
from projector import retry as retry_job
from schemas import RecordedEvent, decode_or_mark
from service.commands.log import connected
from service.commands.replay_log import refusals
from service.commands.replay_show import history_document, show_history
from service.commands.terminal import AsJson, log_file, out, print_json, reached_servers, run
from service.embedded import Servers
from service.history import told
from service.settings import Settings

T = TypeVar("T")

AROUND = 3
"""How many events before and behind the one at which a job was parked are shown."""

JobArgument = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]


def list_(as_json: AsJson = False) -> None:
    """List the jobs that stand aside, the first parked first."""
    with refusals():
        found = _on_database(_all_parked)
        if as_json:
            print_json([one.model_dump(mode="json") for one in found])
        elif found:
            out.print(_table(found), soft_wrap=not out.is_terminal)
        else:
            out.print("No job is parked.")


def show(job: JobArgument, as_json: AsJson = False) -> None:
    """Show why a job stands aside, and the events around the one that was in the way."""

    async def read(engine: AsyncEngine) -> tuple[ParkedJob, list[RecordedEvent]]:
        found = [one for one in await _all_parked(engine) if one.job_id == job]
        if not found:
            raise NotParked(job)
        # Parked events are archived ones: that was the same transaction.
        archive = Archive(engine)
        return found[0], await archive.read_job(found[0].tenant, job, decode=decode_or_mark)

    with refusals():
        aside, events = _on_database(read)
        near = range(aside.version - AROUND, aside.version + AROUND + 1)
        history = [one for one in told(events) if one.event.version in near]
        if as_json:
            print_json(history_document(history, aside))
        else:
            show_history(history, aside)
            out.print(
                f"\n`replay parked retry {job}` folds it again, once what was wrong is mended;\n"
                f"`replay parked discard {job}` leaves it as it is.",
                highlight=False,
                soft_wrap=True,
            )


def retry(job: JobArgument) -> None:
    """Fold a job's events again from where it was parked; exit code 1 when that fails again."""
    with refusals():
        again = _on_database(lambda engine: retry_job(engine, job))
    if again is None:
        out.print(f"job {job} is folded to its end.", highlight=False, soft_wrap=True)
        return
    out.print(
        f"job {job} is parked again, at version {again.version} ({again.type}): {again.error}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(1)


def discard(job: JobArgument) -> None:
    """Leave a parked job as it is: its later events are never folded. `retry` brings it back."""
    with refusals():
        _on_database(lambda engine: discard_job(engine, job))
        out.print(f"job {job} stays as it is.", highlight=False, soft_wrap=True)


async def _all_parked(engine: AsyncEngine) -> list[ParkedJob]:
    async with engine.connect() as connection:
        return await parked_jobs(connection)


def _on_database(action: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    """What `action` makes of the database; the log need not be fit for use."""

    async def act(servers: Servers) -> T:
        async with connected(servers) as (_, engine):
            return await action(engine)

    settings = Settings.read()
    with log_file(settings), reached_servers(settings) as servers:
        return run(act, servers)


def _table(found: list[ParkedJob]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("JOB", "TENANT", "STATE", "SINCE", "AT", "EVENT", "ERROR"):
        table.add_column(title, no_wrap=title != "ERROR", overflow="fold")
    for one in found:
        table.add_row(
            one.job_id,
            one.tenant,
            one.state,
            one.parked_at.strftime("%Y-%m-%d %H:%M"),
            one.position,
            f"{one.version} {one.type}",
            Text(one.error),
        )
    return table
