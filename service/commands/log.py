"""The log as events: log tail, export, import."""

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Annotated

import anyio
import typer
from anyio.streams.memory import MemoryObjectSendStream
from redis.asyncio import Redis
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Hub,
    LogEntry,
    Reset,
    check_export,
    connect_postgres,
    connect_redis,
    event_line,
    export_log,
    import_log,
    subscribe,
    written_whole,
)
from schemas import Position, SchemaError
from schemas.decoding import PAYLOADS
from service.commands.terminal import (
    AsJson,
    err,
    friendly,
    log_file,
    out,
    reached_servers,
    run,
    run_until_interrupted,
)
from service.embedded import Servers
from service.errors import ApiError, ServiceError
from service.log_tail import Wanted, between, line, newest
from service.migrating import upgrade
from service.settings import Settings
from service.wiring import CLOSE_S, Log, opened_log, servers_of

_NOT_FOUND = 404
_STDIO = "-"

Tenant = Annotated[str | None, typer.Option(help="Only events of this tenant.")]


# --- tail ----------------------------------------------------------------------------------------


def tail(
    tenant: Tenant = None,
    project: Annotated[str | None, typer.Option(help="Only events of this project.")] = None,
    job: Annotated[
        str | None, typer.Option(help="Only of this job: its id, or the end of it.")
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", help="Only events of this type; may be repeated.")
    ] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition.")] = None,
    after: Annotated[
        str | None, typer.Option(help="All behind this position, e.g. 0:1-42, in its partition.")
    ] = None,
    number: Annotated[int, typer.Option("-n", min=0, help="How many of the newest events.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the newest events, and with -f those that come.

    --json prints a CloudEvent a line.
    """

    async def act(log: Log) -> None:
        begin = _position(after) if after else None
        ends = [await log.store.log_end(one) for one in _partitions(log, begin, tenant, partition)]
        shown = 0

        def show(entry: LogEntry | Reset) -> None:
            nonlocal shown
            if isinstance(entry, Reset):
                _show_reset(entry)
            elif wanted.has(entry):
                _show_event(entry, as_json=as_json)
                shown += 1

        if begin is not None:
            async for entry in between(log.hub, begin, ends[0]):
                show(entry)
            ends = [max(begin, ends[0])]
        else:
            for entry in await newest(log.hub, ends, wanted, number):
                show(entry)
        if follow:
            await _follow(log.hub, ends, show)
        elif not shown and job is not None:
            raise ApiError(_NOT_FOUND, f"there is no event of job {job} that fits")
        elif not shown:
            err.print("No event fits.")

    with told():
        wanted = Wanted(tenant, project, job, _types(types or []))
        _on_log(act)


def _types(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if name.partition(".")[0] not in PAYLOADS:
            raise ServiceError(f"no event type {name!r}; there is {', '.join(PAYLOADS)}")
    return frozenset(names)


def _position(text: str) -> Position:
    try:
        return Position.parse(text)
    except ValueError as error:
        raise ServiceError(f"--after: {error}") from error


def _partitions(
    log: Log, begin: Position | None, tenant: str | None, partition: int | None
) -> Sequence[int]:
    """The partitions to read: all, or the one that every filter allows."""
    asked = {
        "--after": None if begin is None else begin.partition,
        "--tenant": None if tenant is None else log.store.partition(tenant),
        "--partition": partition,
    }
    named = {name: number for name, number in asked.items() if number is not None}
    if len(set(named.values())) > 1:
        said = ", ".join(f"{name} means partition {number}" for name, number in named.items())
        raise ServiceError(f"{said}: no event is in both")
    if named:
        (number, *_) = named.values()
        if number >= log.store.partitions:
            raise ServiceError(
                f"there is no partition {number}: the log has 0 to {log.store.partitions - 1}"
            )
        return [number]
    return range(log.store.partitions)


async def _follow(
    hub: Hub, ends: Sequence[Position], show: Callable[[LogEntry | Reset], None]
) -> None:
    async def read(end: Position, to: MemoryObjectSendStream[LogEntry | Reset]) -> None:
        async for entry in subscribe(hub, partition=end.partition, after=end if end.seq else None):
            if isinstance(entry, LogEntry | Reset):
                await to.send(entry)

    # Without a buffer: a reader goes on when what it read was shown.
    send, receive = anyio.create_memory_object_stream[LogEntry | Reset](0)
    async with anyio.create_task_group() as tasks:
        for end in ends:
            tasks.start_soon(read, end, send)
        async for entry in receive:
            show(entry)


def _show_event(entry: LogEntry, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(event_line(entry))
        sys.stdout.buffer.flush()
    else:
        out.print(Text(line(entry)), no_wrap=True, overflow="ellipsis", crop=True, highlight=False)


def _show_reset(reset: Reset) -> None:
    since = f"behind {reset.after}" if reset.after else "from its beginning"
    err.print(f"[yellow]The log was repaired; here is its history {since}:[/]", highlight=False)


# --- export and import ---------------------------------------------------------------------------


def export(
    file: Annotated[str, typer.Argument(help="Where to; - is standard output.")] = _STDIO,
    tenant: Tenant = None,
) -> None:
    """Write all events there are, one CloudEvent a line.

    A file stands under its name only when it is whole, its owner alone may read it.

    Command ids, progress and the files of builds are not in it.
    """

    async def act(log: Log) -> None:
        with _target(file) as target, bar("exporting") as show:
            events = await export_log(
                log.hub, target, tenant=tenant, on_progress=lambda *at: show("exporting", *at)
            )
        err.print(f"Exported {events} events.", highlight=False)

    with told():
        _on_log(act)


@contextmanager
def _target(name: str) -> Iterator[IO[bytes]]:
    if name == _STDIO:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name).resolve()
    if path.exists() and not path.is_file():
        raise ServiceError(f"{path} is not a file; - writes to standard output")
    if not path.parent.is_dir():
        raise ServiceError(f"there is no folder {path.parent}")
    with written_whole(path) as target:
        yield target


def import_(
    file: Annotated[
        str, typer.Argument(help="What export wrote; - is standard input.", show_default=False)
    ],
) -> None:
    """Fill a log without events from an export; nothing else may run on it.

    The whole file is checked before the first event is written. Jobs that had not ended are queued
    again, with the attempts they had. The number of partitions may be another.
    """

    async def act(settings: Settings, servers: Servers, source: IO[bytes]) -> None:
        async with opened_log(settings, servers) as log:
            with bar("importing") as show:
                await import_log(
                    log.store, source, checked, on_progress=lambda *at: show("importing", *at)
                )

    with told():
        settings = Settings.read()
        with ExitStack() as stack:
            stack.enter_context(log_file(settings))
            source = stack.enter_context(_source(file, settings.home))
            with bar("checking") as show:
                checked = check_export(source, on_progress=lambda *at: show("checking", *at))
            servers = stack.enter_context(servers_of(settings))
            run(act, settings, servers, source)
        err.print(
            f"Imported {checked.events} events of {checked.jobs} jobs.\n"
            f"Queued again, for they had not ended: {len(checked.living)}.",
            highlight=False,
        )


@contextmanager
def _source(name: str, home: Path) -> Iterator[IO[bytes]]:
    """What can be read twice: standard input goes through a file without a name."""
    if name != _STDIO:
        with Path(name).open("rb") as source:
            yield source
        return
    with tempfile.TemporaryFile(dir=home) as spooled:
        shutil.copyfileobj(sys.stdin.buffer, spooled)
        yield spooled


# --- what the commands share ---------------------------------------------------------------------


@contextmanager
def told() -> Iterator[None]:
    """Says what went wrong in a sentence, also of files and of events that cannot be read."""
    with friendly():
        try:
            yield
        except SchemaError as error:
            raise ServiceError(f"an event cannot be read: {error}") from error
        except OSError as error:
            if error.filename is None:
                raise
            raise ServiceError(f"{error.filename}: {error.strerror}") from error


@contextmanager
def bar(verb: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar; what it gives takes (what is done, how much of it, of how much)."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(verb, total=None)

        def show(what: str, done: int, total: int | None) -> None:
            # A task's total can be changed, but not taken away again.
            nonlocal task
            if progress.tasks[0].description != what:
                progress.remove_task(task)
                task = progress.add_task(what, total=total)
            progress.update(task, completed=done, total=total)

        yield show


@asynccontextmanager
async def connected(servers: Servers) -> AsyncIterator[tuple[Redis, AsyncEngine]]:
    """Both servers, the database migrated, the log not opened."""
    redis, engine = connect_redis(servers.redis_url), connect_postgres(servers.database_url)
    try:
        await upgrade(engine)
        yield redis, engine
    finally:
        with anyio.move_on_after(CLOSE_S, shield=True):
            await redis.aclose()
            await engine.dispose()


def _on_log(action: Callable[[Log], Awaitable[None]]) -> None:
    async def act() -> None:
        async with opened_log(settings, servers) as log:
            await action(log)

    settings = Settings.read()
    with log_file(settings), reached_servers(settings) as servers:
        run_until_interrupted(act)
