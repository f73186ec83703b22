"""Running a part of Headrace as a process of its own: api, projector, worker, reaper."""

import sys
from collections.abc import Awaitable, Callable

import anyio

from service.collector import settle
from service.commands.terminal import friendly, out, run_until_stopped
from service.embedded import Servers
from service.errors import NothingToJoin
from service.instance import Instance
from service.known_secrets import redactor_of
from service.logging import configure_logging
from service.settings import Settings

Play = Callable[[Settings, Servers, anyio.Event], Awaitable[None]]


def api() -> None:
    """Run one more API, on HEADRACE_HOST and HEADRACE_PORT. `up` runs one itself."""
    from service.wiring import listening, opened_log, serving

    async def serve(settings: Settings, servers: Servers, stopping: anyio.Event) -> None:
        listener = listening(settings, settings.port)
        async with (
            opened_log(settings, servers) as log,
            serving(settings, servers, log, listener) as url,
        ):
            _is_up("API", url, f"  Key     {settings.home / 'key'}, for tenant local")
            await stopping.wait()

    _play(serve)


def projector() -> None:
    """Run one more projector: it folds, archives and trims the log. `up` runs one itself."""
    from service.wiring import folding, make_projector, opened_log

    async def fold(settings: Settings, servers: Servers, stopping: anyio.Event) -> None:
        async with (
            opened_log(settings, servers) as log,
            folding(settings, log, make_projector(settings, servers, log)),
        ):
            _is_up("Projector", f"for {log.store.partitions} partitions")
            await stopping.wait()

    _play(fold)


def worker() -> None:
    """Run one more worker for the instance that runs, or for the servers that the settings name."""
    from service.wiring import opened_log, working

    async def work(settings: Settings, servers: Servers, stopping: anyio.Event) -> None:
        async with opened_log(settings, servers) as log, working(settings, servers, log) as one:
            _is_up("Worker", one.name, f"  Jobs at a time  {settings.slots}")
            try:
                await stopping.wait()
            finally:
                out.print(stopping_words(settings))

    _play(work)
    out.print("Stopped. Jobs that were not finished are handed back.")


def reaper() -> None:
    """Run one more reaper: it ends the sandboxes that nobody needs. `up` runs one itself."""
    from service.wiring import opened_log, reaping

    async def reap(settings: Settings, servers: Servers, stopping: anyio.Event) -> None:
        async with opened_log(settings, servers) as log, reaping(settings, servers, log):
            _is_up("Reaper", f"for {settings.sandbox_kind} sandboxes")
            await stopping.wait()

    _play(reap)


def stopping_words(settings: Settings) -> str:
    """What a worker says that is asked to stop."""
    return (
        f"Stopping … builds under way have {settings.drain_s:g} s to end, others go on with them "
        "then; Ctrl-C again stops at once."
    )


def _play(play: Play) -> None:
    """Run a part until it is asked to stop, for the servers of whoever runs here, or the named."""
    with friendly():
        settings = Settings.read()
        configure_logging(sys.stderr, redactor_of(settings))
        servers = _servers_to_join(settings)
        run_until_stopped(lambda stopping: play(settings, servers, stopping))


def _servers_to_join(settings: Settings) -> Servers:
    instance = Instance.find(settings)
    if instance is not None:
        return Servers(instance.redis_url, instance.database_url)
    if settings.redis_url and settings.database_url:
        return Servers(settings.redis_url, settings.database_url)
    raise NothingToJoin(settings.home)


def _is_up(name: str, what: str, *more: str) -> None:
    """Settle down, and say that a part is up."""
    settle()
    lines = [f"[bold green]{name} is up[/]  {what}", *more, "[dim]Press Ctrl-C to stop.[/]"]
    out.print("\n".join(lines), highlight=False, soft_wrap=True)
