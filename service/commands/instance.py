"""Running Headrace, the whole of it: demo, up, migrate."""

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated

import anyio
import typer

from generator import Deadlines
from service.commands.roles import stopping_words
from service.commands.terminal import (
    REFUSED,
    AsJson,
    Base,
    Goal,
    Project,
    checked_base,
    err,
    friendly,
    log_file,
    out,
    print_json,
    reached_servers,
    run,
    run_until_interrupted,
    run_until_stopped,
)
from service.demo import Outcome
from service.embedded import Servers
from service.errors import AlreadyRunning
from service.instance import Instance
from service.known_secrets import redactor_of
from service.logging import configure_logging
from service.settings import Settings

OTHERS_START_S = 30.0


def demo(
    goal: Goal,
    project: Project = "default",
    base: Base = None,
    once: Annotated[bool, typer.Option("--once", help="End once the preview answered.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build GOAL here and now, from nothing or from --base, and serve its preview until Ctrl-C."""
    outcome = Outcome()
    try:
        with friendly():
            outcome = _demo(goal, project, checked_base(base), once=once, as_json=as_json)
    except typer.Exit as ended:
        if as_json:
            status = "refused" if ended.exit_code == REFUSED else "error"
            print_json(replace(outcome, status=status).to_dict())
        raise
    if outcome.status != "ready":
        raise typer.Exit(1)


def _demo(goal: str, project: str, base: int | str | None, *, once: bool, as_json: bool) -> Outcome:
    from service.demo import demo, end_preview, see_preview
    from service.watching import Screen, summary
    from service.wiring import running

    settings = Settings.read()
    console = err if as_json else out
    outcome, is_told = Outcome(), False

    async def build(instance: Instance) -> None:
        nonlocal outcome, is_told
        watched, outcome = await demo(
            instance, goal, project=project, screen=Screen(console), base=base
        )
        if outcome.preview_url:
            await see_preview(outcome.preview_url)
        is_told = True
        if as_json:
            print_json(outcome.to_dict())
        console.print(f"\n{summary(watched)}", highlight=False, soft_wrap=True)
        if outcome.preview_url and not once:
            console.print("[dim]Press Ctrl-C to end.[/]")
            await anyio.sleep(Deadlines().sandbox_s)
            console.print("The preview's time is over; its files are kept.")

    async def start_and_build(servers: Servers) -> None:
        async with running(settings, servers, port=0) as (instance, parts):
            try:
                await build(instance)
            finally:
                await end_preview(settings, parts, outcome)

    with log_file(settings), ExitStack() as stack:
        with console.status("Starting Valkey and PostgreSQL …"):
            found = _instance_or_servers(settings, stack)
        if isinstance(found, Instance):
            console.print(f"[dim]Using the Headrace that runs at {found.url}[/]", highlight=False)
            run_until_interrupted(lambda: build(found))
        else:
            run_until_interrupted(lambda: start_and_build(found))
    if not is_told:
        console.print("Interrupted.")
        outcome = replace(outcome, status="interrupted")
        if as_json:
            print_json(outcome.to_dict())
    return outcome


def _instance_or_servers(settings: Settings, stack: ExitStack) -> Instance | Servers:
    """The instance that runs, also one that just starts, else servers of our own."""
    from service.wiring import servers_of

    deadline = time.monotonic() + OTHERS_START_S
    while (found := Instance.find(settings)) is None:
        try:
            return stack.enter_context(servers_of(settings))
        except AlreadyRunning:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    return found


def up() -> None:
    """Run API, worker and projector on this machine until Ctrl-C."""
    from service.wiring import running, servers_of

    async def serve(settings: Settings, servers: Servers, stopping: anyio.Event) -> None:
        async with running(settings, servers, port=settings.port) as (instance, _):
            out.print(
                f"[bold green]Headrace is up[/]  {instance.url}\n"
                f'  Submit     ./headrace submit "a todo list for two people" --watch\n'
                f'  Reach it   eval "$(./headrace env)"\n'
                f"  Data       {settings.home}\n"
                f"[dim]Press Ctrl-C to stop.[/]",
                highlight=False,
                soft_wrap=True,
            )
            try:
                await stopping.wait()
            finally:
                out.print(stopping_words(settings))

    with friendly():
        settings = Settings.read()
        configure_logging(sys.stderr, redactor_of(settings))
        with servers_of(settings) as servers:
            run_until_stopped(lambda stopping: serve(settings, servers, stopping))
        out.print("Stopped. Log, jobs and files are kept; previews go on until their own time-out.")


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Also tell whether tables and revisions agree.")
    ] = False,
    new: Annotated[
        str | None, typer.Option("--new", help="Write a revision for changed tables.")
    ] = None,
) -> None:
    """Bring the database to the newest revision."""
    from eventstore import connect_postgres
    from service import migrating

    async def bring_up_to_date(database_url: str) -> None:
        engine = connect_postgres(database_url)
        try:
            await migrating.upgrade(engine)
            if new:
                await migrating.new_revision(engine, new)
            elif check:
                await migrating.check(engine)
        finally:
            await engine.dispose()

    with friendly(), reached_servers(Settings.read()) as servers:
        run(bring_up_to_date, servers.database_url)
        out.print("The database is at the newest revision.")
