"""What can happen to a job: one frozen model per event type, past tense, never changed.

`docs/events.md` is generated from this file. A payload that must change gets a new wire type
(`JobQueued.v2`) and an upcaster from the old one in `schemas/decoding.py`; what is recorded stays
as it is.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from schemas.ids import Slug

MAX_GOAL_CHARS = 4_000
MAX_OUTPUT_CHARS = 8_000


class Phase(StrEnum):
    """The four phases of a build, in order; each is the FSM state of the same name."""

    SCAFFOLD = "scaffold"
    CODE = "code"
    DEPS = "deps"
    CHECKS = "checks"


Tier = Literal["free", "pro"]


def _storable(text: str) -> str:
    # Both are legal in JSON. Postgres refuses NUL, and a lone surrogate has no bytes in UTF-8:
    # stopped at the door, not at the append or the projection.
    if "\0" in text:
        raise ValueError("text must not contain NUL characters")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("text must not contain lone surrogates")
    return text


Text = Annotated[str, AfterValidator(_storable)]
Goal = Annotated[str, Field(min_length=1, max_length=MAX_GOAL_CHARS), AfterValidator(_storable)]
Output = Annotated[str, Field(max_length=MAX_OUTPUT_CHARS), AfterValidator(_storable)]
Fact = Text | bool | int | float | None


class Payload(BaseModel):
    """Base of all payloads. Fields a newer writer added are ignored; `data` keeps them."""

    # JSON has neither infinity nor NaN: they would be written as null, and read as something else.
    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )
    type: ClassVar[str]


class Metered(Payload):
    """What was paid to a provider of models, as it counted itself, and has not been told before."""

    input_tokens: Annotated[int, Field(ge=0)] = 0
    output_tokens: Annotated[int, Field(ge=0)] = 0
    cost_usd: Annotated[float, Field(ge=0)] = 0.0


class Limits(BaseModel):
    """What a job may use, all attempts and rounds together. None: no limit of its own."""

    model_config = Payload.model_config

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_cost_usd: Annotated[float, Field(gt=0)] | None = None
    max_wall_s: Annotated[int, Field(ge=1)] | None = None
    """From its first start on."""
    max_repairs: Annotated[int, Field(ge=0, le=10)] = 3


class JobQueued(Payload):
    """A build was requested; the job waits for a worker.

    With `base_build` it goes on from that build, whose files are `base_manifest`: the goal is then
    what to change, or with `restore` only what to call it, and the files stay as they are.
    `in_place`: the base's living sandbox, and with it its preview, may be taken over.
    """

    type: ClassVar[str] = "JobQueued"
    tenant: Slug
    user_id: Slug
    project_id: Slug
    goal: Goal
    tier: Tier = "free"
    base_build: Annotated[int, Field(ge=1)] | None = None
    base_manifest: Text | None = None
    base_job: Slug | None = None
    restore: bool = False
    in_place: bool = False
    limits: Limits = Limits()


class JobStarted(Payload):
    """A worker took the job: for the first time, or over from one that is gone."""

    type: ClassVar[str] = "JobStarted"
    attempt: Annotated[int, Field(ge=1)]
    worker: Text


class PhaseStarted(Payload):
    """The job entered a phase. `round` counts from 1 and grows with every repair."""

    type: ClassVar[str] = "PhaseStarted"
    phase: Phase
    round: Annotated[int, Field(ge=1)] = 1


class RetryScheduled(Metered):
    """A step of a phase did not succeed and is tried again after `wait_s`, by the same worker.

    `step` names it (`create_sandbox`, `install`, …), `tries` counts the tries that failed.
    """

    type: ClassVar[str] = "RetryScheduled"
    phase: Phase
    round: Annotated[int, Field(ge=1)] = 1
    step: Text
    tries: Annotated[int, Field(ge=1)]
    kind: Text
    message: Text
    wait_s: Annotated[float, Field(ge=0)]


class PhaseCompleted(Metered):
    """A phase is done and need never be done again.

    `evidence` says how that is known; `manifest` is the digest of the files after it; tokens and
    cost are what the phase used.
    """

    type: ClassVar[str] = "PhaseCompleted"
    phase: Phase
    round: Annotated[int, Field(ge=1)] = 1
    duration_ms: Annotated[int, Field(ge=0)]
    evidence: dict[Text, Fact] = {}
    manifest: Text | None = None


class SandboxCreated(Payload):
    """A sandbox runs for this job and ends by itself at `ends_at`."""

    type: ClassVar[str] = "SandboxCreated"
    sandbox_id: Text
    provider: Text
    ends_at: AwareDatetime


class ChecksFailed(Payload):
    """The app could not be installed or did not pass its checks; a repair may follow.

    Equal fingerprints are equal failures. `message` says for people what was wrong, `output` is the
    relevant tail of what the command printed.
    """

    type: ClassVar[str] = "ChecksFailed"
    phase: Phase = Phase.CHECKS
    round: Annotated[int, Field(ge=1)]
    fingerprint: Text
    command: Text
    exit_code: int | None
    output: Output
    message: Text = ""


class CancelRequested(Payload):
    """Somebody wants the job stopped; its worker ends what runs and confirms."""

    type: ClassVar[str] = "CancelRequested"
    by: Text
    reason: Text = ""


class JobReady(Payload):
    """The app runs and was checked: it is build number `build_number` of its project.

    A job walked through by the simulated loop has neither sandbox nor URL nor files. `log` is the
    digest of all that its commands printed, also of a job that ended otherwise.
    """

    type: ClassVar[str] = "JobReady"
    build_number: Annotated[int, Field(ge=1)]
    build_version: Text
    sandbox_id: Text | None = None
    preview_url: Text | None = None
    workspace_path: Text | None = None
    manifest: Text | None = None
    log: Text | None = None


class JobFailed(Metered):
    """The job ended without a build. `debug_id` also stands in the worker's log output."""

    type: ClassVar[str] = "JobFailed"
    phase: Phase | None
    kind: Text
    message: Text
    debug_id: Text
    log: Text | None = None


