"""A job's history: replay show."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from projector import ParkedJob, parked_jobs
from schemas import Job, JobRef, JobUnknown, RecordedEvent, format_time, is_id
from service.commands.replay_log import on_log, refusals
from service.commands.terminal import AsJson, out, print_json
from service.errors import ApiError, ServiceError
from service.history import Told, parse_moment, read_history, readable, state_at, told
from service.instance import LOCAL_TENANT
from service.wiring import Log

MOST_CHARS = 400


def show(
    job: Annotated[str, typer.Argument(help="The job's id.", show_default=False)],
    at: Annotated[
        str | None,
        typer.Option(help="Only the job as it was then: a version, or a time with its zone."),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose job it is.")] = LOCAL_TENANT,
    as_json: AsJson = False,
) -> None:
    """Print a job's history: each event, and what it changed.

    With --at the whole state at that point.
    """

    async def read(log: Log) -> tuple[list[RecordedEvent], ParkedJob | None]:
        events = await read_history(log.store, JobRef(tenant, job))
        async with log.engine.connect() as connection:
            aside = [one for one in await parked_jobs(connection) if one.job_id == job]
        return events, aside[0] if aside else None

    with refusals():
        moment = _moment(at) if at is not None else None
        if not is_id(job) or not is_id(tenant):
            raise _no_job(job, tenant)
        try:
            events, aside = on_log(read)
        except JobUnknown as error:
            raise _no_job(job, tenant) from error
        if moment is None:
            history = told(events)
            if as_json:
                print_json(history_document(history, aside))
            else:
                show_history(history, aside)
        else:
            _show_state(_state(events, moment), as_json=as_json)


def _no_job(job: str, tenant: str) -> ApiError:
    return ApiError(404, f"there is no job {job} of tenant {tenant}")


def _moment(text: str) -> int | datetime:
    try:
        return parse_moment(text)
    except ValueError as error:
        raise ServiceError(f"--at: {error}") from error


def _state(events: Sequence[RecordedEvent], moment: int | datetime) -> Job:
    try:
        return state_at(events, moment)
    except ValueError as error:
        raise ServiceError(f"--at: {error}") from error


def _show_state(state: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(_state_document(state))
        return
    table = _table("FIELD", "VALUE")
    for name, value in state.__dict__.items():
        table.add_row(name, _cell(value))
    _print(table)


# --- a history -----------------------------------------------------------------------------------


def show_history(history: Sequence[Told], aside: ParkedJob | None) -> None:
    """Print these events, and what each changed, old beside new."""
    table = _table("VERSION", "TIME", "EVENT", "FIELD", "BEFORE", "AFTER")
    for one in history:
        event = one.event
        head = [str(event.version), event.time.strftime("%H:%M:%S.%f")[:-3], event.type]
        if one.problem:
            table.add_row(*head, Text("!", style="red"), "", Text(one.problem, style="red"))
            if event.version == (aside.version if aside else 0):
                table.add_row("", "", "", "data", "", _cell(event.data.decode(errors="replace")))
            continue
        for name, old, new in one.changes():
            table.add_row(*head, name, _cell(old), _cell(new))
            head = ["", "", ""]
        if head[0]:
            table.add_row(*head, Text("nothing", style="dim"), "", "")
    day = history[0].event.time.strftime("%Y-%m-%d") if history else ""
    title = Text(f"job {history[0].event.job}, {day} (UTC)", style="bold") if history else Text("")
    _print(Group(title, *_aside(aside), "", table))


def history_document(history: Sequence[Told], aside: ParkedJob | None) -> dict[str, Any]:
    """The same as JSON takes it."""
    last = next((one.after for one in reversed(history) if one.after), None)
    return {
        "job_id": history[0].event.job if history else None,
        "parked": aside.model_dump(mode="json") if aside else None,
        "history": [
            {
                "version": one.event.version,
                "time": format_time(one.event.time),
                "type": one.event.type,
                "data": _data(one.event),
                "changes": {
                    name: {"before": readable(old), "after": readable(new)}
                    for name, old, new in one.changes()
                },
                "problem": one.problem or None,
            }
            for one in history
        ],
        "state": _state_document(last) if last else None,
    }


def _state_document(state: Job) -> dict[str, Any]:
    return {name: readable(value) for name, value in state.__dict__.items()}


def _data(event: RecordedEvent) -> Any:
    try:
        return json.loads(event.data)
    except ValueError:
        return event.data.decode(errors="replace")


def _aside(aside: ParkedJob | None) -> list[RenderableType]:
    if aside is None:
        return []
    said = f"{aside.state} at version {aside.version} ({aside.type}): {aside.error}"
    return [Text(said, style="yellow")]


def _cell(value: Any) -> Text:
    """A value on few lines; nothing in it is markup."""
    value = readable(value)
    if isinstance(value, dict):
        value = [f"{name} {one}" for name, one in value.items() if one is not None]
    if value is None or value == []:
        return Text("-", style="dim")
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    said = " ".join(said.split())
    return Text(said if len(said) <= MOST_CHARS else said[: MOST_CHARS - 1] + "…")


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in titles:
        is_long = title in ("BEFORE", "AFTER", "VALUE", "FIELD")
        table.add_column(title, no_wrap=not is_long, overflow="fold")
    return table


def _print(what: RenderableType) -> None:
    out.print(what, soft_wrap=not out.is_terminal, highlight=False)
