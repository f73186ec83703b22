"""Walks one job from its claim to READY, FAILED or CANCELLED."""

import secrets
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import anyio
import structlog

from eventstore import (
    Claim,
    CommandHandler,
    EventStoreError,
    Hub,
    NumberTaken,
    PayloadRefused,
    RedisUnavailable,
    Waker,
)
from generator.artifacts import ArtifactStore
from generator.build import KILL_S, LOG_PATIENCE_S, Build, Deadlines, deadline
from generator.errors import CheckFailed, GenerationError, WorkersLost
from generator.numbering import Numbering
from generator.output import clean
from generator.phases import PHASES, simulated
from generator.runner import Runner
from generator.sandbox import PREVIEW_PORT, SandboxRuntimeFactory
from schemas import CommandRefused, Job, JobIsCancelling, JobIsTerminal, Phase, Status
from schemas.commands import (
    CompletePhase,
    ConfirmCancel,
    FailJob,
    FinishBuild,
    RecordFailedChecks,
    StartJob,
    StartPhase,
)

MAX_NUMBER_TRIES = 100
MAX_DELIVERIES = 3
LOOK_AGAIN_S = 15.0
_WATCH_AGAIN_S = 0.5
MAX_MESSAGE_CHARS = 2_000

log = structlog.get_logger()


