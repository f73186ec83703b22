"""Collecting what no build needs any more from the artifacts, once a day or when it is asked for.

What is needed is what an event names that is not erased: manifests, and the whole logs of jobs. The
archive is brought up to date first, so that nothing is named that is not found there but what is
being stored right now, and that has a notice of its own (`generator/artifacts.py`).
"""

from datetime import UTC, datetime, timedelta

import anyio
import structlog

from generator import ArtifactStore
from generator.artifacts import Collected
from projector import Projector, ReplayRefused
from projector.erasing import artifacts_named, ended_among, one_erasure
from projector.errors import FoldingStalled
from service.erasing import ARCHIVED_S, patient
from service.errors import ServiceError
from service.wiring import Log

EVERY = timedelta(days=1)
GRACE = timedelta(days=1)
"""Nothing younger is collected: much longer than a build lasts."""

LOOK_EVERY_S = 900.0

log = structlog.get_logger()


async def collect(
    opened: Log, artifacts: ArtifactStore, *, grace: timedelta = GRACE, dry_run: bool = False
) -> Collected:
    """Delete every blob that no event names and that is older than `grace`, and what drafts ended
    jobs have left; beside running builds.

    Raises `ServiceError` when the log is not archived in time, `ReplayRunning` while an erasure or
    another collection is under way, and what the servers and the artifact store raise.
    """
    async with patient(opened.engine) as engine, one_erasure(engine):
        await _caught_up(opened)
        named = await artifacts_named(engine)
        collected = await artifacts.collect(
            named.manifests, named.logs, grace=grace, dry_run=dry_run
        )
        if not dry_run:
            drafted = await artifacts.drafted_jobs()
            await artifacts.remove_drafts(await ended_among(engine, sorted(drafted)))
    log.info("artifacts_collected", blobs=collected.blobs, size_bytes=collected.size_bytes)
    for manifest in collected.missing:
        log.error("manifest_missing", manifest=manifest)
    return collected


async def collect_daily(
    opened: Log, artifacts: ArtifactStore, *, look_every_s: float = LOOK_EVERY_S
) -> None:
    """Collect whenever nobody has for a day. Runs until cancelled; what fails is tried again."""
    while True:
        await anyio.sleep(look_every_s)
        try:
            last = await artifacts.collected_at()
            if last is None or datetime.now(UTC) - last >= EVERY:
                await collect(opened, artifacts)
        except ReplayRefused:
            continue  # an erasure is under way, or another process collects
        except Exception:  # a store or server that is away must not end the instance
            log.exception("artifacts_not_collected")


async def _caught_up(opened: Log) -> None:
    projector = Projector(opened.store, opened.engine)
    try:
        with anyio.fail_after(ARCHIVED_S):
            for partition in range(opened.store.partitions):
                await projector.fold_up(partition)
    except (TimeoutError, FoldingStalled) as error:
        raise ServiceError(
            f"the log was not archived within {ARCHIVED_S:g} s, and nothing was collected: see "
            "that a projector folds it (./headrace doctor), and run this again"
        ) from error
