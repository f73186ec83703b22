"""What all commands share: the terminal, errors as sentences, servers and signals."""

import json
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import anyio
import typer
from anyio.abc import TaskStatus
from rich.console import Console
from rich.markup import escape

from service.embedded import Servers
from service.errors import ApiError, NotRunning, ServiceError, SettingsInvalid
from service.instance import Instance
from service.settings import Settings

T = TypeVar("T")

WIDE = 240
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REFUSED = 2
"""Exit code for a request that was refused."""

# What is not read by a person at a terminal is not folded to a terminal's width.
out = Console(width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, width=None if sys.stderr.isatty() else WIDE)

Goal = Annotated[str, typer.Argument(help="What to build, in a sentence.", show_default=False)]
Project = Annotated[str, typer.Option("--project", "-p", help="The project to build in.")]
Base = Annotated[
    str | None,
    typer.Option(help="Change this build instead: its number, or `latest`.", show_default=False),
]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Take over the base's preview instead of a new one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def checked_base(text: str | None) -> int | str | None:
    """A build's number, or `latest`. Raises `SettingsInvalid`."""
    if text is None or text == "latest":
        return text
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise SettingsInvalid(f"--base {text}: give the number of a build, or `latest`")
    return int(text)


def print_json(document: Any) -> None:
    """The one document on stdout, on one line."""
    print(json.dumps(document, ensure_ascii=False), flush=True)  # noqa: T201 - that is its purpose


@contextmanager
def friendly() -> Iterator[None]:
    """Say what went wrong and what to do; exit code 1, or 2 for a refused request."""
    try:
        yield
    except _told() as error:
        from service.known_secrets import redactor_of_this_process

        says = redactor_of_this_process().text(str(error))
        err.print(f"[bold red]headrace:[/] {escape(says)}", highlight=False)
        refused = isinstance(error, ApiError) and 400 <= error.status < 500
        raise typer.Exit(REFUSED if refused else 1) from error


def _told() -> tuple[type[Exception], ...]:
    """What is said in a sentence: the log's errors too, where anything of the log was imported."""
    log = sys.modules.get("eventstore")
    return (ServiceError, log.EventStoreError) if log else (ServiceError,)


def api() -> tuple[str, str]:
    """URL and key: from the environment, else of the instance that runs on this home."""
    settings = Settings.read()
    if settings.url and not settings.key:
        raise SettingsInvalid("HEADRACE_URL is set, but HEADRACE_KEY is not: set both, or neither")
    if settings.url and settings.key:
        return settings.url, settings.key.get_secret_value()
    instance = Instance.find(settings)
    if instance is None:
        raise NotRunning(settings.home)
    return instance.url, instance.key


@contextmanager
def reached_servers(settings: Settings) -> Iterator[Servers]:
    """The servers of the instance that runs, else those that the settings name or start."""
    from service.wiring import servers_of

    instance = Instance.find(settings)
    if instance:
        yield Servers(instance.redis_url, instance.database_url)
    elif settings.redis_url and settings.database_url:
        yield Servers(settings.redis_url, settings.database_url)
    else:
        with servers_of(settings) as servers:
            yield servers


def run(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """`anyio.run`; an error leaves it as itself, not wrapped in groups of tasks it went through."""
    try:
        return anyio.run(main, *args)
    except BaseExceptionGroup as group:
        raise _first(group) from group


def run_until_interrupted(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main`; SIGINT, SIGTERM or SIGHUP cancels it, and its clean-up is waited for."""

    async def at_once(stopping: anyio.Event) -> None:
        stopping.set()
        await main()

    run_until_stopped(at_once)


def run_until_stopped(main: Callable[[anyio.Event], Awaitable[None]]) -> None:
    """Run `main`, which shall end once its event is set: at a SIGINT or SIGTERM.

    A second one, or SIGHUP, cancels it, and its clean-up is waited for.
    """

    async def stop_at_signal(
        stopping: anyio.Event, scope: anyio.CancelScope, *, task_status: TaskStatus[None]
    ) -> None:
        with anyio.open_signal_receiver(*_STOP) as signals:
            task_status.started()
            async for number in signals:
                if stopping.is_set() or number == signal.SIGHUP:
                    scope.cancel()
                stopping.set()

    async def until_signal() -> None:
        stopping = anyio.Event()
        async with anyio.create_task_group() as tasks:
            await tasks.start(stop_at_signal, stopping, tasks.cancel_scope)
            await main(stopping)
            tasks.cancel_scope.cancel()

    run(until_signal)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def log_file(settings: Settings) -> Iterator[None]:
    """Log output goes to a file while the terminal shows the build."""
    from service.known_secrets import redactor_of
    from service.logging import configure_logging

    settings.make_home()
    with (settings.home / "headrace.log").open("a", buffering=1) as file:
        configure_logging(file, redactor_of(settings))
        yield