class GenerationService:
    """Runs builds with the runner and the sandboxes it was given.

    Without a runner it walks the simulated loop: every transition, no code, no sandbox.
    """

    def __init__(
        self,
        handler: CommandHandler,
        hub: Hub,
        artifacts: ArtifactStore,
        *,
        runner: Runner | None,
        sandbox_runtime_factory: SandboxRuntimeFactory | None,
        workspace_root: Path,
        deadlines: Deadlines | None = None,
        max_deliveries: int = MAX_DELIVERIES,
    ) -> None:
        """`max_deliveries`: a job that so many workers took and none got further is given up."""
        self._handler = handler
        self._hub = hub
        self._artifacts = artifacts
        self._runner = runner
        self._sandbox_runtime_factory = sandbox_runtime_factory
        self._workspace_root = workspace_root
        self._deadlines = deadlines or Deadlines()
        self._max_deliveries = max_deliveries
        self._numbering = Numbering(handler.store)

    @property
    def longest_s(self) -> float:
        """How long one attempt may take, with its end: who is silent after that is not alive."""
        return self._deadlines.job_s + KILL_S + LOG_PATIENCE_S

    async def execute_build(self, claim: Claim) -> Job:
        """Run the claimed job from its first phase that is not completed; the job as it ended.

        A build that fails is an event, not an exception. Raises `Fenced` when the job was taken
        over, and `RedisUnavailable` when the log cannot be reached: the job is then somebody
        else's to finish. The sandbox of a job that did not become READY has ended in any case.
        """
        build = Build(
            job=await self._handler.load(claim.ref),
            claim=claim,
            handler=self._handler,
            artifacts=self._artifacts,
            runner=self._runner,
            sandbox_runtime_factory=self._sandbox_runtime_factory,
            workspace_root=self._workspace_root,
            deadlines=self._deadlines,
        )
        try:
            if build.job.status is Status.CANCELLING or await self._walk_unless_cancelled(build):
                await build.end_sandbox()
                await self._confirm_cancel(build)
        finally:
            build.transcript.close()
            if build.job.status is not Status.READY and not build.maybe_ready:
                await build.end_sandbox()
        return build.job

    async def _walk_unless_cancelled(self, build: Build) -> bool:
        """Walk until the job has ended, or a cancel is requested: True then."""
        error: EventStoreError | None = None
        # From before the first append on: that one is refused if a cancel came earlier.
        with self._hub.listen_requests(build.claim.ref.job) as waker:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_for_cancel, build, waker, tasks.cancel_scope)
                if self._runner:
                    tasks.start_soon(build.transcript.run)
                try:
                    await self._walk(build)
                except EventStoreError as raised:
                    error = raised  # out of the task group, which would wrap it in a group
                tasks.cancel_scope.cancel()
        if error is not None:
            raise error
        return not build.job.is_terminal

    async def _watch_for_cancel(self, build: Build, waker: Waker, scope: anyio.CancelScope) -> None:
        """Stop the walk when a cancel is requested, whatever it is waiting for."""
        pause_s = LOOK_AGAIN_S
        while True:
            await waker.wait(pause_s)
            try:
                job = await self._handler.load(build.claim.ref)
            except EventStoreError as error:
                log.warning("cancel_watch_waits", job=build.job.job, error=str(error))
                pause_s = _WATCH_AGAIN_S
                continue
            pause_s = LOOK_AGAIN_S
            if job.status is Status.CANCELLING:
                scope.cancel()

    async def _walk(self, build: Build) -> None:
        """Through all phases to the end. Returns with the job not ended if a cancel was met."""
        try:
            try:
                with deadline(self._deadlines.job_s, "the build"):
                    await self._run_phases(build)
            except PayloadRefused as error:
                await self._fail(build, error)  # the build's own, and there again another time
            except (EventStoreError, JobIsCancelling, JobIsTerminal):
                raise
            except Exception as error:  # noqa: BLE001 - a bug must end as an event, not as silence
                await self._fail(build, error)
        except JobIsCancelling:
            return
        except JobIsTerminal:
            build.job = await self._handler.load(build.claim.ref)

    async def _run_phases(self, build: Build) -> None:
        if build.claim.deliveries > self._max_deliveries:
            raise WorkersLost(build.claim.deliveries - 1)
        await build.tell(StartJob(build.claim.worker, build.claim.attempt), StartPhase())
        while (phase := build.job.current_phase) is not None:
            run = PHASES[phase] if self._runner else simulated
            done = await run(build)
            if phase is Phase.CHECKS:
                await self._finish(build, done)
            else:
                # In one append: nothing happens between two phases.
                await build.tell(done, StartPhase())

    async def _finish(self, build: Build, done: CompletePhase) -> None:
        """Complete the last phase, and with it the build, under the next number."""
        digest = await build.keep_log()
        number = await self._numbering.propose(build.job.tenant, build.job.project)
        command = FinishBuild(build_number=number, log=digest)
        if build.sandbox:
            command = replace(
                command,
                sandbox_id=build.sandbox.sandbox_id,
                preview_url=build.sandbox.preview_url(PREVIEW_PORT),
                workspace_path=str(build.workspace_path),
            )
        await self._tell_ready(build, done, command)
        if build.sandbox:
            await build.sandbox.close()

    async def _tell_ready(self, build: Build, done: CompletePhase, command: FinishBuild) -> None:
        """Propose numbers until one is the next: each refusal means that another build got one."""
        for _ in range(MAX_NUMBER_TRIES):
            # From here on the log may say READY even if its answer never arrives.
            build.maybe_ready = True
            try:
                await build.tell(done, command)
            except NumberTaken as taken:
                build.maybe_ready = False
                number = self._numbering.propose_after(
                    build.job.tenant,
                    build.job.project,
                    refused=command.build_number,
                    last=taken.last,
                )
                command = replace(command, build_number=number)
            except RedisUnavailable:
                raise
            except (EventStoreError, CommandRefused):
                build.maybe_ready = False
                raise
            else:
                return
        raise GenerationError(
            f"no build number could be had in {MAX_NUMBER_TRIES} tries: too many builds of this "
            "project end at once"
        )

    async def _fail(self, build: Build, error: Exception) -> None:
        """End the sandbox, then say so: FAILED means that nothing of the job runs any more."""
        debug_id = f"dbg-{secrets.token_hex(6)}"
        expected = isinstance(error, GenerationError)
        log.error(
            "build_failed",
            job=build.job.job,
            phase=build.job.current_phase,
            debug_id=debug_id,
            kind=error.kind if isinstance(error, GenerationError) else "internal",
            command=error.command if isinstance(error, CheckFailed) else None,
            exc_info=None if expected else error,
        )
        if isinstance(error, CheckFailed) and build.job.status is Status.CHECKS:
            await build.tell(
                RecordFailedChecks(
                    fingerprint=_fingerprint(error),
                    command=error.command,
                    exit_code=error.exit_code,
                    output=error.output,
                )
            )
        await build.end_sandbox()
        await build.tell(replace(_failure(error, debug_id), log=await build.keep_log()))

    async def _confirm_cancel(self, build: Build) -> None:
        try:
            handled = await self._handler.handle(
                build.claim.ref, ConfirmCancel(log=await build.keep_log()), claim=build.claim
            )
            build.job = handled.job
        except JobIsTerminal:
            build.job = await self._handler.load(build.claim.ref)


def _failure(error: Exception, debug_id: str) -> FailJob:
    if isinstance(error, GenerationError):
        return FailJob(error.kind, clean(str(error))[:MAX_MESSAGE_CHARS], debug_id)
    return FailJob(
        "internal",
        f"something went wrong on our side; the log has the details under {debug_id}. "
        "Submitting the same goal again is safe.",
        debug_id,
    )


def _fingerprint(error: CheckFailed) -> str:
    return sha256(f"{error.command}\0{error.exit_code}\0{error.output}".encode()).hexdigest()[:16]
