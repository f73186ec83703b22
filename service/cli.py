"""The command line."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eventstore import EventStoreError
from service.errors import ApiError, NotRunning, ServiceError
from service.settings import ROOT, Settings

T = TypeVar("T")

app = typer.Typer(
    name="headrace",
    help="A goal comes in; a running app with a preview URL and a build number comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
replay_app = typer.Typer(no_args_is_help=True, help="Prove and remake the read model.")
app.add_typer(replay_app, name="replay")

out = Console()
err = Console(stderr=True)
log = structlog.get_logger()

Goal = Annotated[str, typer.Argument(help="What to build, in a sentence.", show_default=False)]
Project = Annotated[str, typer.Option("--project", "-p", help="The project to build in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


# --- the instance --------------------------------------------------------------------------------


@app.command()
def demo(
    goal: Goal,
    project: Project = "default",
    once: Annotated[bool, typer.Option("--once", help="End once the preview answered.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build GOAL from nothing, here and now, and serve its preview until Ctrl-C."""
    from service.demo import Outcome

    outcome = Outcome()
    try:
        with _friendly():
            outcome = _demo(goal, project, once=once, as_json=as_json)
    except typer.Exit:
        if as_json and outcome.job_id is None:
            print(outcome.to_json(), flush=True)  # noqa: T201 - the one document on stdout
        raise
    if outcome.status != "ready":
        raise typer.Exit(1)


def _demo(goal: str, project: str, *, once: bool, as_json: bool) -> Any:
    from service.demo import Outcome, demo, end_preview
    from service.watching import Screen, summary
    from service.wiring import Instance, running, servers_of

    settings = Settings.read()
    console = err if as_json else out
    outcome = Outcome()

    async def build(instance: Instance) -> None:
        nonlocal outcome
        watched, outcome = await demo(instance, goal, project=project, screen=Screen(console))
        if as_json:
            print(outcome.to_json(), flush=True)  # noqa: T201 - the one document on stdout
        console.print(summary(watched), highlight=False, soft_wrap=True)
        if outcome.status == "ready" and outcome.preview_url and not once:
            console.print("[dim]Press Ctrl-C to end.[/]")
            await anyio.sleep_forever()

    async def start_and_build() -> None:
        async with running(settings, servers, port=0) as (instance, parts):
            try:
                await build(instance)
            finally:
                await end_preview(settings, parts, outcome)

    found = Instance.find(settings)
    if found:
        console.print(f"[dim]Using the Headrace that runs at {found.url}[/]", highlight=False)
        _run_until_interrupted(lambda: build(found))
        return outcome
    with _log_file(settings), servers_of(settings) as servers:
        _run_until_interrupted(start_and_build)
    return outcome


@app.command()
def up() -> None:
    """Run API, worker and projector on this machine until Ctrl-C."""
    from service.wiring import running, servers_of

    async def serve() -> None:
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
                await anyio.sleep_forever()
            finally:
                out.print("Stopping …")

    with _friendly():
        settings = Settings.read()
        _configure_logging()
        with servers_of(settings) as servers:
            _run_until_interrupted(serve)
        out.print("Stopped. Jobs and log are kept; previews end by their own timeout.")


@app.command()
def env() -> None:
    """Print how to reach the running instance, as lines for a shell to `eval`."""
    with _friendly():
        from service.wiring import Instance

        settings = Settings.read()
        instance = Instance.find(settings)
        if instance is None:
            raise NotRunning(settings.home)
        values = {
            "REDIS_URL": instance.redis_url,
            "DATABASE_URL": instance.database_url,
            "HEADRACE_URL": instance.url,
            "HEADRACE_KEY": instance.key,
        }
        for name, value in values.items():
            print(f"export {name}={shlex.quote(value)}")  # noqa: T201 - for a shell


@app.command()
def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Only tell whether tables and revisions agree.")
    ] = False,
    new: Annotated[
        str | None, typer.Option("--new", help="Write a revision for changed tables.")
    ] = None,
) -> None:
    """Bring the database to the newest revision."""
    from eventstore import connect_postgres
    from service import migrating

    async def run(database_url: str) -> None:
        engine = connect_postgres(database_url)
        try:
            await migrating.upgrade(engine)
            if new:
                await migrating.new_revision(engine, new)
            elif check:
                await migrating.check(engine)
        finally:
            await engine.dispose()

    with _friendly(), _reached_servers(Settings.read()) as servers:
        anyio.run(run, servers.database_url)
        out.print("The database is at the newest revision.")


# --- jobs ----------------------------------------------------------------------------------------


