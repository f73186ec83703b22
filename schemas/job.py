"""The life of a job: its states and the moves between them.

queued ──► starting ──► scaffold ──► code ──► deps ──► checks ──► ready
   │           ▲ │                    ▲        │         │
   │           │ └► the first phase   └────────┴─────────┘
   │           │    not completed       repair: round + 1
   │           │
   │           └── any running state: a takeover, attempt + 1
   │
   └──► failed | cancelled          any running state ──► failed | cancelling
                                    cancelling ──► cancelled | failed
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from schemas.events import (
    ChecksFailed,
    Limits,
    Phase,
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
    Status.DEPS: _LEAVE | {Status.CHECKS, Status.CODE},
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


class Preview(StrEnum):
    """What became of the app that a READY job left running.

    running ──► paused ──► expired       any ──► waking (a worker has it) ──► running | expired
       └──────────────────────┘
    """

    RUNNING = "running"
    WAKING = "waking"
    PAUSED = "paused"
    EXPIRED = "expired"


_NO_LIMITS = Limits()


@dataclass(frozen=True)
class Job:
    """A job as its events tell it. `version` is the number of events folded.

    `scaffold_ms` … `checks_ms` is how long each phase took, all rounds together; None before it was
    completed once. `repair_…` is the part of the usage that later rounds than the first had.
    `failures` are the fingerprints of failed checks, in order, `last_failure` is the newest.
    `handed_over`: sandboxes that were made for this job, and which job each was left to.
    """

    # Without slots: a copy with changes is then a copy of a dict, eight times as fast as
    # `dataclasses.replace`, and replays make millions of them.

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
    base_manifest: str | None = None
    base_job: str | None = None
    restore: bool = False
    in_place: bool = False
    limits: Limits = _NO_LIMITS
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    worker: str | None = None
    round: int = 1
    completed: tuple[Phase, ...] = ()
    scaffold_ms: int | None = None
    code_ms: int | None = None
    deps_ms: int | None = None
    checks_ms: int | None = None
    retries: int = 0
    failures: tuple[str, ...] = ()
    last_failure: ChecksFailed | None = None
    manifest: str | None = None
    log: str | None = None
    sandbox_id: str | None = None
    sandbox_provider: str | None = None
    sandbox_ends_at: datetime | None = None
    preview: Preview | None = None
    preview_url: str | None = None
    handed_over: tuple[tuple[str, str], ...] = ()
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
    repair_input_tokens: int = 0
    repair_output_tokens: int = 0
    repair_cost_usd: float = 0.0

    @property
    def next_phase(self) -> Phase | None:
        """The first phase of this round that is not completed; None when all are."""
        return next((phase for phase in _PHASES if phase not in self.completed), None)

    @property
    def current_phase(self) -> Phase | None:
        """The phase the job is in, if it is in one."""
        return _PHASE_OF.get(self.status)

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL

    @property
    def wall_ms(self) -> int:
        """How long it took, from its first start to its end; 0 as long as one of them is not."""
        if self.started_at is None or self.finished_at is None:
            return 0
        return round((self.finished_at - self.started_at).total_seconds() * 1000)

    @property
    def is_settled(self) -> bool:
        """Whether the job has ended, and no worker has to do with its preview either."""
        return self.is_terminal and self.preview is not Preview.WAKING


_PHASES = tuple(Phase)
_PHASE_OF: Mapping[Status, Phase] = {Status(phase): phase for phase in Phase}
