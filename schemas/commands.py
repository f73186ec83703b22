"""What can be asked of a job. Imperative; `decide` answers with events or refuses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from schemas.events import Fact, Limits, Phase, Tier


@dataclass(frozen=True, slots=True)
class RequestBuild:
    """Build `goal` as the next build of the project, from scratch or from `base_build`.

    What the fields of a base mean, `JobQueued` says.
    """

    tenant: str
    user_id: str
    project_id: str
    goal: str
    tier: Tier = "free"
    base_build: int | None = None
    base_manifest: str | None = None
    base_job: str | None = None
    restore: bool = False
    in_place: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and money as the provider counted them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class StartJob:
    """A worker has claimed the job as attempt number `attempt`."""

    worker: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StartPhase:
    """Enter the next phase that is not completed; `phase`, if named, must be that one."""

    phase: Phase | None = None


@dataclass(frozen=True, slots=True)
class ScheduleRetry:
    """A step of the current phase failed and is tried again after `wait_s`."""

    step: str
    tries: int
    kind: str
    message: str
    wait_s: float
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class CompletePhase:
    """The current phase is done."""

    phase: Phase
    duration_ms: int
    evidence: Mapping[str, Fact] = field(default_factory=dict)
    manifest: str | None = None
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class RecordSandbox:
    """A sandbox was made for this job; recorded even while it is being cancelled."""

    sandbox_id: str
    provider: str
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class RecordFailedChecks:
    """The app cannot be installed or fails its checks; back to the code for the next round."""

    fingerprint: str
    command: str
    exit_code: int | None
    output: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class FinishBuild:
    """All phases are completed. `build_number` is proposed; the log takes only the next one."""

    build_number: int
    sandbox_id: str | None = None
    preview_url: str | None = None
    workspace_path: str | None = None
    log: str | None = None


@dataclass(frozen=True, slots=True)
class FailJob:
    """The job cannot go on."""

    kind: str
    message: str
    debug_id: str
    log: str | None = None
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Stop the job: at once while it is queued, else as soon as its worker has stopped it."""

    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ConfirmCancel:
    """Everything of the cancelled job has been stopped."""

    log: str | None = None
    usage: Usage = NO_USAGE


@dataclass(frozen=True, slots=True)
class RequestPreview:
    """Let the preview of a finished build answer; nothing is to do where it does until `until`."""

    by: str
    until: datetime


@dataclass(frozen=True, slots=True)
class ResumePreview:
    """The preview that was asked for answers, in this sandbox."""

    sandbox_id: str
    preview_url: str
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class PausePreview:
    """The sandbox of a preview that answers is to sleep, and be kept so until then."""

    kept_until: datetime


@dataclass(frozen=True, slots=True)
class ExpirePreview:
    """The sandbox of a finished build has ended, or nobody needs it, or another job takes it."""

    reason: str
    continued_by: str | None = None


Command = (
    RequestBuild
    | StartJob
    | StartPhase
    | ScheduleRetry
    | CompletePhase
    | RecordSandbox
    | RecordFailedChecks
    | FinishBuild
    | FailJob
    | RequestCancel
    | ConfirmCancel
    | RequestPreview
    | ResumePreview
    | PausePreview
    | ExpirePreview
)
