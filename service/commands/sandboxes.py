"""What lives at the sandbox provider: showing it, ending it."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from generator import Found, GenerationError, Reaper
from service.commands.previews import duration_words
from service.commands.replay_log import act_on_log
from service.commands.terminal import (
    AsJson,
    friendly,
    log_file,
    out,
    print_json,
    reached_servers,
    run,
)
from service.errors import ServiceError
from service.settings import Settings
from service.wiring import Log, make_reaper

T = TypeVar("T")

sandboxes = typer.Typer(invoke_without_command=True, add_completion=False)


@sandboxes.callback()
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """The sandboxes that live for this Headrace, who needs them, and until when."""
    if context.invoked_subcommand is not None:
        return
    with friendly():
        settings, found = _on_reaper(lambda reaper: reaper.look())
        rows = [_row(settings, one) for one in found]
        if as_json:
            print_json(rows)
        else:
            out.print(_table(rows) if rows else "No sandbox lives.")


@sandboxes.command()
def end(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Sandboxes to end.", show_default=False)
    ] = None,
    unneeded: Annotated[
        bool, typer.Option("--unneeded", help="All that nobody needs, as the list says.")
    ] = False,
) -> None:
    """End sandboxes. A build whose sandbox ends makes another one; a preview has expired then."""

    async def act(reaper: Reaper) -> tuple[list[str], list[str]]:
        found = await reaper.look()
        known = {one.info.sandbox_id for one in found}
        if missing := [one for one in ids or () if one not in known]:
            raise ServiceError(f"no sandbox {missing[0]} lives here: see ./headrace sandboxes")
        chosen = [
            one
            for one in found
            if one.info.sandbox_id in (ids or ()) or (unneeded and not one.needed)
        ]
        ended = [one.info.sandbox_id for one in chosen if await reaper.end(one)]
        return ended, [one.info.sandbox_id for one in chosen]

    with friendly():
        if bool(ids) == unneeded:
            raise ServiceError("name the sandboxes to end, or give --unneeded")
        _, (ended, chosen) = _on_reaper(act)
        for sandbox_id in chosen:
            said = "has ended" if sandbox_id in ended else "could not be ended: try again"
            out.print(f"{sandbox_id} {said}", highlight=False)
        if not chosen:
            out.print("There is none that nobody needs.")
        if len(ended) < len(chosen):
            raise typer.Exit(1)


def _on_reaper(action: Callable[[Reaper], Awaitable[T]]) -> tuple[Settings, T]:
    """What `action` gives with the reaper of the settings' sandboxes, and the settings."""
    settings = Settings.read()
    with log_file(settings), reached_servers(settings) as servers:

        async def act(log: Log) -> T:
            try:
                return await action(make_reaper(settings, servers, log))
            except GenerationError as error:
                raise ServiceError(str(error)) from error

        result: T = run(act_on_log, settings, servers, act)
    return settings, result


def _row(settings: Settings, found: Found) -> dict[str, Any]:
    info, now = found.info, datetime.now(UTC)
    return {
        "provider": settings.sandbox_kind.value,
        "sandbox_id": info.sandbox_id,
        "tenant": info.metadata.get("tenant"),
        "job_id": info.metadata.get("job"),
        "build_version": found.job.build_version if found.job else None,
        "age_s": round((now - info.started_at).total_seconds()),
        "paused": info.is_paused,
        "ends_at": None if info.is_paused else info.ends_at.isoformat(),
        "ends_in_s": None if info.is_paused else round((info.ends_at - now).total_seconds()),
        "needed": found.needed,
        "why": found.why,
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("PROVIDER", "SANDBOX", "TENANT", "JOB", "BUILD", "AGE", "ENDS IN", "NEEDED"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(
            row["provider"],
            row["sandbox_id"],
            row["tenant"] or "",
            row["job_id"] or "",
            row["build_version"] or "",
            duration_words(row["age_s"]) or "0 s",
            "paused" if row["paused"] else duration_words(row["ends_in_s"]) or "now",
            f"[{'green' if row['needed'] else 'red'}]{'yes' if row['needed'] else 'no'}[/]: "
            + row["why"],
        )
    return table
