"""Walks one job from its claim to READY, FAILED or CANCELLED."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
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
    patiently,
)
from generator.artifacts import ArtifactStore
from generator.beside import beside
from generator.budget import DayLeft, seconds_left
from generator.build import LOG_PATIENCE_S, Build
from generator.deadlines import Deadlines, Patience
from generator.drafts import NO_DRAFT
from generator.errors import (
    CheckFailed,
    DeadlinePassed,
    GenerationError,
    NeedsReview,
    WorkersLost,
)
from generator.log_redaction import redacting
from generator.numbering import Numbering
from generator.output import for_people
from generator.phases import PHASES, simulated
from generator.previews import wake_preview
from generator.rate import Rate
from generator.redaction import KEYS_ONLY, Redactor
from generator.repairing import record, review_text, why_not_repair
from generator.runner import Runner
from generator.sandbox import PREVIEW_PORT, SandboxRuntimeFactory
from generator.sandbox_life import KILL_S, end_sandboxes, expect_sandbox
from generator.secrets import Secrets
from schemas import Job, JobIsCancelling, JobIsTerminal, Phase, Preview, Status
from schemas.commands import (
    NO_USAGE,
    Command,
    CompletePhase,
    ConfirmCancel,
    FailJob,
    FinishBuild,
    StartJob,
    StartPhase,
)
from schemas.events import ChecksFailed

MAX_NUMBER_TRIES = 100
MAX_DELIVERIES = 3

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
        secrets: Secrets | None = None,
        deadlines: Deadlines | None = None,
        patience: Patience | None = None,
        sandbox_rate: Rate | None = None,
        day_left: DayLeft | None = None,
        redactor: Redactor = KEYS_ONLY,
        max_deliveries: int = MAX_DELIVERIES,
        is_alone: bool = False,
    ) -> None:
        """`secrets`: what apps find in their environment; without it none has any.

        `max_deliveries`: a job that so many workers took and none got further is given up.

        `redactor` knows what no build may let out.

        `is_alone`: nobody goes on with a build when this worker ends, so its sandbox ends with it.
        """
        self._handler = handler
        self._hub = hub
        self._artifacts = artifacts
        self._runner = runner
        self._sandbox_runtime_factory = sandbox_runtime_factory
        self._workspace_root = workspace_root
        self._secrets = secrets
        self._deadlines = deadlines or Deadlines()
        self._patience = patience or Patience()
        self._sandbox_rate = sandbox_rate
        self._day_left = day_left
        self._redactor = redactor
        self._max_deliveries = max_deliveries
        self._numbering = Numbering(handler.store)
        self._is_alone = is_alone

    @property
    def longest_s(self) -> float:
        """How long one attempt may take, with its end: who is silent after that is not alive."""
        return self._deadlines.job_s + KILL_S + LOG_PATIENCE_S

    async def execute_build(self, claim: Claim) -> Job:
        """Run the claimed job from its first phase that is not completed; the job as it ended.

        Of one that is READY somebody wants the preview (`generator/previews.py`).

        A build that fails is an event, not an exception. Raises `Fenced` when the job was taken
        over, and `RedisUnavailable` when the log cannot be reached: the job is then somebody
        else's to finish, with the sandbox that it has. The sandbox of a job that ends without READY
        has ended before.
        """
        build = Build(
            job=await self._handler.load_claimed(claim),
            claim=claim,
            handler=self._handler,
            artifacts=self._artifacts,
            runner=self._runner,
            sandbox_runtime_factory=self._sandbox_runtime_factory,
            workspace_root=self._workspace_root,
            deadlines=self._deadlines,
            patience=self._patience,
            sandbox_rate=self._sandbox_rate,
            day_left=self._day_left,
            redactor=self._redactor,
            secrets=self._secrets,
            has_strays=self._runner is not None and claim.attempt > 1,
        )
        try:
            with redacting(lambda: build.redactor):
                return await self._execute(build)
        finally:
            build.end_transcript()

    async def _execute(self, build: Build) -> Job:
        if build.job.preview is Preview.WAKING:
            try:
                await wake_preview(build, most_deliveries=self._max_deliveries)
            finally:
                await build.leave_sandboxes()
            return build.job
        await build.take_over_draft()
        try:
            if build.job.status is Status.CANCELLING or await self._walk_unless_cancelled(build):
                await end_sandboxes(build)
                await self._confirm_cancel(build)
        except anyio.get_cancelled_exc_class():
            if self._is_alone:
                await end_sandboxes(build)
            raise
        finally:
            if build.job.is_terminal and build.job.status is not Status.READY:
                await end_sandboxes(build)  # also of a job that somebody else has ended
            await build.leave_sandboxes()
            await build.remove_workspaces()
        await build.remove_drafts()
        return build.job

    async def _walk_unless_cancelled(self, build: Build) -> bool:
        """Walk until the job has ended, or a cancel is requested: True then."""
        with anyio.CancelScope() as scope:
            look = partial(self._look_for_cancel, build, scope)
            # From before the first append on: that one is refused if a cancel came earlier.
            with self._hub.look_for_requests(build.claim.ref.job, look):
                walk = partial(self._walk, build)
                await (beside(build.transcript.run, walk) if self._runner else walk())
        return not build.job.is_terminal

    async def _look_for_cancel(self, build: Build, scope: anyio.CancelScope) -> None:
        """Stop the walk when a cancel was requested, whatever it is waiting for."""
        job = await self._handler.load(build.claim.ref)
        if job.status is Status.CANCELLING:
            build.is_cancelling = True
            scope.cancel()

    async def _walk(self, build: Build) -> None:
        """Through all phases to the end. Returns with the job not ended if a cancel was met."""
        try:
            try:
                await self._finish(build, await self._run_phases(build))
            except PayloadRefused as error:
                await self._fail(build, error)  # the build's own, and there again another time
            except (EventStoreError, JobIsCancelling, JobIsTerminal):
                raise
            except NeedsReview as error:
                text = review_text(str(error), await self._failures(build))
                await self._fail(build, NeedsReview(text))
            except Exception as error:  # noqa: BLE001 - a bug must end as an event, not as silence
                await self._fail(build, error)
        except JobIsCancelling:
            return
        except JobIsTerminal:
            build.job = await self._handler.load(build.claim.ref)

    async def _run_phases(self, build: Build) -> CompletePhase:
        """Through all phases; what completes the last one, and with it the build."""
        if build.claim.deliveries > self._max_deliveries:
            raise WorkersLost(build.claim.deliveries - 1)
        with self._in_time(build):
            worker, attempt = build.claim.worker, build.claim.attempt
            await self._begin_phase(build, StartJob(worker, attempt))
            # Not before: somebody waits for the start, and a line takes a third of a millisecond.
            log.info("build_started", job=build.job.job, attempt=attempt, worker=worker)
            if self._runner is not None:
                await expect_sandbox(build)
            while (phase := build.job.current_phase) is not None:
                run = PHASES[phase] if self._runner else simulated
                try:
                    done = await run(build)
                except CheckFailed as failure:
                    log.info(
                        "checks_failed", job=build.job.job, phase=phase, command=failure.command
                    )
                    await build.tell(record(failure))
                    await self._begin_phase(build)
                    continue
                if phase is Phase.CHECKS:
                    return done
                # In one append: nothing happens between two phases.
                await build.tell(done, StartPhase())
                build.usage, build.draft = NO_USAGE, NO_DRAFT
        raise AssertionError("a phase is under way until the last one has returned")

    async def _begin_phase(self, build: Build, *before: Command) -> None:
        """Enter the next phase in the same append as `before`, unless no repair may follow."""
        if build.job.next_phase is Phase.CODE and (reason := why_not_repair(build.job)):
            if before:
                await build.tell(*before)
            raise NeedsReview(reason)
        await build.tell(*before, StartPhase())

    @contextmanager
    def _in_time(self, build: Build) -> Iterator[None]:
        """The time that this attempt has, or the job, if that is less. Raises `DeadlinePassed`."""
        limit_s, left_s = self._deadlines.job_s, seconds_left(build.job, self._handler.clock())
        remedy = "try again"
        if left_s is not None and left_s < limit_s:
            limit_s = float(build.job.limits.max_wall_s or 0)
            remedy = "ask again with a higher limit (max_wall_s)"
        else:
            left_s = limit_s
        with anyio.move_on_after(left_s) as scope:
            yield
        if scope.cancelled_caught:
            phase = build.job.current_phase or "first"
            raise DeadlinePassed(f"the build, then in its {phase} phase,", limit_s, remedy)

    async def _finish(self, build: Build, done: CompletePhase) -> None:
        """Complete the last phase, and with it the build, under the next number."""
        digest = await build.keep_log()
        number = await self._numbering.propose(build.job.tenant, build.job.project)
        command = FinishBuild(build_number=number, log=digest)
        if build.sandbox:
            await build.lay_out_files()
            command = replace(
                command,
                sandbox_id=build.sandbox.sandbox_id,
                preview_url=build.sandbox.preview_url(PREVIEW_PORT),
                workspace_path=str(build.workspace_path),
            )
        await self._tell_ready(build, done, command)

    async def _tell_ready(self, build: Build, done: CompletePhase, command: FinishBuild) -> None:
        """Propose numbers until one is the next: each refusal means that another build got one."""
        for _ in range(MAX_NUMBER_TRIES):
            try:
                await build.tell(done, command)
            except NumberTaken as taken:
                number = self._numbering.propose_after(
                    build.job.tenant,
                    build.job.project,
                    refused=command.build_number,
                    last=taken.last,
                )
                command = replace(command, build_number=number)
            else:
                return
        raise GenerationError(
            f"no build number could be had in {MAX_NUMBER_TRIES} tries: too many builds of this "
            "project end at once"
        )

    async def _failures(self, build: Build) -> list[ChecksFailed]:
        """All failed checks of the job, in order: the fold keeps the newest alone."""
        events = await patiently(
            partial(self._handler.store.read_job, build.claim.ref), LOG_PATIENCE_S
        )
        return [event.payload for event in events if isinstance(event.payload, ChecksFailed)]

    async def _fail(self, build: Build, error: Exception) -> None:
        """End the sandbox, then say so: FAILED means that nothing of the job runs any more."""
        debug_id = f"dbg-{secrets.token_hex(6)}"
        failure = _failure(error, debug_id)
        expected = isinstance(error, GenerationError)
        log.error(
            "build_failed",
            job=build.job.job,
            phase=build.job.current_phase,
            debug_id=debug_id,
            kind=error.kind if isinstance(error, GenerationError) else "internal",
            exc_info=None if expected else error,
        )
        await end_sandboxes(build)
        digest = await build.keep_log(f"the job failed: {failure.message}")
        await self._read_again(build)
        await build.tell(replace(failure, usage=build.usage, log=digest))

    async def _confirm_cancel(self, build: Build) -> None:
        digest = await build.keep_log()
        await self._read_again(build)
        try:
            await build.tell(ConfirmCancel(usage=build.usage, log=digest))
        except JobIsTerminal:
            await self._read_again(build)

    async def _read_again(self, build: Build) -> None:
        """Learn what the log says: of an append that was broken off the answer is not known."""
        load = partial(self._handler.load, build.claim.ref)
        build.job = await patiently(load, LOG_PATIENCE_S)
        if Phase.CODE in build.job.completed:
            build.usage = NO_USAGE  # told already


def _failure(error: Exception, debug_id: str) -> FailJob:
    if isinstance(error, GenerationError):
        return FailJob(error.kind, for_people(error), debug_id)
    return FailJob(
        "internal",
        f"something went wrong on our side; the log has the details under {debug_id}. "
        "Submitting the same goal again is safe.",
        debug_id,
    )
