"""What replay commands share: the opened log, a progress bar, and refusals in a sentence."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from asyncpg import InterfaceError, PostgresError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from projector import Projector, ProjectorError
from schemas import SchemaError
from service.commands.terminal import err, friendly, log_file, reached_servers, run
from service.embedded import Servers
from service.errors import ServiceError
from service.settings import Settings
from service.wiring import Log, opened_log

T = TypeVar("T")
R = TypeVar("R", covariant=True)


class Replay(Protocol[R]):
    """Something that goes over the whole archive and says how far it is."""

    def __call__(
        self, engine: AsyncEngine, *, on_progress: Callable[[int, int], None]
    ) -> Awaitable[R]: ...


@contextmanager
def refusals() -> Iterator[None]:
    """Says in a sentence why a replay was refused, or which event is in the way."""
    with friendly():
        try:
            yield
        except (ProjectorError, SchemaError) as error:
            raise ServiceError(str(error)) from error
        except (SQLAlchemyError, PostgresError, InterfaceError) as error:
            said = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise ServiceError(f"the database refuses: {said}") from error


def on_log(action: Callable[[Log], Awaitable[T]]) -> T:
    """What `action` makes of the opened log, of the running instance or of one's own servers."""
    settings = Settings.read()
    with log_file(settings), reached_servers(settings) as servers:
        result: T = run(act_on_log, settings, servers, action)
    return result


async def act_on_log(
    settings: Settings, servers: Servers, action: Callable[[Log], Awaitable[T]]
) -> T:
    async with opened_log(settings, servers) as log:
        return await action(log)


def with_progress(replay: Replay[T], verb: str) -> Callable[[Log], Awaitable[T]]:
    """`replay` on all that the log holds now, under a progress bar."""

    async def act(log: Log) -> T:
        await Projector(log.store, log.engine).catch_up()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task(verb, total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return await replay(log.engine, on_progress=advance)

    return act


class _Rate(ProgressColumn):
    """How many events are folded in a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f}/s", style="progress.data.speed")
