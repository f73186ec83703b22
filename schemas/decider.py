"""What a job does when it is asked: a command and its state give events, or a refusal.

One small function per command. The moves allowed are `schemas.job.TRANSITIONS`.
"""

from typing import Any, assert_never

from schemas.commands import (
    Command,
    CompletePhase,
    ConfirmCancel,
    ExpirePreview,
    FailJob,
    FinishBuild,
    PausePreview,
    RecordFailedChecks,
    RecordSandbox,
    RequestBuild,
    RequestCancel,
    RequestPreview,
    ResumePreview,
    ScheduleRetry,
    StartJob,
    StartPhase,
    Usage,
)
from schemas.errors import CommandRefused, JobIsCancelling, JobIsTerminal, JobUnknown
from schemas.events import (
    CancelRequested,
    ChecksFailed,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    JobStarted,
    Known,
    Phase,
    PhaseCompleted,
    PhaseStarted,
    PreviewExpired,
    PreviewPaused,
    PreviewRequested,
    PreviewResumed,
    RetryScheduled,
    SandboxCreated,
    build_version,
)
from schemas.job import TRANSITIONS, Job, Preview, Status

# Where the app itself is tried: its install command is the first of its checks.
_CHECKING = (Phase.DEPS, Phase.CHECKS)


def decide(state: Job | None, command: Command) -> list[Known]:
    """The events that `command` leads to in `state`, maybe none. Raises `CommandRefused`."""
    if isinstance(command, RequestBuild):
        return _request_build(state, command)
    name = type(command).__name__
    if state is None:
        raise JobUnknown("?", name)
    match command:
        case RequestPreview():
            return _request_preview(state, command)
        case ResumePreview():
            return _resume_preview(state, command)
        case PausePreview():
            return _pause_preview(state, command)
        case ExpirePreview():
            return _expire_preview(state, command)
    if state.is_terminal and (again := _made_anew(state, command)):
        return again
    if state.is_terminal:
        raise JobIsTerminal(state.job, state.status, name)
    match command:
        case RequestCancel():
            return _request_cancel(state, command)
        case ConfirmCancel():
            return _confirm_cancel(state, command)
        case FailJob():
            return [_failed(state, command)]
        case RecordSandbox():
            return [_sandbox(command)]
    if state.status is Status.CANCELLING:
        raise JobIsCancelling(state.job, name)
    match command:
        case StartJob(worker, attempt):
            return _start_job(state, worker, attempt)
        case StartPhase(phase):
            return _start_phase(state, phase)
        case ScheduleRetry():
            return _schedule_retry(state, command)
        case CompletePhase():
            return _complete_phase(state, command)
        case RecordFailedChecks():
            return _record_failed_checks(state, command)
        case FinishBuild():
            return _finish_build(state, command)
        case _:
            assert_never(command)


def _request_build(state: Job | None, command: RequestBuild) -> list[Known]:
    if state is not None:
        raise CommandRefused(state.job, state.status, "RequestBuild", "the job exists already")
    return [
        JobQueued(
            tenant=command.tenant,
            user_id=command.user_id,
            project_id=command.project_id,
            goal=command.goal,
            tier=command.tier,
            base_build=command.base_build,
            base_manifest=command.base_manifest,
            base_job=command.base_job,
            restore=command.restore,
            in_place=command.in_place,
            limits=command.limits,
        )
    ]


def _request_cancel(state: Job, command: RequestCancel) -> list[Known]:
    if state.status is Status.CANCELLING:
        return []
    if state.status is Status.QUEUED:
        return [JobCancelled(by=command.by, reason=command.reason)]
    return [CancelRequested(by=command.by, reason=command.reason)]


def _confirm_cancel(state: Job, command: ConfirmCancel) -> list[Known]:
    if state.status is not Status.CANCELLING:
        raise CommandRefused(state.job, state.status, "ConfirmCancel", "nobody asked to cancel it")
    return [JobCancelled(by="worker", log=command.log, **_usage(command.usage))]


def _failed(state: Job, command: FailJob) -> JobFailed:
    return JobFailed(
        phase=state.current_phase,
        kind=command.kind,
        message=command.message,
        debug_id=command.debug_id,
        log=command.log,
        **_usage(command.usage),
    )


def _usage(usage: Usage) -> dict[str, Any]:
    # Its fields by name: `asdict` copies as well, and asks of each what it is.
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": usage.cost_usd,
    }


def _sandbox(command: RecordSandbox) -> SandboxCreated:
    return SandboxCreated(
        sandbox_id=command.sandbox_id, provider=command.provider, ends_at=command.ends_at
    )


def _start_job(state: Job, worker: str, attempt: int) -> list[Known]:
    _check_move(state, Status.STARTING, "StartJob")
    if attempt <= state.attempt:
        raise CommandRefused(
            state.job, state.status, "StartJob", f"attempt {state.attempt} was started already"
        )
    return [JobStarted(attempt=attempt, worker=worker)]


