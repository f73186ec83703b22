"""A living sandbox that goes from a build to the job that changes it, and its preview with it.

The base says so in its own history, and the log takes that once: of two jobs that want the same
sandbox one gets it. What the provider knows of the sandbox stays as it was, so whoever finds it
there asks `holder_of`.
"""

from datetime import timedelta

import structlog

from eventstore import CommandHandler, VersionConflict
from generator.build import Build
from generator.deadlines import deadline
from generator.errors import GenerationError
from generator.sandbox import Sandbox
from schemas import CommandRefused, Job, JobRef, JobUnknown, Preview
from schemas.commands import ExpirePreview, RecordSandbox

MOST_HANDS = 100

log = structlog.get_logger()


async def holder_of(handler: CommandHandler, job: Job, sandbox_id: str) -> Job:
    """Whose a sandbox is now that was made for `job`. Raises `JobUnknown` for one that is gone."""
    for _ in range(MOST_HANDS):
        heir = dict(job.handed_over).get(sandbox_id)
        if heir is None:
            break
        job = await handler.load(JobRef(job.tenant, heir))
    return job


async def inherited_sandbox(build: Build) -> Sandbox | None:
    """The sandbox of the base build, if this job may have it, it lives, and long enough.

    The base's preview has expired then. Nothing runs in the sandbox any more.
    """
    job, handler = build.job, build.handler
    if not job.in_place or job.base_job is None or job.sandbox_id is not None:
        return None
    ref = JobRef(job.tenant, job.base_job)
    try:
        base = await handler.load(ref)
        sandbox_id, ends_at = base.sandbox_id, base.sandbox_ends_at
        if base.preview is not Preview.RUNNING or sandbox_id is None or ends_at is None:
            return None
        least = timedelta(seconds=min(build.deadlines.least_life_s, build.deadlines.sandbox_s / 2))
        is_ours_to_ask = base.sandbox_provider == build.runtime().provider
        if not is_ours_to_ask or ends_at - handler.clock() < least:
            return None
        with deadline(build.deadlines.call_s, "finding the base's sandbox"):
            sandbox = await build.runtime().connect(sandbox_id)
        expire = ExpirePreview(f"job {job.job} goes on in its sandbox", continued_by=job.job)
        if not (await handler.handle(ref, expire, job=base)).events:
            return None  # another job was faster, or its time was over
    except (JobUnknown, CommandRefused, VersionConflict, GenerationError) as error:
        log.info("sandbox_not_inherited", job=job.job, base=job.base_job, error=str(error))
        return None
    await build.tell(RecordSandbox(sandbox_id, build.runtime().provider, ends_at))
    with deadline(build.deadlines.call_s, "ending what runs in the base's sandbox"):
        await sandbox.end_processes()
    return sandbox
