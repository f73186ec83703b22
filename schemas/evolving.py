"""What each event means for its job.

`evolve` accepts every recorded fact, also one that `decide` (`schemas/decider.py`) would refuse
today. Both are pure: the generator, the projector, the replay tool and time travel run these same
lines.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from schemas.envelope import RecordedEvent
from schemas.errors import UndecodableEvent
from schemas.events import (
    AnyPayload,
    CancelRequested,
    ChecksFailed,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    JobStarted,
    Metered,
    Payload,
    Phase,
    PhaseCompleted,
    PhaseStarted,
    PreviewExpired,
    PreviewPaused,
    PreviewRequested,
    PreviewResumed,
    RetryScheduled,
    SandboxCreated,
    UnknownEvent,
    Unreadable,
)
from schemas.job import Job, Preview, Status

_STATUS_OF: Mapping[Phase, Status] = {phase: Status(phase) for phase in Phase}
_MS_OF: Mapping[Phase, str] = {phase: f"{phase}_ms" for phase in Phase}


def evolve(state: Job | None, event: RecordedEvent) -> Job | None:
    """The state after `event`, an event of the job whose version is one more than the state's.

    None stays None until `JobQueued`: a history that does not begin with it tells no job. Raises
    `UndecodableEvent` for an event that was read without its payload.
    """
    payload = event.payload
    if type(payload) is JobQueued:
        return _queued(event, payload)
    if state is None:
        return None
    attributes = state.__dict__.copy()
    attributes["version"] = event.version
    attributes["updated_at"] = event.time
    attributes.update(CHANGES[type(payload)](state, event, payload))
    return _job(attributes)


def _job(attributes: dict[str, Any]) -> Job:
    """What `Job(**attributes)` would be, without setting fifty attributes one by one."""
    job = object.__new__(Job)
    object.__setattr__(job, "__dict__", attributes)
    return job


Changes = Mapping[str, Any]
"""The attributes of a job that an event makes others, and what they are then."""

_NONE: Changes = {}


def _started(state: Job, event: RecordedEvent, started: JobStarted) -> Changes:
    return {
        "status": Status.STARTING,
        "attempt": started.attempt,
        "worker": started.worker,
        "started_at": state.started_at or event.time,
        # The completed phases stay completed: that is what makes a takeover cheap. Only the checks
        # must be seen again, by the worker that will vouch for them.
        "completed": tuple(phase for phase in state.completed if phase is not Phase.CHECKS),
    }


def _entered(_: Job, __: RecordedEvent, entered: PhaseStarted) -> Changes:
    return {"status": _STATUS_OF[entered.phase], "round": entered.round}


def _completed(state: Job, _: RecordedEvent, done: PhaseCompleted) -> Changes:
    took = _MS_OF[done.phase]
    return {
        "completed": (*state.completed, done.phase),
        took: (getattr(state, took) or 0) + done.duration_ms,
        "manifest": done.manifest or state.manifest,
        **_used(state, done),
    }


def _used(state: Job, told: Metered) -> Changes:
    if not (told.input_tokens or told.output_tokens or told.cost_usd):
        return _NONE
    changes = {
        "input_tokens": state.input_tokens + told.input_tokens,
        "output_tokens": state.output_tokens + told.output_tokens,
        "cost_usd": state.cost_usd + told.cost_usd,
    }
    if state.round > 1:
        changes["repair_input_tokens"] = state.repair_input_tokens + told.input_tokens
        changes["repair_output_tokens"] = state.repair_output_tokens + told.output_tokens
        changes["repair_cost_usd"] = state.repair_cost_usd + told.cost_usd
    return changes


def _retried(state: Job, _: RecordedEvent, retry: RetryScheduled) -> Changes:
    return {"retries": state.retries + 1, **_used(state, retry)}


def _sandbox(_: Job, __: RecordedEvent, created: SandboxCreated) -> Changes:
    return {
        "sandbox_id": created.sandbox_id,
        "sandbox_provider": created.provider,
        "sandbox_ends_at": created.ends_at,
    }


def _repair(state: Job, _: RecordedEvent, failure: ChecksFailed) -> Changes:
    return {
        "round": failure.round + 1,
        "completed": (Phase.SCAFFOLD,),
        "failures": (*state.failures, failure.fingerprint),
        "last_failure": failure,
    }


def _cancelling(_: Job, __: RecordedEvent, ___: CancelRequested) -> Changes:
    return {"status": Status.CANCELLING}


def _ready(_: Job, event: RecordedEvent, ready: JobReady) -> Changes:
    return {
        "status": Status.READY,
        "finished_at": event.time,
        "sandbox_id": ready.sandbox_id,
        "preview": Preview.RUNNING if ready.preview_url else None,
        "preview_url": ready.preview_url,
        "build_number": ready.build_number,
        "build_version": ready.build_version,
        "workspace_path": ready.workspace_path,
        "manifest": ready.manifest,
        "log": ready.log,
    }


def _failed(state: Job, event: RecordedEvent, failed: JobFailed) -> Changes:
    return {
        **_WITHOUT_SANDBOX,
        **_used(state, failed),
        "status": Status.FAILED,
        "finished_at": event.time,
        "failed_phase": failed.phase,
        "failure_kind": failed.kind,
        "error_message": failed.message,
        "debug_id": failed.debug_id,
        "log": failed.log,
    }


def _cancelled(state: Job, event: RecordedEvent, cancelled: JobCancelled) -> Changes:
    return {
        **_WITHOUT_SANDBOX,
        **_used(state, cancelled),
        "status": Status.CANCELLED,
        "finished_at": event.time,
        "log": cancelled.log,
    }


def _requested(_: Job, __: RecordedEvent, ___: PreviewRequested) -> Changes:
    return {"preview": Preview.WAKING}


def _paused(state: Job, _: RecordedEvent, paused: PreviewPaused) -> Changes:
    return {
        "preview": Preview.PAUSED,
        "sandbox_ends_at": paused.kept_until or state.sandbox_ends_at,
    }


def _resumed(_: Job, __: RecordedEvent, resumed: PreviewResumed) -> Changes:
    return {
        "preview": Preview.RUNNING,
        "sandbox_id": resumed.sandbox_id,
        "preview_url": resumed.preview_url,
        "sandbox_ends_at": resumed.ends_at,
    }


def _expired(state: Job, _: RecordedEvent, expired: PreviewExpired) -> Changes:
    changes = {**_WITHOUT_SANDBOX, "preview": Preview.EXPIRED, "preview_url": None}
    if expired.continued_by and state.sandbox_id:
        handed = (state.sandbox_id, expired.continued_by)
        changes["handed_over"] = (*state.handed_over, handed)
    return changes


def _unknown(_: Job, __: RecordedEvent, ___: UnknownEvent) -> Changes:
    return _NONE


def _unreadable(_: Job, event: RecordedEvent, unreadable: Unreadable) -> Changes:
    raise UndecodableEvent(event.type, event.data, unreadable.reason)


CHANGES: Mapping[type[Payload], Callable[[Job, RecordedEvent, Any], Changes]] = {
    JobStarted: _started,
    PhaseStarted: _entered,
    RetryScheduled: _retried,
    PhaseCompleted: _completed,
    SandboxCreated: _sandbox,
    ChecksFailed: _repair,
    CancelRequested: _cancelling,
    JobReady: _ready,
    JobFailed: _failed,
    JobCancelled: _cancelled,
    PreviewRequested: _requested,
    PreviewPaused: _paused,
    PreviewResumed: _resumed,
    PreviewExpired: _expired,
    UnknownEvent: _unknown,
    Unreadable: _unreadable,
}
"""What each event means for a job that there is. A table: replays ask millions of times, and a
`match` would try one type after the other."""

# A job that ended otherwise than READY has ended its sandbox first.
_WITHOUT_SANDBOX: Mapping[str, Any] = {"sandbox_id": None, "sandbox_ends_at": None}


def gets_further(payload: AnyPayload) -> bool:
    """Whether an event takes its job where no attempt before has been.

    A phase is completed once a round, and rounds are counted; only the checks are seen again by
    every attempt, so that they prove nothing.
    """
    match payload:
        case PhaseCompleted(phase=phase):
            return phase is not Phase.CHECKS
        case ChecksFailed():
            return True
    return False


# What a job is before anything has been said of it.
_AT_FIRST: Mapping[str, Any] = {
    field.name: field.default for field in fields(Job) if field.default is not MISSING
}


def _queued(event: RecordedEvent, queued: JobQueued) -> Job:
    return _job(
        {
            **_AT_FIRST,
            "job": event.job,
            "tenant": queued.tenant,
            "project": queued.project_id,
            "user_id": queued.user_id,
            "goal": queued.goal,
            "tier": queued.tier,
            "base_build": queued.base_build,
            "base_manifest": queued.base_manifest,
            "base_job": queued.base_job,
            "restore": queued.restore,
            "in_place": queued.in_place,
            "limits": queued.limits,
            "status": Status.QUEUED,
            "version": event.version,
            "queued_at": event.time,
            "updated_at": event.time,
        }
    )


def fold(events: Iterable[RecordedEvent], state: Job | None = None) -> Job | None:
    """`evolve` over all of `events`, in order."""
    for event in events:
        state = evolve(state, event)
    return state
