"""Where the files of builds are kept: artifacts gc."""

from datetime import timedelta
from typing import Annotated

import typer

from generator.artifacts import Collected
from service.collecting import GRACE, collect
from service.commands.replay_log import on_log, refusals
from service.commands.terminal import AsJson, err, out, print_json
from service.settings import Settings
from service.wiring import Log, make_artifacts

_SHOWN = 20


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted.")
    ] = False,
    grace_hours: Annotated[
        float,
        typer.Option(
            min=1, help="Keep what is younger. A build must not take longer than this to end."
        ),
    ] = GRACE.total_seconds() / 3600,
    as_json: AsJson = False,
) -> None:
    """Delete the files that no build needs; safe beside running builds.

    A running instance does it by itself, once a day.
    """
    settings = Settings.read()

    async def act(log: Log) -> Collected:
        grace = timedelta(hours=grace_hours)
        return await collect(log, make_artifacts(settings), grace=grace, dry_run=dry_run)

    with refusals():
        collected = on_log(act)
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "blobs": collected.blobs,
                "bytes": collected.size_bytes,
                "kept": collected.kept,
                "young": collected.young,
                "left": collected.left,
                "missing": list(collected.missing),
            }
        )
    else:
        _show(collected, dry_run=dry_run)


def _show(collected: Collected, *, dry_run: bool) -> None:
    did = "Would delete" if dry_run else "Deleted"
    said = [
        f"{did} {collected.blobs} blobs of {collected.size_bytes:,} bytes that nothing names; "
        f"{collected.kept} are needed, {collected.young} are too new to tell."
    ]
    if collected.left:
        said.append(f"{collected.left} were left: builds have stored the same meanwhile.")
    for line in said:
        out.print(line, highlight=False, soft_wrap=True)
    if collected.missing:
        err.print(
            f"[bold red]headrace:[/] {len(collected.missing)} manifests that events name cannot be "
            "read, and their builds have no files any more: bring these blobs back from a backup",
            highlight=False,
            soft_wrap=True,
        )
        for manifest in collected.missing[:_SHOWN]:
            err.print(f"  {manifest}", highlight=False)
