"""Asking a running Headrace for builds: submit, watch, jobs, cancel."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.client import Client
from service.commands.previews import preview_words
from service.commands.terminal import (
    AsJson,
    Base,
    Goal,
    InPlace,
    Project,
    api,
    checked_base,
    err,
    friendly,
    out,
    print_json,
    run,
)
from service.watching import Screen, Watched, cost, summary
from service.watching import watch as watch_job

T = TypeVar("T")

JobArgument = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]

_STYLE = {"ready": "green", "failed": "red", "cancelled": "yellow"}


def submit(
    goal: Goal,
    project: Project = "default",
    tier: Annotated[str | None, typer.Option(help="free or pro.")] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", help="End it when it has cost so many dollars.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="End it when it has used so many tokens.")
    ] = None,
    max_wall: Annotated[
        int | None, typer.Option("--max-wall", help="End it so many seconds after its start.")
    ] = None,
    max_repairs: Annotated[
        int | None, typer.Option("--max-repairs", help="Repair it no more often than that.")
    ] = None,
    base: Base = None,
    in_place: InPlace = False,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Watch it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Queue a build of GOAL with the running instance; with --base, a change of that build."""
    with friendly():
        asked = {
            "max_cost_usd": max_cost,
            "max_tokens": max_tokens,
            "max_wall_s": max_wall,
            "max_repairs": max_repairs,
        }
        limits = {name: limit for name, limit in asked.items() if limit is not None}
        accepted = ask(
            lambda client: client.submit(
                goal,
                project=project,
                tier=tier,
                limits=limits,
                base=checked_base(base),
                in_place=in_place,
            )
        )
        if as_json:
            print_json(accepted)
        elif not follow:
            out.print(f"queued as job [bold]{accepted['job_id']}[/]", highlight=False)
    if follow:
        follow_job(accepted["job_id"], err if as_json else out)


def watch(job: JobArgument) -> None:
    """Watch a job to its end; exit code 0 only when it became READY."""
    follow_job(job, out)


def follow_job(job_id: str, console: Console) -> None:
    """Show a job to its end. Raises `typer.Exit` unless it became READY."""

    async def follow(client: Client) -> Watched:
        job = await client.job(job_id)
        watched = Watched(job_id, job["goal"], job["project_id"])
        return await watch_job(client, watched, Screen(console))

    with friendly():
        watched = ask(follow)
        console.print(f"\n{summary(watched)}", highlight=False, soft_wrap=True)
        if watched.status != "ready":
            raise typer.Exit(1)


def jobs(
    project: Annotated[str | None, typer.Option("--project", "-p", help="Only this one.")] = None,
    status: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    tier: Annotated[str | None, typer.Option(help="Only free, or only pro.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Queued then or later: a day, or a time with its zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Queued before then.")] = None,
    goal: Annotated[
        str | None, typer.Option(help="Only goals with words that begin like these.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="Go on behind this job, the last one of a list.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with friendly():
        filters = {
            "project": project,
            "status": status,
            "tier": tier,
            "since": since,
            "until": until,
            "goal": goal,
            "before": before,
        }
        page = ask(lambda client: client.jobs(**filters, limit=limit))
        if as_json:
            print_json(page["jobs"])
        else:
            none = "No job is like that." if any(filters.values()) else "No jobs yet."
            out.print(_table(page["jobs"]) if page["jobs"] else none)


def cancel(job: JobArgument) -> None:
    """Stop a job and everything it runs."""
    with friendly():
        answer = ask(lambda client: client.cancel(job))
        out.print(f"job {answer['job_id']} is {answer['status']}", highlight=False)


def ask(question: Callable[[Client], Awaitable[T]]) -> T:
    """What the API that the settings name answers."""

    async def put(url: str, key: str) -> T:
        async with Client(url, key) as client:
            return await question(client)

    return run(put, *api())


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("STATUS", "BUILD", "PREVIEW", "PROJECT", "JOB"):
        table.add_column(title, no_wrap=True)
    has_cost = any(job["cost_usd"] for job in found)
    if has_cost:
        table.add_column("COST", no_wrap=True)
    table.add_column("GOAL", overflow="fold")
    for job in found:
        style = _STYLE.get(job["status"], "default")
        table.add_row(
            f"[{style}]{job['status']}[/]{' (parked)' if job['parked'] else ''}",
            job["build_version"] or "",
            preview_words(job["preview"], job["expires_at"]),
            job["project_id"],
            job["job_id"],
            *([cost(job["cost_usd"], job["repair_cost_usd"])] if has_cost else []),
            escape(" ".join(job["goal"].split())[:100]),
        )
    return table
