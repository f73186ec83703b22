"""What a job answers to every command, in every situation."""

from datetime import timedelta
from typing import get_args

import pytest

from schemas import (
    TRANSITIONS,
    Command,
    CommandRefused,
    Job,
    JobIsCancelling,
    JobIsTerminal,
    JobUnknown,
    Phase,
    Preview,
    Status,
    decide,
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
    PreviewResumed,
    RetryScheduled,
    SandboxCreated,
)
from tests.histories import (
    NOON,
    SITUATIONS,
    USER,
    all_completed,
    build,
    checks_failed,
    commands_for,
    completed,
    entered,
    failed,
    phases,
    queued,
    recorded,
    sandbox,
    started,
    state_after,
)
from tests.schemas.scenario import given

# --- the table -----------------------------------------------------------------------------------

ANSWERS: dict[str, type[Known] | type[CommandRefused] | None] = {
    "Q": JobQueued,
    "S": JobStarted,
    "P": PhaseStarted,
    "D": PhaseCompleted,
    "W": RetryScheduled,
    "B": SandboxCreated,
    "R": ChecksFailed,
    "Y": JobReady,
    "F": JobFailed,
    "A": CancelRequested,
    "X": JobCancelled,
    "V": PreviewRequested,
    "M": PreviewResumed,
    "Z": PreviewPaused,
    "E": PreviewExpired,
    "-": None,
    ".": CommandRefused,
    "u": JobUnknown,
    "c": JobIsCancelling,
    "t": JobIsTerminal,
}
"""Capitals are events, `-` is none, `.` and small letters are refusals."""

# Columns: Request, Start | start: scaffold code deps checks | complete: the same
#          | retry | sandbox, checks failed | Finish, Fail | Cancel, Confirm
#          | preview: Request, Resume, Pause, Expire
SPECIFICATION = """
    unknown            Qu  uuuu  uuuu  u  uu  uu  uu  uuuu
    queued             .S  ....  ....  .  B.  .F  X.  ....
    starting           .S  P...  ....  .  B.  .F  A.  ....
    scaffold           .S  ....  D...  W  B.  .F  A.  ....
    scaffold done      .S  .P..  ....  .  B.  .F  A.  ....
    code               .S  ....  .D..  W  B.  .F  A.  ....
    code done          .S  ..P.  ....  .  B.  .F  A.  ....
    deps               .S  ....  ..D.  W  BR  .F  A.  ....
    deps done          .S  ...P  ....  .  B.  .F  A.  ....
    checks             .S  ....  ...D  W  BR  .F  A.  ....
    checks done        .S  ....  ....  .  B.  YF  A.  ....
    checks failed      .S  .P..  ....  .  B.  .F  A.  ....
    taken over         .S  ...P  ....  .  B.  .F  A.  ....
    cancelling         .c  cccc  cccc  c  Bc  cF  -X  ....
    ready              .t  tttt  tttt  t  tt  tt  tt  V.ZE
    ready, simulated   .t  tttt  tttt  t  tt  tt  tt  ...-
    ready, waking      .t  tttt  tttt  W  Bt  tt  tt  -M.E
    ready, paused      .t  tttt  tttt  t  tt  tt  tt  V.-E
    ready, expired     .t  tttt  tttt  t  tt  tt  tt  V..-
    failed             .t  tttt  tttt  t  tt  tt  tt  ....
    cancelled          .t  tttt  tttt  t  tt  tt  tt  ....
"""


def specified() -> dict[str, str]:
    """Situation to its answers, one letter per command."""
    rows = (line.strip() for line in SPECIFICATION.strip().splitlines())
    return {row[:17].strip(): row[17:].replace(" ", "") for row in rows}


def letter(job: Job | None, command: Command) -> str:
    """What `decide` answers, as the table writes it."""
    answer: type[Known] | type[CommandRefused] | None
    try:
        events = decide(job, command)
    except CommandRefused as refusal:
        answer = type(refusal)
    else:
        assert len(events) <= 1
        answer = type(events[0]) if events else None
    return next(letter for letter, meaning in ANSWERS.items() if meaning is answer)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_job_answers_every_command_as_the_table_says(situation: str) -> None:
    job = state_after(SITUATIONS[situation])
    answers = "".join(letter(job, command) for command in commands_for(job).values())
    assert answers == specified()[situation]


