"""Workspaces that workers which were killed have left on this machine.

Whoever ends a job removes what its attempts have left here. A worker that is killed just behind the
job's last event does not get to it, nor does one on this machine when the job ends on another.
"""

from functools import partial
from pathlib import Path

import anyio
import structlog
from anyio import to_thread
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore.connection import asking
from generator.workspace import remove_workspaces
from projector import workspaces_of_ended

SWEEP_EVERY_S = 900.0

log = structlog.get_logger()


async def sweep(engine: AsyncEngine, root: Path) -> None:
    """Remove the workspaces below `root` of jobs that have ended, all but those of READY builds.

    What the read model does not know yet is swept another time.
    """
    jobs = await to_thread.run_sync(lambda: [folder.name for folder in root.glob("*")])
    async with asking(engine) as connection:
        ended = await workspaces_of_ended(connection, jobs)

    def remove() -> None:
        for job, named in ended.items():
            # By its last part, the attempt: the home may have been moved since.
            kept = Path(named).name if named else None
            remove_workspaces(root / job, partial(_is_another, kept))

    await to_thread.run_sync(remove)


def _is_another(kept: str | None, workspace: Path) -> bool:
    return workspace.name != kept


async def sweep_often(engine: AsyncEngine, root: Path) -> None:
    """Sweep now and every quarter of an hour until cancelled; what fails is tried again."""
    while True:
        try:
            await sweep(engine, root)
        except Exception:  # a database that is away must not end the worker
            log.exception("workspaces_not_swept")
        await anyio.sleep(SWEEP_EVERY_S)
