"""How many jobs of a tenant run at a time: cap."""

from typing import Annotated

import typer
from rich.table import Table

from eventstore import Admission, EventStore
from schemas import ID_RULE, is_id
from service.commands.replay import on_log
from service.commands.terminal import friendly, out
from service.errors import SettingsInvalid
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