def test_the_table_has_every_status_and_every_command() -> None:
    jobs = [job for history in SITUATIONS.values() if (job := state_after(history))]
    assert {job.status for job in jobs} == set(Status) == set(TRANSITIONS)
    assert {type(command) for command in commands_for(None).values()} == set(get_args(Command))
    assert specified().keys() == SITUATIONS.keys()
    assert {len(row) for row in specified().values()} == {len(commands_for(None))}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_answer_stays_where_it_is_or_goes_where_a_transition_leads(situation: str) -> None:
    history = list(SITUATIONS[situation])
    job = state_after(history)
    allowed = {job.status, *TRANSITIONS[job.status]} if job else {Status.QUEUED}
    for command in commands_for(job).values():
        try:
            events = decide(job, command)
        except CommandRefused:
            continue
        after = state_after([*history, *events])
        assert after is not None
        assert after.status in allowed, command


def test_a_refusal_says_which_job_which_command_and_why() -> None:
    job = state_after(SITUATIONS["failed"])
    assert job is not None
    with pytest.raises(JobIsTerminal) as caught:
        decide(job, RequestCancel(USER))
    refusal = caught.value
    assert (refusal.job, refusal.status, refusal.command) == (job.job, "failed", "RequestCancel")
    assert str(refusal) == f"job {job.job} has ended already: it is failed"


# --- what the events say -------------------------------------------------------------------------


def test_a_requested_build_is_queued_with_everything_that_was_asked_for() -> None:
    given().when(
        RequestBuild("acme", "ann", "shop", "a list", tier="pro", base_build=3)
    ).then(
        JobQueued(
            tenant="acme",
            user_id="ann",
            project_id="shop",
            goal="a list",
            tier="pro",
            base_build=3,
        )
    )  # fmt: skip


def test_a_build_walks_through_its_phases_in_order_and_is_ready() -> None:
    job = given(queued()).when(StartJob("w1", 1)).then(started())
    for phase in Phase:
        job = job.when(StartPhase(phase)).then(entered(phase))
        job = job.when(
            CompletePhase(
                phase,
                duration_ms=7,
                manifest="files-1" if phase is Phase.CODE else None,
                usage=Usage(10, 3, 0.25),
            )
        ).then(completed(phase))
    built = job.when(FinishBuild(4, "sb-1", "https://x.example", "/work")).then(
        JobReady(
            build_number=4,
            build_version="build_v0_4",
            sandbox_id="sb-1",
            preview_url="https://x.example",
            workspace_path="/work",
            manifest="files-1",
        )
    )
    assert built.job.status is Status.READY
    assert (built.job.input_tokens, built.job.output_tokens, built.job.cost_usd) == (40, 12, 1.0)


@pytest.mark.parametrize("last", list(Phase))
def test_a_build_is_not_finished_before_all_of_its_phases_are(last: Phase) -> None:
    begun = list(Phase)[: list(Phase).index(last) + 1]
    history = [queued(), started(), *phases(*begun[:-1]), entered(last)]
    given(*history).when(FinishBuild(1)).then_refused(CommandRefused)


# --- takeover ------------------------------------------------------------------------------------


def test_a_takeover_keeps_the_completed_phases_and_goes_on_behind_them() -> None:
    taken = (
        given(queued(), started(), *phases(Phase.SCAFFOLD, Phase.CODE), entered(Phase.DEPS))
        .when(StartJob("w2", 2))
        .then(started(2))
    )
    assert taken.job.completed == (Phase.SCAFFOLD, Phase.CODE)
    assert (taken.job.attempt, taken.job.worker, taken.job.manifest) == (2, "w2", "files-1")
    taken.when(StartPhase(Phase.CODE)).then_refused(CommandRefused, "not next")
    taken.when(StartPhase(Phase.DEPS)).then(entered(Phase.DEPS))


def test_a_takeover_sees_the_checks_again_even_if_they_were_completed() -> None:
    taken = given(*all_completed()).when(StartJob("w2", 2)).then(started(2))
    assert taken.job.completed == (Phase.SCAFFOLD, Phase.CODE, Phase.DEPS)
    taken.when(FinishBuild(1)).then_refused(CommandRefused)
    taken.when(StartPhase(Phase.CHECKS)).then(entered(Phase.CHECKS))


