"""Proving and remaking the read model: replay rebuild, verify, show."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol, TypeVar

import typer
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from projector import Difference, Projector, Replayed
from projector import rebuild as rebuild_tables
from projector import verify as verify_tables
from schemas import Job, JobRef, RecordedEvent, evolve
from service.commands.terminal import err, friendly, log_file, out, reached_servers, run
from service.errors import ApiError
from service.instance import LOCAL_TENANT
from service.settings import Settings
from service.wiring import Log, opened_log

T = TypeVar("T")
R = TypeVar("R", covariant=True)


class _Replay(Protocol[R]):
    def __call__(
        self, engine: AsyncEngine, *, on_progress: Callable[[int, int], None]
    ) -> Awaitable[R]: ...


def rebuild() -> None:
    """Fold the whole log into fresh tables and put them in place."""
    with friendly():
        replayed: Replayed = on_log(_with_progress(rebuild_tables, "rebuilding"))
        out.print(f"Rebuilt {replayed.jobs} jobs from {replayed.events} events.", highlight=False)


def verify() -> None:
    """Compare the read model with what its events fold to; exit code 1 when they differ."""
    with friendly():
        replayed, differences = on_log(_with_progress(verify_tables, "verifying"))
        _show_differences(replayed, differences)
    if differences:
        raise typer.Exit(1)


def show(
    job: Annotated[str, typer.Argument(help="The job's id.", show_default=False)],
    tenant: Annotated[str, typer.Option(help="Whose job it is.")] = LOCAL_TENANT,
) -> None:
    """Print a job's history: each event and the state after it."""

    async def read(log: Log) -> list[RecordedEvent]:
        return await log.store.read_job(JobRef(tenant, job))

    with friendly():
        events = on_log(read)
        if not events:
            raise ApiError(404, f"there is no job {job} of tenant {tenant}")
        out.print(_history(events), soft_wrap=not out.is_terminal)


def on_log(action: Callable[[Log], Awaitable[T]]) -> T:
    """What `action` makes of the opened log, of the running instance or of one's own servers."""

    async def act() -> T:
        async with opened_log(settings, servers) as log:
            return await action(log)

    settings = Settings.read()
    with log_file(settings), reached_servers(settings) as servers:
        return run(act)


def _with_progress(replay: _Replay[T], verb: str) -> Callable[[Log], Awaitable[T]]:
    """`replay` on all that the log holds now, under a progress bar."""

    async def act(log: Log) -> T:
        await Projector(log.store, log.engine).catch_up()
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task(verb, total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return await replay(log.engine, on_progress=advance)

    return act


def _show_differences(replayed: Replayed, differences: list[Difference]) -> None:
    for difference in differences:
        err.print(str(difference), markup=False, highlight=False, soft_wrap=True)
    found = f"{len(differences)} differences" if differences else "no difference"
    out.print(f"{found}: {replayed.jobs} jobs, {replayed.events} events compared.", highlight=False)


def _history(events: list[RecordedEvent]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("VERSION", "TIME", "EVENT", "STATE AFTER", "DATA"):
        table.add_column(title, no_wrap=title != "DATA", overflow="fold")
    state: Job | None = None
    for event in events:
        state = evolve(state, event)
        row: list[Any] = [
            str(event.version),
            event.time.strftime("%H:%M:%S.%f")[:-3],
            event.type,
            state.status.value if state else "-",
            escape(event.data.decode()),
        ]
        table.add_row(*row)
    return table
