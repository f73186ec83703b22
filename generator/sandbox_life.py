"""A build's sandbox: found again, made, and ended; never two of one job for long.

The log knows the sandbox of a job by its id. One that was made just before its worker died, or
whose making was broken off, is known to the provider alone: by its metadata, which name the job.
"""

from datetime import timedelta

import anyio
import structlog

from generator.build import Build
from generator.deadlines import deadline
from generator.errors import GenerationError, SandboxGone
from generator.sandbox import Sandbox
from schemas import Phase
from schemas.commands import RecordSandbox

KILL_S = 30.0
LINEAGE = "headrace"
"""The metadata that names the log whose job a sandbox is for: others may share the account."""

log = structlog.get_logger()


async def expect_sandbox(build: Build) -> None:
    """Let the provider begin with a sandbox while the code is written, if this build will make one.

    Raises `SandboxUnavailable` where that is plain now: before any code is paid for.
    """
    job = build.job
    will_make_one = build.sandbox_runtime_factory and not (job.sandbox_id or job.in_place)
    if will_make_one and job.current_phase in (Phase.SCAFFOLD, Phase.CODE):
        await build.runtime().prepare()


async def create_sandbox(build: Build) -> Sandbox:
    """A new sandbox, which the log knows of; all others of the job are ended first.

    Raises `SandboxError`. One that could not be recorded is ended at once.
    """
    await end_sandboxes(build)
    runtime, life_s = build.runtime(), build.deadlines.sandbox_s
    if build.sandbox_rate is not None:
        await build.sandbox_rate.turn(lambda wait_s: _note_wait(build, wait_s))
    build.has_strays = True  # until the log knows it
    with deadline(build.deadlines.create_s, "making a sandbox"):
        sandbox = await runtime.create(
            metadata={
                LINEAGE: build.handler.store.lineage,
                "tenant": build.job.tenant,
                "job": build.job.job,
                "attempt": str(build.claim.attempt),
            },
            timeout_s=life_s,
        )
    try:
        await build.tell(
            RecordSandbox(
                sandbox_id=sandbox.sandbox_id,
                provider=runtime.provider,
                ends_at=build.handler.clock() + timedelta(seconds=life_s),
            )
        )
    except BaseException:
        await _end(build, sandbox.sandbox_id)
        raise
    build.has_strays = False
    return sandbox


async def living_sandbox(build: Build) -> Sandbox | None:
    """The sandbox that the log knows, if it lives, and long enough; nothing runs in it any more."""
    known, ends_at = build.job.sandbox_id, build.job.sandbox_ends_at
    if known is None or ends_at is None:
        return None
    least = timedelta(seconds=min(build.deadlines.least_life_s, build.deadlines.sandbox_s / 2))
    if ends_at - build.handler.clock() < least:
        return None
    try:
        with deadline(build.deadlines.call_s, "finding the sandbox again"):
            sandbox = build.sandbox or await build.runtime().connect(known)
            await sandbox.end_processes()
    except SandboxGone:
        return None
    except GenerationError as error:
        log.warning("sandbox_not_found_again", job=build.job.job, error=str(error))
        return None
    await _end_strays(build, but=known)
    return sandbox


async def end_sandboxes(build: Build) -> None:
    """End every sandbox of this job, whoever made it. Never raises.

    A provider that does not answer is logged; the sandbox then ends by its own timeout.
    """
    known = build.sandbox.sandbox_id if build.sandbox else build.job.sandbox_id
    build.sandbox = None
    if known is not None:
        await _end(build, known)
    await _end_strays(build)


async def _end_strays(build: Build, but: str | None = None) -> None:
    """End those that the provider alone knows of, if there may be some."""
    if not build.has_strays:
        return
    try:
        with anyio.fail_after(KILL_S, shield=True):
            found = await build.runtime().list({"job": build.job.job})
    except Exception:  # whatever a provider raises, the job must go on
        log.exception("strays_not_looked_for", job=build.job.job)
        return
    build.has_strays = False
    handed_over = dict(build.job.handed_over)
    for stray in found:
        if stray.sandbox_id != but and stray.sandbox_id not in handed_over:
            await _end(build, stray.sandbox_id)


async def _end(build: Build, sandbox_id: str) -> None:
    try:
        with anyio.fail_after(KILL_S, shield=True):
            await build.runtime().kill(sandbox_id)
    except Exception:  # whatever a provider raises, the job must still end
        log.exception("sandbox_not_ended", job=build.job.job, sandbox_id=sandbox_id)


async def _note_wait(build: Build, wait_s: float) -> None:
    await build.transcript.say("note", f"waiting {wait_s:.1f} s for a turn at making a sandbox")