def test_a_takeover_keeps_the_time_at_which_the_job_first_started() -> None:
    first = given(queued(), started())
    taken = first.and_then(entered(Phase.SCAFFOLD), started(2))
    assert first.job.started_at is not None
    assert taken.job.started_at == first.job.started_at


@pytest.mark.parametrize("attempt", [0, 1, 2])
def test_an_attempt_that_is_not_newer_is_refused(attempt: int) -> None:
    job = given(queued(), started(), started(2))
    job.when(StartJob("late", attempt)).then_refused(CommandRefused, "attempt 2 was started")
    job.when(StartJob("w3", 3)).then(started(3))


# --- repair --------------------------------------------------------------------------------------


def test_failed_checks_lead_back_to_the_code_in_the_next_round() -> None:
    job = (
        given(*all_completed()[:-1])
        .when(RecordFailedChecks("f-1", "pytest", 1, "red"))
        .then(checks_failed())
    )
    assert (job.job.round, job.job.completed) == (2, (Phase.SCAFFOLD,))
    for phase in (Phase.CODE, Phase.DEPS, Phase.CHECKS):
        job = job.when(StartPhase(phase)).then(entered(phase, number=2))
        job = job.when(CompletePhase(phase, 1)).then(
            PhaseCompleted(phase=phase, round=2, duration_ms=1)
        )
    job.when(FinishBuild(1)).then(
        JobReady(build_number=1, build_version="build_v0_1", manifest="files-1")
    )


def test_an_app_that_cannot_be_installed_leads_back_to_the_code_in_the_next_round() -> None:
    job = (
        given(*SITUATIONS["deps"])
        .when(RecordFailedChecks("f-1", "npm ci", 1, "red", "it cannot be installed"))
        .then(
            ChecksFailed(
                phase=Phase.DEPS,
                round=1,
                fingerprint="f-1",
                command="npm ci",
                exit_code=1,
                output="red",
                message="it cannot be installed",
            )
        )
    )
    assert (job.job.round, job.job.completed) == (2, (Phase.SCAFFOLD,))
    job.when(StartPhase(Phase.CHECKS)).then_refused(CommandRefused)
    job.when(StartPhase(Phase.CODE)).then(entered(Phase.CODE, number=2))


def test_a_takeover_in_the_middle_of_a_repair_stays_in_its_round() -> None:
    taken = given(*all_completed()[:-1], checks_failed(), started(2))
    assert taken.job.round == 2
    taken.when(StartPhase(Phase.CODE)).then(entered(Phase.CODE, number=2))


def test_checks_that_failed_can_neither_fail_again_nor_be_completed() -> None:
    job = given(*all_completed()[:-1], checks_failed())
    job.when(RecordFailedChecks("f-1", "pytest", 1, "red")).then_refused(CommandRefused)
    job.when(CompletePhase(Phase.CHECKS, 1)).then_refused(CommandRefused, "not under way")


def test_checks_that_were_completed_cannot_fail_afterwards() -> None:
    given(*all_completed()).when(RecordFailedChecks("f-1", "pytest", 1, "red")).then_refused(
        CommandRefused, "no checks are under way"
    )


# --- cancel --------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once() -> None:
    job = given(queued()).when(RequestCancel("ann", "a typo"))
    assert job.then(JobCancelled(by="ann", reason="a typo")).job.status is Status.CANCELLED


def test_a_running_job_is_asked_to_stop_and_cancelled_when_it_has() -> None:
    asked = (
        given(queued(), started(), entered(Phase.SCAFFOLD))
        .when(RequestCancel("ann", "a typo"))
        .then(CancelRequested(by="ann", reason="a typo"))
    )
    assert asked.job.status is Status.CANCELLING
    done = asked.when(ConfirmCancel()).then(JobCancelled(by="worker"))
    assert done.job.status is Status.CANCELLED


def test_asking_again_to_cancel_records_nothing() -> None:
    given(*SITUATIONS["cancelling"]).when(RequestCancel("bob")).then_nothing()


@pytest.mark.parametrize("situation", ["ready", "failed", "cancelled"])
def test_a_job_that_has_ended_cannot_be_cancelled(situation: str) -> None:
    given(*SITUATIONS[situation]).when(RequestCancel("ann")).then_refused(JobIsTerminal)


