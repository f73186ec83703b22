"""Lets the preview of a finished build answer again: kept alive, woken, or made anew.

Whoever wants it says so in the log (`PreviewRequested`), which puts the job back among the work:
the worker that takes it has a lease on it as on any job, and another takes over from it. How it
ended stands in the log too: `PreviewResumed`, or `PreviewExpired` with the reason.
"""

from datetime import timedelta
from functools import partial

import structlog

from eventstore import EventStoreError
from generator.app_manifest import app_commands
from generator.app_runs import see_app, start_server
from generator.build import Build
from generator.deadlines import deadline
from generator.errors import GenerationError, SandboxGone, WorkersLost
from generator.output import for_people
from generator.probe import probe
from generator.provisioning import provide, surviving
from generator.sandbox import PREVIEW_PORT
from generator.sandbox_life import end_sandboxes
from schemas import CommandRefused
from schemas.commands import ExpirePreview, ResumePreview

log = structlog.get_logger()


async def wake_preview(build: Build, *, most_deliveries: int) -> None:
    """Let the claimed build's preview answer, and say in the log where, or why not.

    Raises `Fenced` when somebody else has it, or nobody wants it any more, and `RedisUnavailable`.
    """
    build.has_strays = True
    try:
        if build.claim.deliveries > most_deliveries:
            raise WorkersLost(build.claim.deliveries - 1)
        with deadline(build.deadlines.job_s, "waking the preview"):
            resumed = await surviving(build, partial(_answering, build))
        await build.tell(resumed)
        log.info("preview_resumed", job=build.job.job, sandbox_id=resumed.sandbox_id)
    except (EventStoreError, CommandRefused):
        raise
    except Exception as error:  # a bug must end as an event, not as silence
        expected = isinstance(error, GenerationError)
        log.error("preview_not_resumed", job=build.job.job, exc_info=None if expected else error)
        await end_sandboxes(build)
        await build.tell(ExpirePreview(_why_not(error)))


async def _answering(build: Build) -> ResumePreview:
    """The app answers with this build's marker: in the sandbox it had, or else in a new one."""
    if build.sandbox is None and (woken := await _woken(build)):
        return woken
    await provide(build)
    assert build.sandbox is not None  # noqa: S101 - just provided
    assert build.job.sandbox_ends_at is not None  # noqa: S101 - recorded with it
    sandbox, start = build.sandbox, app_commands(await build.files()).start
    await start_server(build, sandbox, start)
    await see_app(build, sandbox, start)
    url = sandbox.preview_url(PREVIEW_PORT)
    return ResumePreview(sandbox.sandbox_id, url, build.job.sandbox_ends_at)


async def _woken(build: Build) -> ResumePreview | None:
    """The preview where it was, if its sandbox lives, for long enough, and the app answers."""
    known, runtime, life_s = build.job.sandbox_id, build.runtime(), build.deadlines.sandbox_s
    if known is None or build.job.sandbox_provider != runtime.provider:
        return None
    least = timedelta(seconds=min(build.deadlines.least_life_s, life_s / 2))
    try:
        with deadline(build.deadlines.create_s, "waking the sandbox"):
            ends_at = await runtime.wake(known, timeout_s=life_s)
            if ends_at - build.handler.clock() < least:
                return None
            sandbox = await runtime.connect(known)
    except SandboxGone:
        return None
    except GenerationError as error:
        log.warning("sandbox_not_woken", job=build.job.job, error=str(error))
        return None
    url = sandbox.preview_url(PREVIEW_PORT)
    found = await probe(url, build.marker, timeout_s=build.deadlines.call_s)
    await sandbox.close()
    if found.failure is not None:
        log.warning("woken_app_silent", job=build.job.job, failure=found.failure)
        return None
    return ResumePreview(known, url, ends_at)


def _why_not(error: Exception) -> str:
    if isinstance(error, GenerationError):
        return f"it could not be made again: {for_people(error)}"
    return "it could not be made again: something went wrong on our side. Asking again is safe"
