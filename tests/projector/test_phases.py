"""`phases`: a row for each time that a job was in a phase, and how it left it."""

from projector.projections import PHASES
from schemas import Phase
from schemas.events import CancelRequested, JobCancelled, Known, PhaseCompleted, UnknownEvent
from tests.histories import (
    JOB,
    build,
    checks_failed,
    completed,
    entered,
    failed,
    phases,
    queued,
    repaired_build,
    sandbox,
    started,
)
from tests.projector.given import OTHER_JOB, at, given

WHERE = ("attempt", "round", "phase", "outcome")


def outcomes(*history: Known) -> set[tuple[object, ...]]:
    """Attempt, round, phase and outcome of each row."""
    return set(given(*history).values(PHASES, *WHERE))


def test_a_phase_that_a_job_is_in_is_running() -> None:
    assert given(queued(), started(), entered(Phase.SCAFFOLD)).rows(PHASES) == [
        {
            "job_id": JOB,
            "attempt": 1,
            "round": 1,
            "phase": "scaffold",
            "tenant": "acme",
            "project_id": "shop",
            "started_at": at(3),
            "finished_at": None,
            "duration_ms": None,
            "outcome": "running",
            "input_tokens": 0,
            "output_tokens": 0,
            "cost_usd": 0.0,
        }
    ]


def test_a_completed_phase_says_when_how_long_and_at_what_cost() -> None:
    assert given(queued(), started(), *phases(Phase.CODE)).rows(PHASES) == [
        {
            "job_id": JOB,
            "attempt": 1,
            "round": 1,
            "phase": "code",
            "tenant": "acme",
            "project_id": "shop",
            "started_at": at(3),
            "finished_at": at(4),
            "duration_ms": 7,
            "outcome": "completed",
            "input_tokens": 10,
            "output_tokens": 3,
            "cost_usd": 0.25,
        }
    ]


def test_a_build_has_been_in_each_phase_once() -> None:
    assert outcomes(*build()) == {(1, 1, phase, "completed") for phase in Phase}


def test_a_job_that_only_waits_has_been_in_none() -> None:
    assert outcomes(queued()) == outcomes(queued(), started()) == set()


# --- how a phase is left -------------------------------------------------------------------------


def test_a_take_over_interrupts_the_phase_and_the_next_attempt_has_a_row_of_its_own() -> None:
    begun: list[Known] = [
        queued(),
        started(),
        *phases(Phase.SCAFFOLD),
        entered(Phase.CODE),
        started(2),
    ]
    assert outcomes(*begun) == {
        (1, 1, "scaffold", "completed"),
        (1, 1, "code", "interrupted"),
    }
    assert outcomes(*begun, *phases(Phase.CODE)) == {
        (1, 1, "scaffold", "completed"),
        (1, 1, "code", "interrupted"),
        (2, 1, "code", "completed"),
    }


def test_an_interrupted_phase_ends_when_it_was_taken_over() -> None:
    history: list[Known] = [queued(), started(), entered(Phase.CODE), started(2)]
    times = given(*history).values(PHASES, "started_at", "finished_at", "duration_ms")
    assert times == [(at(3), at(4), None)]


def test_a_take_over_between_two_phases_interrupts_none() -> None:
    assert outcomes(queued(), started(), *phases(Phase.SCAFFOLD), started(2)) == {
        (1, 1, "scaffold", "completed")
    }


def test_failed_checks_fail_the_phase_and_the_repair_is_another_round() -> None:
    assert outcomes(*repaired_build()) == {
        (1, 1, "scaffold", "completed"),
        (2, 1, "code", "completed"),
        (2, 1, "deps", "completed"),
        (2, 1, "checks", "failed"),
        (2, 2, "code", "completed"),
        (2, 2, "deps", "completed"),
        (2, 2, "checks", "completed"),
    }


def test_a_failure_fails_the_phase_that_the_job_was_in() -> None:
    begun: list[Known] = [
        queued(),
        started(),
        *phases(Phase.SCAFFOLD, Phase.CODE),
        entered(Phase.DEPS),
    ]
    assert outcomes(*begun, failed(Phase.DEPS)) == {
        (1, 1, "scaffold", "completed"),
        (1, 1, "code", "completed"),
        (1, 1, "deps", "failed"),
    }


def test_a_failure_before_the_first_phase_fails_none() -> None:
    assert outcomes(queued(), started(), failed()) == set()


def test_a_cancel_ends_the_phase_and_its_confirmation_changes_nothing() -> None:
    asked: list[Known] = [queued(), started(), entered(Phase.CODE), CancelRequested(by="ann")]
    assert outcomes(*asked) == {(1, 1, "code", "cancelled")}
    confirmed: list[Known] = [*asked, JobCancelled(by="ann")]
    assert given(*confirmed).rows(PHASES) == given(*asked).rows(PHASES)


# --- more than one -------------------------------------------------------------------------------


def test_checks_that_a_second_attempt_sees_again_are_two_rows() -> None:
    history: list[Known] = [
        queued(),
        started(),
        sandbox(),
        *phases(Phase.CHECKS),
        started(2),
        *phases(Phase.CHECKS),
    ]
    assert outcomes(*history) == {(1, 1, "checks", "completed"), (2, 1, "checks", "completed")}


def test_a_completion_counts_in_the_round_that_it_names() -> None:
    late: PhaseCompleted = completed(Phase.CODE, number=1)
    history: list[Known] = [queued(), started(), entered(Phase.CODE), checks_failed(), late]
    assert (1, 1, "code", "completed") in outcomes(*history)


def test_every_job_has_its_own_rows() -> None:
    two = given(queued(), started(), entered(Phase.CODE)).and_job(
        queued(), started(), *phases(Phase.CODE), tenant="globex", project="till"
    )
    assert two.values(PHASES, "job_id", "tenant", "project_id", "outcome") == [
        (JOB, "acme", "shop", "running"),
        (OTHER_JOB, "globex", "till", "completed"),
    ]


def test_an_unknown_event_moves_no_phase() -> None:
    unknown = UnknownEvent()
    history: list[Known] = [queued(), started(), entered(Phase.CODE)]
    assert given(*history, unknown).rows(PHASES) == given(*history).rows(PHASES)  # type: ignore[arg-type]