def _start_phase(state: Job, phase: Phase | None) -> list[Known]:
    phase = phase or state.next_phase
    if phase is None:
        raise CommandRefused(state.job, state.status, "StartPhase", "all phases are completed")
    _check_move(state, Status(phase), "StartPhase")
    if phase is not state.next_phase:
        raise CommandRefused(
            state.job, state.status, "StartPhase", f"{phase} is not next ({state.next_phase})"
        )
    return [PhaseStarted(phase=phase, round=state.round)]


def _schedule_retry(state: Job, command: ScheduleRetry) -> list[Known]:
    phase = state.current_phase
    if phase is None or not _under_way(state, phase):
        raise CommandRefused(state.job, state.status, "ScheduleRetry", "no phase is under way")
    return [_retry(state, phase, command)]


def _retry(state: Job, phase: Phase, command: ScheduleRetry) -> RetryScheduled:
    return RetryScheduled(
        phase=phase,
        round=state.round,
        step=command.step,
        tries=command.tries,
        kind=command.kind,
        message=command.message,
        wait_s=command.wait_s,
        **_usage(command.usage),
    )


def _complete_phase(state: Job, command: CompletePhase) -> list[Known]:
    if not _under_way(state, command.phase):
        raise CommandRefused(
            state.job, state.status, "CompletePhase", f"{command.phase} is not under way"
        )
    return [
        PhaseCompleted(
            phase=command.phase,
            round=state.round,
            duration_ms=command.duration_ms,
            evidence=dict(command.evidence),
            manifest=command.manifest,
            **_usage(command.usage),
        )
    ]


def _record_failed_checks(state: Job, command: RecordFailedChecks) -> list[Known]:
    phase = state.current_phase
    if phase not in _CHECKING or not _under_way(state, phase):
        raise CommandRefused(
            state.job, state.status, "RecordFailedChecks", "no checks are under way"
        )
    return [
        ChecksFailed(
            phase=phase,
            round=state.round,
            fingerprint=command.fingerprint,
            command=command.command,
            exit_code=command.exit_code,
            output=command.output,
            message=command.message,
        )
    ]


def _finish_build(state: Job, command: FinishBuild) -> list[Known]:
    _check_move(state, Status.READY, "FinishBuild")
    if state.next_phase is not None:
        raise CommandRefused(
            state.job, state.status, "FinishBuild", f"{state.next_phase} is not completed"
        )
    return [
        JobReady(
            build_number=command.build_number,
            build_version=build_version(command.build_number),
            sandbox_id=command.sandbox_id,
            preview_url=command.preview_url,
            workspace_path=command.workspace_path,
            manifest=state.manifest,
            log=command.log,
        )
    ]


def _request_preview(state: Job, command: RequestPreview) -> list[Known]:
    _check_ready(state, "RequestPreview")
    if state.preview is None or state.manifest is None:
        raise CommandRefused(state.job, state.status, "RequestPreview", "the build has no app")
    ends_at = state.sandbox_ends_at
    lasts = ends_at is not None and ends_at >= command.until
    if state.preview is Preview.WAKING or (state.preview is Preview.RUNNING and lasts):
        return []
    return [PreviewRequested(by=command.by)]


def _resume_preview(state: Job, command: ResumePreview) -> list[Known]:
    _check_ready(state, "ResumePreview")
    if state.preview is not Preview.WAKING:
        raise CommandRefused(state.job, state.status, "ResumePreview", "nobody waits for it")
    return [
        PreviewResumed(
            sandbox_id=command.sandbox_id,
            preview_url=command.preview_url,
            ends_at=command.ends_at,
        )
    ]


def _pause_preview(state: Job, command: PausePreview) -> list[Known]:
    _check_ready(state, "PausePreview")
    if state.preview is Preview.PAUSED:
        return []
    if state.preview is not Preview.RUNNING:
        raise CommandRefused(state.job, state.status, "PausePreview", "it does not run")
    return [PreviewPaused(kept_until=command.kept_until)]


def _expire_preview(state: Job, command: ExpirePreview) -> list[Known]:
    _check_ready(state, "ExpirePreview")
    if state.preview in (None, Preview.EXPIRED):
        return []
    return [PreviewExpired(reason=command.reason, continued_by=command.continued_by)]


def _made_anew(state: Job, command: Command) -> list[Known]:
    """What a worker may record of a finished build while it makes the preview anew."""
    if state.preview is Preview.WAKING:
        match command:
            case RecordSandbox():
                return [_sandbox(command)]
            case ScheduleRetry():
                return [_retry(state, Phase.DEPS, command)]
    return []


def _check_ready(state: Job, command: str) -> None:
    if state.status is not Status.READY:
        raise CommandRefused(state.job, state.status, command, "it has no preview")


def _under_way(state: Job, phase: Phase) -> bool:
    # After failed checks the job still stands in them, but its next phase is the code again.
    return state.current_phase is phase and state.next_phase is phase


def _check_move(state: Job, target: Status, command: str) -> None:
    if target not in TRANSITIONS[state.status]:
        raise CommandRefused(
            state.job, state.status, command, f"no way from {state.status} to {target}"
        )