def test_nobody_confirms_a_cancel_that_was_not_asked_for() -> None:
    for situation in ("queued", "starting", "checks done"):
        given(*SITUATIONS[situation]).when(ConfirmCancel()).then_refused(CommandRefused)


def test_a_sandbox_made_while_the_cancel_arrives_is_recorded_so_that_it_can_be_ended() -> None:
    job = (
        given(*SITUATIONS["cancelling"])
        .when(RecordSandbox("sb-1", "local", sandbox().ends_at))
        .then(sandbox())
    )
    assert (job.job.status, job.job.sandbox_id) == (Status.CANCELLING, "sb-1")


def test_a_job_that_cannot_be_cancelled_cleanly_fails() -> None:
    given(*SITUATIONS["cancelling"]).when(
        FailJob("runner", "try another goal", "dbg-1")
    ).then(failed())  # fmt: skip


# --- ends ----------------------------------------------------------------------------------------


def test_a_failure_names_the_phase_it_happened_in() -> None:
    job = given(*SITUATIONS["deps"]).when(FailJob("runner", "try another goal", "dbg-1"))
    job.then(failed(Phase.DEPS))


@pytest.mark.parametrize("end", [failed(), JobCancelled(by="worker")])
def test_a_job_without_a_build_has_no_sandbox_any_more(end: Known) -> None:
    job = given(queued(), started(), sandbox()).and_then(end).job
    assert (job.sandbox_id, job.sandbox_ends_at) == (None, None)


def test_an_expired_preview_leaves_the_build_and_takes_sandbox_and_address() -> None:
    job = given(*build()).when(ExpirePreview("time-out")).then(PreviewExpired(reason="time-out"))
    assert job.job.status is Status.READY
    assert (job.job.build_version, job.job.workspace_path) == ("build_v0_1", "/home/user/project")
    assert (job.job.preview_url, job.job.sandbox_id) == (None, None)


def test_a_preview_expires_once() -> None:
    given(*build(), PreviewExpired(reason="time-out")).when(ExpirePreview("again")).then_nothing()


def test_a_preview_that_was_asked_for_is_made_anew_and_its_sandbox_recorded_on_the_way() -> None:
    later = NOON + timedelta(hours=3)
    asked = (
        given(*build(), PreviewExpired(reason="time-out"))
        .when(RequestPreview("ann", later))
        .then(PreviewRequested(by="ann"))
    )
    assert (asked.job.preview, asked.job.is_terminal, asked.job.is_settled) == (
        Preview.WAKING,
        True,
        False,
    )
    made = asked.when(RecordSandbox("sb-2", "local", later)).then(
        SandboxCreated(sandbox_id="sb-2", provider="local", ends_at=later)
    )
    woken = made.when(ResumePreview("sb-2", "https://b.example", later)).then(
        PreviewResumed(sandbox_id="sb-2", preview_url="https://b.example", ends_at=later)
    )
    assert (woken.job.preview, woken.job.sandbox_id) == (Preview.RUNNING, "sb-2")
    woken.when(ResumePreview("sb-3", "https://c.example", later)).then_refused(CommandRefused)


def test_a_preview_that_lives_long_enough_is_not_asked_for() -> None:
    ends_at = sandbox().ends_at
    given(*build()).when(RequestPreview("ann", ends_at)).then_nothing()
    given(*build()).when(RequestPreview("ann", ends_at + timedelta(seconds=1))).then(
        PreviewRequested(by="ann")
    )


def test_a_preview_that_could_not_be_made_is_expired_with_the_reason() -> None:
    waking = given(*build(), PreviewExpired(reason="time-out"), PreviewRequested(by="ann"))
    failed = waking.when(ExpirePreview("no sandbox")).then(PreviewExpired(reason="no sandbox"))
    assert (failed.job.preview, failed.job.is_settled) == (Preview.EXPIRED, True)


def test_a_paused_preview_ends_when_it_is_not_kept_any_longer() -> None:
    until = NOON + timedelta(days=1)
    job = given(*build()).when(PausePreview(until)).then(PreviewPaused(kept_until=until)).job
    assert (job.preview, job.sandbox_ends_at) == (Preview.PAUSED, until)


def test_times_are_those_of_the_events() -> None:
    events = recorded(build())
    job = state_after(build())
    assert job is not None
    assert job.queued_at == events[0].time > NOON
    assert job.started_at == events[1].time
    assert job.finished_at == job.updated_at == events[-1].time
