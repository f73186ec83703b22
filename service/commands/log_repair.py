"""Making a log anew that Redis lost: log repair."""

import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import typer

from eventstore import Archive, Fault, Found, Repair, Repaired
from service.commands.log import bar, connected, told
from service.commands.terminal import log_file, out, run
from service.embedded import Servers
from service.errors import ServiceError
from service.secret_marks import SecretMarks
from service.settings import Settings
from service.wiring import servers_of

T = TypeVar("T")

_SHOWN_JOBS = 20


def repair(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
) -> None:
    """Make a log that Redis lost, or has another history of, anew behind its archive.

    What Redis has is saved to a file first. Jobs that had not ended are failed: what was lost of
    them cannot be known. Partitions without a fault are left alone.
    """

    async def examine(repair: Repair) -> list[tuple[Fault, Found]]:
        return [(fault, await repair.survey(fault)) for fault in await repair.examine()]

    async def mend(repair: Repair) -> list[Repaired]:
        return await repair.run([fault for fault, _ in found])

    with told():
        settings = Settings.read()
        with log_file(settings), servers_of(settings) as servers:
            found = _on_servers(settings, servers, examine)
            for fault, there in found:
                _show_fault(fault, there)
            if not found:
                out.print("There is nothing to repair.")
                return
            if dry_run:
                out.print("Nothing was changed.")
                return
            _confirm(servers, yes=yes)
            for repaired in _on_servers(settings, servers, mend):
                _show_repaired(repaired)
            run(partial(_mark_projects, servers))
        _say(
            "The log can be opened again. The command ids of its repaired partitions are "
            "forgotten: a request of the last 24 hours that is repeated is a new one."
        )


async def _mark_projects(servers: Servers) -> None:
    """For the processes that go on without opening the log anew."""
    async with connected(servers) as (redis, engine):
        partitions = len(await Archive(engine).register.all())
        await SecretMarks(redis, partitions).mark_all(engine)


def _on_servers(
    settings: Settings, servers: Servers, action: Callable[[Repair], Awaitable[T]]
) -> T:
    async def act() -> T:
        async with connected(servers) as (redis, engine):
            with bar("comparing") as show:
                repair = Repair(
                    redis,
                    engine,
                    settings.home / "repairs",
                    tenant_cap=settings.tenant_cap,
                    on_progress=show,
                )
                return await action(repair)

    return run(act)


def _show_fault(fault: Fault, found: Found) -> None:
    since = f"after position {fault.archived}" if fault.archived else "since it was made"
    lost = f" Events may have been lost {since}." if fault.is_broken else ""
    _say(f"Partition {fault.partition}: {fault.reason}.{lost}")
    if found.events:
        _say(f"  {_count(found.events, 'event')} in Redis, to be saved to a file first")
    if found.unarchived:
        events = _count(sum(map(len, found.unarchived.values())), "event")
        _say(f"  {events} of these that the archive has not:")
        _show_some(f"    {job}  {_types(types)}" for job, types in found.unarchived.items())
    if fault.living:
        _say(f"  {_count(len(fault.living), 'job')} to be failed, for they had not ended:")
        _show_some(
            f"    {one.ref.job}  of {one.ref.tenant}, version {one.version}" for one in fault.living
        )


def _show_repaired(repaired: Repaired) -> None:
    _say(f"Partition {repaired.fault.partition} is repaired.")
    if repaired.found.file:
        _say(f"  {_count(repaired.found.events, 'event')} saved in {repaired.found.file}")
    if repaired.failed:
        _say(f"  {_count(len(repaired.failed), 'job')} failed:")
        _show_some(f"    {failed.job.ref.job}  {failed.debug_id}" for failed in repaired.failed)


def _types(types: list[str]) -> str:
    counted = Counter(types).items()
    return ", ".join(kind if number == 1 else f"{kind} x{number}" for kind, number in counted)


def _show_some(lines: Iterable[str]) -> None:
    """The first of them: thousands would hide what is said around them."""
    shown = list(lines)
    for line in shown[:_SHOWN_JOBS]:
        _say(line)
    if len(shown) > _SHOWN_JOBS:
        _say(f"    … and {len(shown) - _SHOWN_JOBS} more")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _confirm(servers: Servers, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ServiceError("nobody is there to be asked: say --yes, or --dry-run to look only")
    url = urlsplit(servers.redis_url)
    where = f"{url.hostname or ''}{f':{url.port}' if url.port else ''}{url.path}"
    _say(f"The keys of these partitions are removed from the Redis at {where}.")
    if not typer.confirm("Is that the right one, and are its data gone for good?"):
        raise ServiceError("nothing was changed")