@app.command()
def submit(
    goal: Goal,
    project: Project = "default",
    tier: Annotated[str, typer.Option(help="free or pro.")] = "free",
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Watch it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a build of GOAL with the running instance."""
    from service.client import Client

    async def run(url: str, key: str) -> dict[str, Any]:
        async with Client(url, key) as client:
            return await client.submit(goal, project=project, tier=tier)

    with _friendly():
        accepted = anyio.run(run, *_api())
        if as_json:
            print(json.dumps(accepted))  # noqa: T201 - the one document on stdout
        elif not follow:
            out.print(f"queued as job [bold]{accepted['job_id']}[/]", highlight=False)
    if follow:
        _watch(accepted["job_id"], err if as_json else out)


@app.command()
def watch(job: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """Watch a job to its end; exit code 0 only when it became READY."""
    _watch(job, out)


def _watch(job_id: str, console: Console) -> None:
    from service import demo
    from service.client import Client
    from service.watching import Screen, Watched, summary

    async def run(url: str, key: str) -> Watched:
        async with Client(url, key) as client:
            job = await client.job(job_id)
            watched = Watched(job_id, job["goal"], job["project_id"])
            return await demo.watch(client, watched, Screen(console))

    with _friendly():
        watched = anyio.run(run, *_api())
        console.print(summary(watched), highlight=False, soft_wrap=True)
        if watched.status != "ready":
            raise typer.Exit(1)


@app.command()
def jobs(
    project: Annotated[str | None, typer.Option("--project", "-p", help="Only this one.")] = None,
    status: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from service.client import Client

    async def run(url: str, key: str) -> dict[str, Any]:
        async with Client(url, key) as client:
            return await client.jobs(project=project, status=status, limit=limit)

    with _friendly():
        page = anyio.run(run, *_api())
        if as_json:
            print(json.dumps(page["jobs"]))  # noqa: T201 - the one document on stdout
            return
        table = Table(box=None, header_style="dim", pad_edge=False)
        for title in ("JOB", "PROJECT", "STATUS", "BUILD", "QUEUED", "GOAL"):
            table.add_column(title, no_wrap=title != "GOAL", overflow="ellipsis")
        for job in page["jobs"]:
            style = {"ready": "green", "failed": "red", "cancelled": "yellow"}.get(job["status"])
            table.add_row(
                job["job_id"],
                job["project_id"],
                f"[{style}]{job['status']}[/]" if style else job["status"],
                job["build_version"] or "",
                job["queued_at"][:19].replace("T", " "),
                escape(" ".join(job["goal"].split())[:60]),
            )
        out.print(table if page["jobs"] else "No jobs yet.")


@app.command()
def cancel(job: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """Stop a job and everything it runs."""
    from service.client import Client

    async def run(url: str, key: str) -> dict[str, Any]:
        async with Client(url, key) as client:
            return await client.cancel(job)

    with _friendly():
        answer = anyio.run(run, *_api())
        out.print(f"job {job} is {answer['status']}", highlight=False)


# --- replay --------------------------------------------------------------------------------------


@replay_app.command()
def rebuild() -> None:
    """Fold the whole log into fresh tables and put them in place."""
    from projector import rebuild as rebuild_tables

    replayed, _ = _replay(rebuild_tables, "rebuilding")
    out.print(f"Rebuilt {replayed.jobs} jobs from {replayed.events} events.", highlight=False)


@replay_app.command()
def verify() -> None:
    """Compare the read model with what its events fold to; exit code 1 when they differ."""
    from projector import verify as verify_tables

    (replayed, differences), _ = _replay(verify_tables, "verifying")
    for difference in differences:
        err.print(str(difference), markup=False, highlight=False, soft_wrap=True)
    found = f"{len(differences)} differences" if differences else "no difference"
    out.print(f"{found}: {replayed.jobs} jobs, {replayed.events} events compared.", highlight=False)
    if differences:
        raise typer.Exit(1)


def _replay(action: Callable[..., Awaitable[T]], verb: str) -> tuple[T, Any]:
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from projector import Projector
    from service.wiring import opened_log

    async def run() -> T:
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        async with opened_log(settings, servers) as parts:
            await Projector(parts.store, parts.engine).catch_up()
            with Progress(*columns, console=err, transient=True) as bar:
                task = bar.add_task(verb, total=None)
                return await action(
                    parts.engine,
                    on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                )

    with _friendly():
        settings = Settings.read()
        with _log_file(settings), _reached_servers(settings) as servers:
            return anyio.run(run), settings
    raise AssertionError


@replay_app.command()
def show(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    tenant: Annotated[str, typer.Option(help="Whose job it is.")] = "local",
) -> None:
    """Print a job's history: each event and the state after it."""
    from schemas import JobRef, evolve
    from service.wiring import opened_log

    async def run() -> list[Any]:
        async with opened_log(settings, servers) as parts:
            return await parts.store.read_job(JobRef(tenant, job))

    with _friendly():
        settings = Settings.read()
        with _log_file(settings), _reached_servers(settings) as servers:
            events = anyio.run(run)
        if not events:
            raise ApiError(404, f"there is no job {job} of tenant {tenant}")
        table = Table(box=None, header_style="dim", pad_edge=False)
        for title in ("VERSION", "TIME", "EVENT", "STATE AFTER", "DATA"):
            table.add_column(title, no_wrap=title not in ("DATA",), overflow="fold")
        state = None
        for event in events:
            state = evolve(state, event)
            table.add_row(
                str(event.version),
                event.time.strftime("%H:%M:%S.%f")[:-3],
                event.type,
                state.status.value if state else "-",
                escape(event.data.decode()),
            )
        out.print(table, soft_wrap=not out.is_terminal)


# --- work on Headrace itself ---------------------------------------------------------------------


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="What to measure: append.")],
    as_json: AsJson = False,
) -> None:
    """Measure something beside a limit of the same machine, in the same run."""
    from benchmarks import BENCHMARKS, show_rows

    with _friendly():
        if name not in BENCHMARKS:
            raise ServiceError(f"no benchmark {name!r}; there is {', '.join(BENCHMARKS)}")
        rows = BENCHMARKS[name]()
        if as_json:
            print(json.dumps([row.to_dict() for row in rows]))  # noqa: T201 - one document
        else:
            show_rows(out, rows)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context) -> None:
    """Lint, check types and imports, and run the tests; with arguments, pytest alone with them."""
    python = [sys.executable, "-m"]
    steps = [
        [*python, "ruff", "check", "--quiet", "."],
        [*python, "ruff", "format", "--check", "--quiet", "."],
        [*python, "mypy"],
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        [*python, "pytest"],
    ]
    if context.args:
        steps = [[*python, "pytest", *context.args]]
    for step in steps:
        name = " ".join(Path(word).name for word in step if word not in python)
        err.print(f"[bold]── {name}[/]", highlight=False)
        done = subprocess.run(step, cwd=ROOT, check=False)
        if done.returncode != 0:
            raise typer.Exit(done.returncode)


