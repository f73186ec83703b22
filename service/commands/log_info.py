"""What stands in the log: log info."""

from contextlib import nullcontext
from typing import Annotated

import anyio
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from eventstore import Archive
from service.commands.log import connected, told
from service.commands.terminal import (
    AsJson,
    log_file,
    out,
    print_json,
    reached_servers,
    run_until_interrupted,
)
from service.embedded import Servers
from service.log_info import LogInfo, PartitionInfo, Totals, WorkInfo, look
from service.settings import Settings

LOOK_AGAIN_S = 2.0


def info(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what stands in each partition: events, archive, work."""

    async def act(servers: Servers) -> None:
        async with connected(servers) as (redis, engine):
            archive = Archive(engine)
            if not watch:
                _show_info(await look(redis, archive), as_json=as_json)
                return
            screen = Live(console=out, auto_refresh=False) if out.is_terminal else None
            with screen or nullcontext():
                while True:
                    found = await look(redis, archive)
                    if screen and not as_json:
                        screen.update(_info(found), refresh=True)
                    else:
                        _show_info(found, as_json=as_json)
                    await anyio.sleep(LOOK_AGAIN_S)

    with told():
        settings = Settings.read()
        with log_file(settings), reached_servers(settings) as servers:
            run_until_interrupted(lambda: act(servers))


_WORDS = ("LINEAGE", "WORKER")


def _show_info(found: LogInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_dict())
    else:
        out.print(_info(found))


def _info(found: LogInfo) -> Group | str:
    if not found.partitions:
        return "There is no log yet: the first start makes it."
    events = _table(
        "PART", "LINEAGE", "EPOCH", "EVENTS", "IN REDIS", "FROM", "ARCHIVED", "LAG", "EV/S"
    )
    work = _table(
        "PART", "HIGH", "CLAIMED", "WORKERS", "NORMAL", "CLAIMED", "WORKERS", "WAITING", "LIVING"
    )
    for part in found.partitions:
        events.add_row(*_event_cells(part))
        work.add_row(str(part.partition), *_work_cells(part))
    totals = found.totals
    events.add_section()
    events.add_row(
        "all", "", "", f"{totals.events}", f"{totals.in_redis}", "", "", _lag(totals), _rate(totals)
    )
    work.add_section()
    work.add_row("all", *_work_cells(totals))
    if not found.workers:
        return Group(events, "", work)
    workers = _table("WORKER", "HOLDS", "SILENT")
    for worker in found.workers:
        workers.add_row(worker.name, str(worker.holds), f"{worker.silent_s:.0f} s")
    return Group(events, "", work, "", workers)


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title in _WORDS else "right", no_wrap=True)
    return table


def _event_cells(part: PartitionInfo) -> list[str | Text]:
    is_there = part.state in ("open", "creating")
    return [
        str(part.partition),
        part.lineage[:8] if is_there else Text(part.state, style="red"),
        str(part.epoch),
        str(part.events),
        str(part.in_redis),
        _place(part.first),
        _place(part.archived),
        _lag(part),
        _rate(part),
    ]


def _place(position: str | None) -> str:
    return position.partition(":")[2] if position else "-"


def _lag(of: PartitionInfo | Totals) -> str:
    return f"{of.lag}, {of.lag_s:.0f} s" if of.lag else "0"


def _rate(of: PartitionInfo | Totals) -> str:
    return f"{of.rate:.1f}"


def _work_cells(of: PartitionInfo | Totals) -> list[str]:
    return [*_class_cells(of.high), *_class_cells(of.normal), str(of.waiting), str(of.living)]


def _class_cells(work: WorkInfo) -> list[str]:
    return [str(work.entries), str(work.claimed), str(work.consumers)]
