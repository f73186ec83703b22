"""Histories of jobs as `decide` makes them: what tests begin with.

The builders give payloads. `recorded` turns them into events as the log gives them back, `new` into
events as the log takes them. All of it is deterministic: ids and times follow from job and version.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

from hypothesis import strategies as st

from schemas import (
    Command,
    CommandRefused,
    Job,
    NewEvent,
    Phase,
    RecordedEvent,
    build_version,
    decide,
    fold,
)
from schemas.commands import (
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
from schemas.events import (
    CancelRequested,
    ChecksFailed,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    JobStarted,
    Known,
    PhaseCompleted,
    PhaseStarted,
    PreviewExpired,
    PreviewPaused,
    PreviewRequested,
    SandboxCreated,
)

TENANT, USER, PROJECT = "acme", "ann", "shop"
JOB = "01900000-0000-7000-8000-000000000001"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

# --- single events -------------------------------------------------------------------------------


def queued(goal: str = "a list") -> JobQueued:
    return JobQueued(tenant=TENANT, user_id=USER, project_id=PROJECT, goal=goal)


def started(attempt: int = 1) -> JobStarted:
    return JobStarted(attempt=attempt, worker=f"w{attempt}")


def entered(phase: Phase, *, number: int = 1) -> PhaseStarted:
    return PhaseStarted(phase=phase, round=number)


def completed(phase: Phase, *, number: int = 1) -> PhaseCompleted:
    return PhaseCompleted(
        phase=phase,
        round=number,
        duration_ms=7,
        manifest=f"files-{number}" if phase is Phase.CODE else None,
        input_tokens=10,
        output_tokens=3,
        cost_usd=0.25,
    )


def sandbox(name: str = "sb-1") -> SandboxCreated:
    return SandboxCreated(sandbox_id=name, provider="local", ends_at=NOON + timedelta(hours=1))


def checks_failed(*, number: int = 1) -> ChecksFailed:
    return ChecksFailed(
        round=number, fingerprint="f-1", command="pytest", exit_code=1, output="red"
    )


def ready(build: int = 1, *, manifest: str | None = "files-1") -> JobReady:
    return JobReady(
        build_number=build,
        build_version=build_version(build),
        sandbox_id="sb-1",
        preview_url="https://8080-sb-1.example",
        workspace_path="/home/user/project",
        manifest=manifest,
    )


def failed(phase: Phase | None = None) -> JobFailed:
    return JobFailed(phase=phase, kind="runner", message="try another goal", debug_id="dbg-1")


# --- whole histories -----------------------------------------------------------------------------


def phases(*names: Phase, number: int = 1) -> list[Known]:
    """These phases entered and completed, one after the other."""
    return [
        event
        for phase in names
        for event in (entered(phase, number=number), completed(phase, number=number))
    ]


def all_completed() -> list[Known]:
    """A job that wants only its build number, with a sandbox."""
    *early, checks = Phase
    return [
        queued(),
        started(),
        *phases(*early),
        sandbox(),
        *phases(checks),
    ]


def build(number: int = 1) -> list[Known]:
    """A job that became build `number`."""
    return [*all_completed(), ready(number)]


def repaired_build(number: int = 1) -> list[Known]:
    """A job taken over once, repaired once, and then READY."""
    return [
        queued(),
        started(),
        *phases(Phase.SCAFFOLD),
        started(2),
        *phases(Phase.CODE, Phase.DEPS),
        sandbox(),
        entered(Phase.CHECKS),
        checks_failed(),
        *phases(Phase.CODE, Phase.DEPS, Phase.CHECKS, number=2),
        ready(number, manifest="files-2"),
    ]


SITUATIONS: Mapping[str, Sequence[Known]] = {
    "unknown": [],
    "queued": [queued()],
    "starting": [queued(), started()],
    "scaffold": [queued(), started(), entered(Phase.SCAFFOLD)],
    "scaffold done": [queued(), started(), *phases(Phase.SCAFFOLD)],
    "code": [queued(), started(), *phases(Phase.SCAFFOLD), entered(Phase.CODE)],
    "code done": [queued(), started(), *phases(Phase.SCAFFOLD, Phase.CODE)],
    "deps": [queued(), started(), *phases(Phase.SCAFFOLD, Phase.CODE), entered(Phase.DEPS)],
    "deps done": [queued(), started(), *phases(Phase.SCAFFOLD, Phase.CODE, Phase.DEPS)],
    "checks": [*all_completed()[:-1]],
    "checks done": all_completed(),
    "checks failed": [*all_completed()[:-1], checks_failed()],
    "taken over": [*all_completed(), started(2)],
    "cancelling": [queued(), started(), CancelRequested(by=USER)],
    "ready": build(),
    "ready, simulated": [
        *all_completed(),
        JobReady(build_number=1, build_version="build_v0_1", manifest="files-1"),
    ],
    "ready, waking": [*build(), PreviewRequested(by=USER)],
    "ready, paused": [*build(), PreviewPaused(kept_until=NOON + timedelta(days=1))],
    "ready, expired": [*build(), PreviewExpired(reason="time-out")],
    "failed": [queued(), started(), failed()],
    "cancelled": [queued(), JobCancelled(by=USER)],
}
"""A history for everything that a job may be in: every status, and each way of being in it."""

# --- events --------------------------------------------------------------------------------------


def recorded(
    payloads: Iterable[Known],
    *,
    job: str = JOB,
    tenant: str = TENANT,
    project: str = PROJECT,
    after: int = 0,
) -> list[RecordedEvent]:
    """The events of a job behind version `after` as the log gives them back."""
    return [
        RecordedEvent(
            id=event.id,
            type=event.payload.type,
            tenant=tenant,
            project=project,
            job=job,
            version=version,
            time=event.time,
            cause=event.cause,
            trace=event.trace,
            data=event.data,
            payload=event.payload,
        )
        for version, event in enumerate(new(payloads, job=job, after=after), start=after + 1)
    ]


def new(payloads: Iterable[Known], *, job: str = JOB, after: int = 0) -> list[NewEvent]:
    """Events to be appended behind version `after`; a second lies between any two."""
    return [
        NewEvent(
            id=str(uuid5(UUID(job), str(version))),
            time=NOON + timedelta(seconds=version),
            payload=payload,
        )
        for version, payload in enumerate(payloads, start=after + 1)
    ]


def state_after(payloads: Iterable[Known]) -> Job | None:
    """The job that these payloads tell."""
    return fold(recorded(payloads))


# --- any history ---------------------------------------------------------------------------------


def commands_for(job: Job | None) -> dict[str, Command]:
    """Every command there is, each once and filled in so that only the state can speak against it.

    The phase commands come once per phase; `StartPhase code` is the name of one.
    """
    per_phase: dict[str, Command] = {}
    for phase in Phase:
        per_phase[f"StartPhase {phase}"] = StartPhase(phase)
    for phase in Phase:
        per_phase[f"CompletePhase {phase}"] = CompletePhase(phase, 7, manifest=f"after-{phase}")
    attempt = job.attempt + 1 if job else 1
    return {
        "RequestBuild": RequestBuild(TENANT, USER, PROJECT, "a list"),
        "StartJob": StartJob(f"w{attempt}", attempt),
        **per_phase,
        "ScheduleRetry": ScheduleRetry("install", 1, "network", "no answer", 0.5, Usage(1, 2, 0.1)),
        "RecordSandbox": RecordSandbox(f"sb-{attempt}", "local", NOON + timedelta(hours=1)),
        "RecordFailedChecks": RecordFailedChecks("f-1", "pytest", 1, "red"),
        "FinishBuild": FinishBuild(1, "sb-1", "https://8080-sb-1.example", "/home/user/project"),
        "FailJob": FailJob("runner", "try another goal", "dbg-1"),
        "RequestCancel": RequestCancel(USER),
        "ConfirmCancel": ConfirmCancel(),
        "RequestPreview": RequestPreview(USER, NOON + timedelta(hours=2)),
        "ResumePreview": ResumePreview("sb-2", "https://8080-sb-2.example", NOON),
        "PausePreview": PausePreview(NOON + timedelta(days=1)),
        "ExpirePreview": ExpirePreview("time-out"),
    }


@st.composite
def job_histories(draw: st.DrawFn, max_commands: int = 40) -> list[Known]:
    """Any history that commands can lead to, of a job that was queued.

    Ends and cancels are rare, so that many jobs get as far as READY and behind it.
    """
    history: list[Known] = [queued()]
    job = state_after(history)
    for _ in range(draw(st.integers(0, max_commands))):
        onward, ending = _moves(job)
        if not onward and not ending:
            break
        rarely = draw(st.integers(0, 9)) == 9
        events = draw(st.sampled_from(ending if (rarely and ending) or not onward else onward))
        job = fold(recorded(events, after=len(history)), job)
        history += events
    return history


def _moves(job: Job | None) -> tuple[list[list[Known]], list[list[Known]]]:
    """The events of every command that would be taken now: those that lead on, those that end."""
    onward: list[list[Known]] = []
    ending: list[list[Known]] = []
    for command in commands_for(job).values():
        try:
            events = decide(job, command)
        except CommandRefused:
            continue
        if events:
            ends = isinstance(command, FailJob | RequestCancel | ExpirePreview)
            (ending if ends else onward).append(events)
    return onward, ending