# --- shared --------------------------------------------------------------------------------------


@contextmanager
def _friendly() -> Iterator[None]:
    """Say what went wrong and what to do; exit code 1, or 2 for a refused request."""
    try:
        yield
    except (ServiceError, EventStoreError) as error:
        err.print(f"[bold red]headrace:[/] {escape(str(error))}", highlight=False)
        refused = isinstance(error, ApiError) and 400 <= error.status < 500
        raise typer.Exit(2 if refused else 1) from error


def _api() -> tuple[str, str]:
    """URL and key: from the environment, else of the instance that runs on this home."""
    from service.wiring import Instance

    settings = Settings.read()
    if settings.url and settings.key:
        return settings.url, settings.key.get_secret_value()
    instance = Instance.find(settings)
    if instance is None:
        raise NotRunning(settings.home)
    return instance.url, instance.key


@contextmanager
def _reached_servers(settings: Settings) -> Iterator[Any]:
    """The servers of the instance that runs, else those that the settings name or start."""
    from service.embedded import Servers
    from service.wiring import Instance, servers_of

    instance = Instance.find(settings)
    if instance:
        yield Servers(instance.redis_url, instance.database_url)
    elif settings.redis_url and settings.database_url:
        yield Servers(settings.redis_url, settings.database_url)
    else:
        with servers_of(settings) as servers:
            yield servers


def _run_until_interrupted(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main`; SIGINT or SIGTERM cancels it, and its clean-up is waited for."""

    async def run() -> None:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    async for _ in signals:
                        tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            await main()
            tasks.cancel_scope.cancel()

    try:
        anyio.run(run)
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _configure_logging() -> None:
    from service.logging import configure_logging

    configure_logging(sys.stderr)


@contextmanager
def _log_file(settings: Settings) -> Iterator[None]:
    """Log output goes to a file while the terminal shows the build."""
    from service.logging import configure_logging

    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "headrace.log").open("a", buffering=1) as file:
        configure_logging(file)
        yield
