"""Proving and remaking the read model: replay rebuild, verify, backfill."""

from functools import partial
from typing import Annotated, Any

import typer

from projector import Difference, Replayed, processes
from projector import backfill as backfill_tables
from projector import rebuild as rebuild_tables
from projector import verify as verify_tables
from service.commands.replay_log import act_on_log, on_log, refusals, with_progress
from service.commands.replay_show import show
from service.commands.terminal import AsJson, err, log_file, out, print_json, reached_servers, run
from service.doctor.finding import count
from service.settings import Settings
from service.wiring import free_bytes

__all__ = ["backfill", "on_log", "rebuild", "refusals", "show", "verify"]

SHOWN = 20
MOST_JOBS = 1_000_000
"""More are compared without a sample: these are held by name."""
DIFFERS, NOT_CHECKED = 1, 2
"""Exit codes of `verify`."""

Workers = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="Processes that fold; one a core by default, four at most."),
]


def rebuild(workers: Workers = None) -> None:
    """Fold the whole log into fresh tables and put them in place; readers go on meanwhile."""
    with refusals():
        settings = Settings.read()
        with log_file(settings), reached_servers(settings) as servers:
            replay = partial(
                rebuild_tables,
                workers=workers or processes(),
                free_bytes=free_bytes(settings, servers),
            )
            act = with_progress(replay, "rebuilding")
            replayed: Replayed = run(act_on_log, settings, servers, act)
        said = [f"Rebuilt {count(replayed.jobs, 'job')} from {count(replayed.events, 'event')}."]
        if replayed.differing:
            said.append(f"Not as their events say were: {', '.join(replayed.differing)}.")
        else:
            said.append("Every table was what its events say.")
        said.append(f"Readers waited {replayed.swap_wait_ms:.0f} ms at most.")
        _say(said, replayed.parked)


def verify(
    sample: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_JOBS, help="Compare only so many jobs, taken at random."),
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Compare the read model with what its events fold to.

    Exit code 0: no difference, 1: it differs, 2: it could not be compared.
    """
    try:
        with refusals():
            replay = partial(verify_tables, workers=workers or processes(), jobs=sample)
            replayed, differences = on_log(with_progress(replay, "verifying"))
    except typer.Exit as ended:
        raise typer.Exit(NOT_CHECKED) from ended
    if as_json:
        print_json(_document(replayed, differences))
    else:
        _show_differences(replayed, differences)
    if differences:
        raise typer.Exit(DIFFERS)


def backfill() -> None:
    """Fold the archive into the tables of new or changed projections.

    A running instance does it by itself.
    """
    with refusals():
        settings = Settings.read()
        with log_file(settings), reached_servers(settings) as servers:
            fill = partial(backfill_tables, free_bytes=free_bytes(settings, servers))
            names: list[str] = run(act_on_log, settings, servers, with_progress(fill, "folding"))
        found = f"Filled {', '.join(names)}." if names else "Every table was filled already."
        out.print(found, highlight=False)


def _document(replayed: Replayed, differences: list[Difference]) -> dict[str, Any]:
    return {
        "status": "different" if differences else "same",
        "jobs": replayed.jobs,
        "events": replayed.events,
        "parked": replayed.parked,
        "differences": [
            {
                "table": one.table,
                "key": [str(part) for part in one.key],
                "column": one.column,
                "live": _plain(one.live),
                "folded": _plain(one.folded),
                "event": one.event,
            }
            for one in differences
        ],
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _show_differences(replayed: Replayed, differences: list[Difference]) -> None:
    for difference in differences[:SHOWN]:
        err.print(str(difference), markup=False, highlight=False, soft_wrap=True)
    if len(differences) > SHOWN:
        err.print(f"… and {len(differences) - SHOWN} more: --json has them.", highlight=False)
    found = count(len(differences), "difference") if differences else "no difference"
    compared = f"{count(replayed.jobs, 'job')}, {count(replayed.events, 'event')} compared"
    said = [f"{found}: {compared}."]
    if differences:
        said.append("`./headrace replay rebuild` makes the read model anew.")
    _say(said, replayed.parked)


def _say(said: list[str], parked: int) -> None:
    if parked:
        verb = "stands" if parked == 1 else "stand"
        said.append(f"{count(parked, 'job')} {verb} aside: `./headrace replay parked list`.")
    out.print("\n".join(said), highlight=False, soft_wrap=True)
