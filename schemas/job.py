"""The life of a job: its states, the moves between them, and what each event means.

    queued ──► starting ──► scaffold ──► code ──► deps ──► checks ──► ready
       │           ▲ │                    ▲                  │
       │           │ └► the first phase   └──────────────────┘
       │           │    not completed       repair: round + 1
       │           │
       │           └── any running state: a takeover, attempt + 1
       │
       └──► failed | cancelled          any running state ──► failed | cancelling
                                        cancelling ──► cancelled | failed

`evolve` accepts every recorded fact, also one that `decide` (`schemas/decider.py`) would refuse
today. Both are pure: the generator, the projector, the replay tool and time travel run these same
lines.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from schemas.envelope import RecordedEvent
from schemas.events import (
    AnyPayload,
    CancelRequested,
    ChecksFailed,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    JobStarted,
    Phase,
    PhaseCompleted,
    PhaseStarted,
    PreviewExpired,
    PreviewPaused,
    PreviewResumed,
    SandboxCreated,
    UnknownEvent,
)


class Status(StrEnum):
    """The states of the FSM."""

    QUEUED = "queued"
    STARTING = "starting"
    SCAFFOLD = "scaffold"
    CODE = "code"
    DEPS = "deps"
    CHECKS = "checks"
    CANCELLING = "cancelling"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


RUNNING = frozenset(
    {Status.STARTING, Status.SCAFFOLD, Status.CODE, Status.DEPS, Status.CHECKS},
)
TERMINAL = frozenset({Status.READY, Status.FAILED, Status.CANCELLED})

_LEAVE = frozenset({Status.STARTING, Status.FAILED, Status.CANCELLING})

TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.STARTING, Status.CANCELLED, Status.FAILED}),
    Status.STARTING: _LEAVE | {Status.SCAFFOLD, Status.CODE, Status.DEPS, Status.CHECKS},
    Status.SCAFFOLD: _LEAVE | {Status.CODE},
    Status.CODE: _LEAVE | {Status.DEPS},
    Status.DEPS: _LEAVE | {Status.CHECKS},
    Status.CHECKS: _LEAVE | {Status.CODE, Status.READY},
    Status.CANCELLING: frozenset({Status.CANCELLED, Status.FAILED}),
    Status.READY: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}
"""Every move that `decide` may make; whatever else it is asked for, it refuses.

`starting → ready` is not among them: a takeover after the last phase passes through `checks` again,
because a preview that nobody has looked at since its worker died is not known to answer.
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its events tell it. `version` is the number of events folded."""

    job: str
    tenant: str
    project: str
    user_id: str
    goal: str
    tier: str
    base_build: int | None
    status: Status
    version: int
    queued_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    worker: str | None = None
    round: int = 1
    completed: tuple[Phase, ...] = ()
    manifest: str | None = None
    sandbox_id: str | None = None
    sandbox_provider: str | None = None
    sandbox_ends_at: datetime | None = None
    preview_url: str | None = None
    build_number: int | None = None
    build_version: str | None = None
    workspace_path: str | None = None
    failed_phase: Phase | None = None
    failure_kind: str | None = None
    error_message: str | None = None
    debug_id: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0

    @property
    def next_phase(self) -> Phase | None:
        """The first phase of this round that is not completed; None when all are."""
        return next((phase for phase in Phase if phase not in self.completed), None)

    @property
    def current_phase(self) -> Phase | None:
        """The phase the job is in, if it is in one."""
        return next((phase for phase in Phase if phase.value == self.status.value), None)

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL


def evolve(state: Job | None, event: RecordedEvent) -> Job | None:
    """The state after `event`, an event of the job whose version is one more than the state's.

    None stays None until `JobQueued`: a history that does not begin with it tells no job.
    """
    if isinstance(event.payload, JobQueued):
        return _queued(event, event.payload)
    if state is None:
        return None
    state = replace(state, version=event.version, updated_at=event.time)
    match event.payload:
        case JobStarted(attempt=attempt, worker=worker):
            # The completed phases stay completed: that is what makes a takeover cheap. Only the
            # checks must be seen again, by the worker that will vouch for them.
            return replace(
                state,
                status=Status.STARTING,
                attempt=attempt,
                worker=worker,
                started_at=state.started_at or event.time,
                completed=tuple(phase for phase in state.completed if phase is not Phase.CHECKS),
            )
        case PhaseStarted(phase=phase, round=number):
            return replace(state, status=Status(phase), round=number)
        case PhaseCompleted() as done:
            return replace(
                state,
                completed=(*state.completed, done.phase),
                manifest=done.manifest or state.manifest,
                input_tokens=state.input_tokens + done.input_tokens,
                output_tokens=state.output_tokens + done.output_tokens,
                cost_usd=state.cost_usd + done.cost_usd,
            )
        case SandboxCreated(sandbox_id=sandbox_id, provider=provider, ends_at=ends_at):
            return replace(
                state,
                sandbox_id=sandbox_id,
                sandbox_provider=provider,
                sandbox_ends_at=ends_at,
            )
        case ChecksFailed(round=number):
            return replace(state, round=number + 1, completed=(Phase.SCAFFOLD,))
        case CancelRequested():
            return replace(state, status=Status.CANCELLING)
        case JobReady() as ready:
            return replace(
                state,
                status=Status.READY,
                finished_at=event.time,
                sandbox_id=ready.sandbox_id,
                preview_url=ready.preview_url,
                build_number=ready.build_number,
                build_version=ready.build_version,
                workspace_path=ready.workspace_path,
                manifest=ready.manifest,
            )
        case JobFailed() as failed:
            return replace(
                _without_sandbox(state),
                status=Status.FAILED,
                finished_at=event.time,
                failed_phase=failed.phase,
                failure_kind=failed.kind,
                error_message=failed.message,
                debug_id=failed.debug_id,
            )
        case JobCancelled():
            return replace(_without_sandbox(state), status=Status.CANCELLED, finished_at=event.time)
        case PreviewResumed(sandbox_id=sandbox_id, preview_url=url, ends_at=ends_at):
            return replace(state, sandbox_id=sandbox_id, preview_url=url, sandbox_ends_at=ends_at)
        case PreviewExpired():
            return replace(_without_sandbox(state), preview_url=None)
        case PreviewPaused() | UnknownEvent():
            return state
        case _:
            assert_never(event.payload)


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


def _queued(event: RecordedEvent, queued: JobQueued) -> Job:
    return Job(
        job=event.job,
        tenant=queued.tenant,
        project=queued.project_id,
        user_id=queued.user_id,
        goal=queued.goal,
        tier=queued.tier,
        base_build=queued.base_build,
        status=Status.QUEUED,
        version=event.version,
        queued_at=event.time,
        updated_at=event.time,
    )


def _without_sandbox(state: Job) -> Job:
    """A job that ended otherwise than READY has ended its sandbox first."""
    return replace(state, sandbox_id=None, sandbox_ends_at=None)


def fold(events: Iterable[RecordedEvent], state: Job | None = None) -> Job | None:
    """`evolve` over all of `events`, in order."""
    for event in events:
        state = evolve(state, event)
    return state
