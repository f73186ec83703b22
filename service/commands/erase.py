"""Erasing a tenant's or a project's builds: replay erase."""

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from service.commands.replay import refusals
from service.commands.terminal import (
    REFUSED,
    AsJson,
    err,
    log_file,
    out,
    print_json,
    reached_servers,
    run,
)
from service.doctor.finding import count
from service.embedded import Servers, are_embedded
from service.erasing import Erased, Erasure, Survey
from service.errors import ServiceError
from service.settings import Settings
from service.wiring import free_bytes, make_artifacts, make_sandbox_runtime, opened_log

T = TypeVar("T")

_SHOWN_JOBS = 20
_BEYOND = (
    "write-ahead log, not yet overwritten pages and backups of Postgres",
    "backups and replicas of Redis",
    "exports, and what log repair saved",
    "log output of workers, and workspaces on other machines",
    "the sandbox provider's own records",
)
_AOF = "the append-only file of Redis, until BGREWRITEAOF has written it anew, and its slow log"
_COSTS = (
    "The command ids of these jobs are forgotten: a request of the last 24 hours that is repeated "
    "is a new one. The log no longer reaches back behind their last event: Postgres may not be "
    "set back further than that."
)


def erase(
    tenant: Annotated[str, typer.Option(help="Whose builds.")],
    project: Annotated[
        str | None, typer.Option("--project", "-p", help="Only those of this project.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase goals, files, progress, secrets and whatever names a person; numbers and order stay.

    Only of jobs that have ended. Interrupted anywhere, it goes on when it is run again.
    """
    with refusals():
        settings = Settings.read()
        with log_file(settings), reached_servers(settings) as servers:

            def act(action: Callable[[Erasure], Awaitable[T]]) -> T:
                return _on_servers(settings, servers, tenant, project, action)

            found = act(lambda erasure: erasure.survey())
            jobs = len(found.ended) + len(found.unreadable)
            if not jobs and not found.living and not found.secrets:
                raise ServiceError(f"there is nothing {_whose(tenant, project)} to erase")
            _refuse_living(found.living)
            if not yes:
                _confirm(tenant, project, found)
            erased = act(lambda erasure: erasure.run(found.ended, unreadable=found.unreadable))
    if as_json:
        print_json(_document(tenant, project, erased))
    else:
        _show(erased)


def _on_servers(
    settings: Settings,
    servers: Servers,
    tenant: str,
    project: str | None,
    action: Callable[[Erasure], Awaitable[T]],
) -> T:
    async def end_sandbox(sandbox_id: str) -> bool:
        return await make_sandbox_runtime(settings).kill(sandbox_id)

    async def act() -> T:
        async with opened_log(settings, servers) as log:
            erasure = Erasure(
                log,
                make_artifacts(settings),
                tenant=tenant,
                project=project,
                workspaces=settings.home / "workspaces",
                end_sandbox=end_sandbox,
                is_embedded=are_embedded(servers, settings.home),
                free_bytes=free_bytes(settings, servers),
            )
            return await action(erasure)

    return run(act)


def _refuse_living(jobs: tuple[str, ...]) -> None:
    if not jobs:
        return
    verb = "has not ended: cancel it" if len(jobs) == 1 else "have not ended: cancel them"
    err.print(f"{len(jobs)} of these jobs {verb} first.", highlight=False)
    for job in jobs[:_SHOWN_JOBS]:
        err.print(f"  {job}", highlight=False)
    if len(jobs) > _SHOWN_JOBS:
        err.print(f"  … and {len(jobs) - _SHOWN_JOBS} more", highlight=False)
    err.print("Nothing was erased.")
    raise typer.Exit(REFUSED)


def _confirm(tenant: str, project: str | None, found: Survey) -> None:
    if not sys.stdin.isatty():
        raise ServiceError("nobody is there to be asked: say --yes")
    unreadable = len(found.unreadable)
    if unreadable:
        said = f"Not ended, and not to be read: {count(unreadable, 'job')}. Erasing lets them fail."
        err.print(said, highlight=False)
    what = count(len(found.ended) + unreadable, "job")
    if found.secrets:
        what += f" and {count(found.secrets, 'secret')}"
    if not typer.confirm(f"Erase {what} {_whose(tenant, project)}, for good?", err=True):
        raise ServiceError("nothing was erased")


def _whose(tenant: str, project: str | None) -> str:
    return f"of project {project} of tenant {tenant}" if project else f"of tenant {tenant}"


def _beyond(erased: Erased) -> list[str]:
    """What an erasure cannot reach."""
    return [*([] if erased.is_rewritten else [_AOF]), *_BEYOND]


def _document(tenant: str, project: str | None, erased: Erased) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "project": project,
        "jobs": erased.jobs,
        "events": erased.events,
        "blobs": erased.blobs,
        "bytes": erased.size_bytes,
        "commands": erased.commands,
        "secrets": erased.secrets,
        "left_blobs": erased.left_blobs,
        "left_previews": erased.left_previews,
        "aof_rewritten": erased.is_rewritten,
        "beyond_reach": _beyond(erased),
    }


def _show(erased: Erased) -> None:
    said = [
        f"Erased {count(erased.jobs, 'job')}: {count(erased.events, 'event')} not erased before, "
        f"{count(erased.blobs, 'blob')} of {count(erased.size_bytes, 'byte')}.",
    ]
    if erased.secrets:
        said.append(f"Removed: {count(erased.secrets, 'secret')}.")
    if erased.left_blobs:
        left = count(erased.left_blobs, "blob")
        said.append(f"Left as they are: {left} that builds under way have stored as well.")
    if erased.left_previews:
        left = count(erased.left_previews, "preview")
        said.append(f"Could not be ended: {left}, each ends at its own time.")
    said.append(_COSTS)
    said.append("Out of reach, and yours to see to:")
    said += [f"  {what}" for what in _beyond(erased)]
    for line in said:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