class JobCancelled(Metered):
    """The job was stopped, and nothing of it runs any more."""

    type: ClassVar[str] = "JobCancelled"
    by: Text
    reason: Text = ""
    log: Text | None = None


class PreviewRequested(Payload):
    """Somebody wants the build's preview: a worker lets it answer, and for longer, as a job does.

    It is woken where it sleeps, and made anew from the build's files where it has ended.
    """

    type: ClassVar[str] = "PreviewRequested"
    by: Text


class PreviewPaused(Payload):
    """The build's sandbox sleeps; it can be resumed until `kept_until`, and is ended then."""

    type: ClassVar[str] = "PreviewPaused"
    kept_until: AwareDatetime | None = None


class PreviewResumed(Payload):
    """The build's preview answers again, maybe elsewhere."""

    type: ClassVar[str] = "PreviewResumed"
    sandbox_id: Text
    preview_url: Text
    ends_at: AwareDatetime


class PreviewExpired(Payload):
    """The build's sandbox has ended, or a job goes on in it: `continued_by`. Its files remain."""

    type: ClassVar[str] = "PreviewExpired"
    reason: Text
    continued_by: Slug | None = None


class UnknownEvent(Payload):
    """An event of a type this version does not know; carried through untouched."""

    type: ClassVar[str] = "UnknownEvent"


class Unreadable(Payload):
    """An event that cannot be decoded, for readers that asked for those too; `reason` says why."""

    type: ClassVar[str] = "Unreadable"
    reason: str


Known = (
    JobQueued
    | JobStarted
    | PhaseStarted
    | RetryScheduled
    | PhaseCompleted
    | SandboxCreated
    | ChecksFailed
    | CancelRequested
    | JobReady
    | JobFailed
    | JobCancelled
    | PreviewRequested
    | PreviewPaused
    | PreviewResumed
    | PreviewExpired
)
"""Every event that can be appended."""

AnyPayload = Known | UnknownEvent | Unreadable

TERMINAL_TYPES = frozenset({JobReady.type, JobFailed.type, JobCancelled.type})


def build_version(number: int) -> str:
    """The name of a project's build number `number`, as people see it: `build_v0_3`."""
    return f"build_v0_{number}"
