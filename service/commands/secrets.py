"""Secrets of a project: set, list, unset; and for an operator, rotate."""

import sys
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from eventstore import connect_postgres
from generator import why_no_name
from schemas import ID_RULE, is_id
from service import migrating
from service.commands.jobs import ask
from service.commands.terminal import (
    AsJson,
    err,
    friendly,
    out,
    print_json,
    reached_servers,
    run,
)
from service.doctor.finding import count
from service.embedded import Servers
from service.errors import ServiceError, SettingsInvalid
from service.project_secrets import MAX_VALUE_BYTES, ProjectSecrets, Rotated
from service.settings import Settings
from service.wiring import secret_keys

Project = Annotated[str, typer.Argument(help="The project.", show_default=False)]
Name = Annotated[str, typer.Argument(help="The variable's name, as API_TOKEN.", show_default=False)]


def set_(project: Project, name: Name) -> None:
    """Set a secret: what is typed unseen, or comes on standard input.

    One line end at the end of the input is no part of it. What is built from now on gets it.
    """
    with friendly():
        _check(project, name)
        value = _value()
        ask(lambda client: client.set_secret(project, name, value))
    out.print(f"Set {name} of project {project}. What is built from now on gets it.")


def list_(project: Project, as_json: AsJson = False) -> None:
    """The names of a project's secrets, and when they were set. Nobody reads a value back."""
    with friendly():
        _check(project)
        found = ask(lambda client: client.secrets(project))["secrets"]
    if as_json:
        print_json(found)
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("NAME", "SET", "FIRST SET"):
        table.add_column(title, no_wrap=True)
    for one in found:
        table.add_row(one["name"], _time(one["updated_at"]), _time(one["created_at"]))
    out.print(table if found else f"Project {project} has no secrets.", highlight=False)


def unset(project: Project, name: Name) -> None:
    """Remove a secret. An app that runs keeps what it was started with."""
    with friendly():
        _check(project, name)
        ask(lambda client: client.remove_secret(project, name))
    out.print(f"Removed {name} of project {project}.")


def rotate(as_json: AsJson = False) -> None:
    """Encrypt all secrets of all tenants with the first key of HEADRACE_SECRETS_KEY.

    Once it has succeeded the other keys can go. Exit code 1 when some could not be decrypted.
    """
    with friendly():
        settings = Settings.read()
        with reached_servers(settings) as servers:
            rotated = run(_rotated, settings, servers)
    if as_json:
        print_json({"rotated": rotated.rotated, "unreadable": rotated.unreadable})
    else:
        out.print(f"Encrypted {count(rotated.rotated, 'secret')} anew.", highlight=False)
    if rotated.unreadable:
        _tell_unreadable(rotated)
        raise typer.Exit(1)


async def _rotated(settings: Settings, servers: Servers) -> Rotated:
    engine = connect_postgres(servers.database_url, pool_size=1)
    try:
        await migrating.upgrade(engine)
        return await ProjectSecrets(engine, secret_keys(settings, servers)).rotate()
    finally:
        await engine.dispose()


def _tell_unreadable(rotated: Rotated) -> None:
    err.print(f"{count(rotated.unreadable, 'secret')} could not be, and stayed:", highlight=False)
    for reason in rotated.reasons:
        err.print(f"  {reason}", highlight=False, markup=False, soft_wrap=True)
    if more := rotated.unreadable - len(rotated.reasons):
        err.print(f"  … and {more} more", highlight=False)


def _check(project: str, name: str | None = None) -> None:
    """Before anything is typed in vain. Raises `SettingsInvalid`."""
    if not is_id(project):
        raise SettingsInvalid(f"{project!r} is no project: an id has {ID_RULE}")
    if name is not None and (problem := why_no_name(name)):
        raise SettingsInvalid(f"{name[:80]!r} cannot be a secret's name: {problem}")


def _value() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Value", hide_input=True, err=True))
    read = sys.stdin.buffer.read(MAX_VALUE_BYTES + 3)  # with a line end, and one byte too many
    value = read.removesuffix(b"\n").removesuffix(b"\r")
    if len(value) > MAX_VALUE_BYTES:
        raise ServiceError(f"the value is too long: at most {MAX_VALUE_BYTES} bytes fit")
    try:
        return value.decode()
    except UnicodeDecodeError:  # whose text would show some of it
        raise ServiceError(
            "the value is no text in UTF-8: encode it, for example with base64"
        ) from None


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"
