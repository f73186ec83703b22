"""What tenants may: cap, quota."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from eventstore import Admission, EventStore
from schemas import ID_RULE, is_id
from service.commands.replay import on_log
from service.commands.terminal import friendly, out
from service.errors import SettingsInvalid
from service.settings import Settings
from service.wiring import Log

MOST = 100_000


def cap(
    tenant: Annotated[
        str | None, typer.Argument(help="A tenant; all that have jobs without it.")
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Argument(help="How many of its jobs may run at a time: a number, or `default`."),
    ] = None,
) -> None:
    """Show or set how many jobs of a tenant run at a time; the others wait, `high` ones first."""

    async def change(log: Log) -> Admission:
        assert tenant is not None  # noqa: S101 - it was given
        if jobs is None:
            return await log.store.work.admission(tenant)
        return await log.store.work.set_cap(tenant, None if jobs == "default" else int(jobs))

    with friendly():
        _check(tenant, jobs)
        if tenant is None:
            out.print(on_log(_all_tenants))
        else:
            now = on_log(change)
            out.print(
                f"tenant {tenant}: at most {now.cap} at a time, {now.running} run now",
                highlight=False,
            )


def quota(
    tenant: Annotated[str, typer.Argument(help="A tenant.", show_default=False)],
    tier: Annotated[
        str | None,
        typer.Option(help="Put it on a tier, free or pro, with that tier's cap; `none`: on none."),
    ] = None,
    jobs: Annotated[str | None, typer.Option(help="Jobs a day.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens a day.")] = None,
    usd: Annotated[str | None, typer.Option(help="US dollars a day.")] = None,
    wall_s: Annotated[
        str | None, typer.Option(help="Seconds a day, of all jobs from start to end.")
    ] = None,
) -> None:
    """Show or set what a tenant may use a day; `default` gives it what its tier has again."""
    from service.quotas import OwnQuota, Quotas

    given = {
        "tier": tier,
        "jobs_a_day": jobs,
        "tokens_a_day": tokens,
        "usd_a_day": usd,
        "wall_s_a_day": wall_s,
    }
    changes = {
        name: None if text in ("default", "none") else text
        for name, text in given.items()
        if text is not None
    }

    async def change(log: Log) -> str:
        quotas = Quotas(log.store, log.engine, Settings.read().tiers)
        own = await quotas.own(tenant)
        if changes:
            try:
                own = OwnQuota.model_validate({**own.model_dump(), **changes})
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise SettingsInvalid(f"{first['loc'][0]}: {first['msg']}") from error
            await quotas.set_own(tenant, own)
        standing = await quotas.standing(tenant, None, now=datetime.now(UTC))
        used, day = standing.spent, standing.day
        return (
            f"tenant {tenant}, tier {standing.tier}{'' if own.tier else ' unless it asks for pro'}:"
            f"\n  jobs today    {_of(used.jobs, day.jobs)}"
            f"\n  tokens today  {_of(used.tokens, day.tokens)}"
            f"\n  dollars today {_of(used.usd, day.usd)}"
            f"\n  seconds today {_of(used.wall_s, day.wall_s)}"
        )

    with friendly():
        _check(tenant, None)
        out.print(on_log(change), highlight=False)


def _of(used: float, limit: float | None) -> str:
    return f"{used:,.6g} of {'any number' if limit is None else f'{limit:,.10g}'}"


def _check(tenant: str | None, jobs: str | None) -> None:
    if tenant is not None and not is_id(tenant):
        raise SettingsInvalid(f"{tenant!r} is no tenant: an id has {ID_RULE}")
    if jobs is None or jobs == "default":
        return
    if not (jobs.isascii() and jobs.isdigit() and int(jobs) <= MOST):
        raise SettingsInvalid(f"{jobs!r}: give a number from 0 to {MOST}, or `default`")


async def _all_tenants(log: Log) -> Table | str:
    store: EventStore = log.store
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("TENANT", "RUN", "AT MOST", "WAIT"):
        table.add_column(title, no_wrap=True, justify="left" if title == "TENANT" else "right")
    for partition in range(store.partitions):
        for tenant in sorted(await store.work.tenants(partition)):
            now = await store.work.admission(tenant)
            waiting = await store.work.waiting(tenant)
            table.add_row(tenant, str(now.running), str(now.cap), str(waiting))
    return table if table.row_count else "No tenant has jobs that run or wait."
