"""`projects`: what each project has come to."""

from datetime import timedelta
from decimal import Decimal

from eventstore import LogEntry
from projector.folding import fold_entries
from projector.projections import PROJECTS
from projector.projections.money import usd
from schemas import Phase, Position
from schemas.events import JobCancelled, Known, PhaseCompleted, PreviewExpired
from tests.histories import JOB, build, completed, failed, queued, recorded, repaired_build, started
from tests.projector.given import OTHER_JOB, THIRD_JOB, Given, at, given

COUNTS = ("jobs", "ready", "failed", "cancelled", "latest_build")


def spent(*costs: float) -> list[Known]:
    """Completed phases that cost so much each."""
    return [completed(Phase.CODE).model_copy(update={"cost_usd": cost}) for cost in costs]


def test_a_queued_job_makes_its_project() -> None:
    assert given(queued()).rows(PROJECTS) == [
        {
            "tenant": "acme",
            "project_id": "shop",
            "latest_build": None,
            "jobs": 1,
            "ready": 0,
            "failed": 0,
            "cancelled": 0,
            "input_tokens": 0,
            "output_tokens": 0,
            "cost_usd": Decimal(0),
            "created_at": at(1),
            "updated_at": at(1),
        }
    ]


def test_each_job_counts_once_and_as_what_became_of_it() -> None:
    several = (
        given(*build(1))
        .and_job(queued(), started(), failed(), job=OTHER_JOB)
        .and_job(queued(), JobCancelled(by="ann"), job=THIRD_JOB)
        .and_job(queued(), started(), started(2), job="01900000-0000-7000-8000-000000000004")
    )
    assert several.values(PROJECTS, *COUNTS) == [(4, 1, 1, 1, 1)]


def test_the_latest_build_is_the_highest_number_in_whatever_order_they_come() -> None:
    assert given(*build(2)).and_job(*build(1)).values(PROJECTS, "latest_build") == [(2,)]
    assert given(*build(1)).and_job(*build(2)).values(PROJECTS, "latest_build") == [(2,)]


def test_a_project_uses_what_all_its_jobs_used_in_all_their_rounds() -> None:
    used = given(*build(1)).and_job(*repaired_build(2))
    # Four phases and six, ten tokens and three and a quarter of a dollar each.
    assert used.values(PROJECTS, "input_tokens", "output_tokens", "cost_usd") == [
        (100, 30, Decimal("2.5"))
    ]


def test_a_project_is_as_new_as_its_last_change_and_as_old_as_its_first_job() -> None:
    both = given(queued(), started(), failed()).and_job(queued())
    assert both.values(PROJECTS, "created_at", "updated_at") == [(at(1), at(3))]


def test_a_job_that_ends_before_it_was_queued_makes_its_project_no_older() -> None:
    first, second = recorded([queued(), failed()])
    behind = second._replace(time=first.time - timedelta(seconds=5))
    entries = [LogEntry(Position(2, 1, 1), first), LogEntry(Position(2, 1, 2), behind)]
    (row,) = fold_entries([PROJECTS], entries, {}, {}).rows()[PROJECTS].values()
    assert row["updated_at"] == first.time


def test_what_a_preview_does_changes_no_project() -> None:
    expired = [*build(), PreviewExpired(reason="time-out")]
    assert given(*expired).rows(PROJECTS) == given(*build()).rows(PROJECTS)


def test_a_phase_that_used_nothing_leaves_the_project_as_it_is() -> None:
    free = PhaseCompleted(phase=Phase.DEPS, duration_ms=7)
    assert given(queued(), started(), free).rows(PROJECTS) == given(queued()).rows(PROJECTS)


def test_projects_of_the_same_name_are_their_tenants_own() -> None:
    several = (
        given(queued())
        .and_job(queued(), tenant="globex")
        .and_job(queued(), job=THIRD_JOB, project="till")
    )
    assert several.values(PROJECTS, "tenant", "project_id", "jobs") == [
        ("acme", "shop", 1),
        ("acme", "till", 1),
        ("globex", "shop", 1),
    ]


# --- money ---------------------------------------------------------------------------------------


def test_ten_dimes_are_a_dollar() -> None:
    dimes = [0.1] * 10
    assert sum(dimes) != 1
    assert given(queued(), *spent(*dimes)).values(PROJECTS, "cost_usd") == [(Decimal(1),)]


def test_a_sum_of_money_is_the_same_in_any_order() -> None:
    costs = [1e9, 0.1, 0.2, 1e-9]
    assert sum(costs) != sum(reversed(costs))

    def summed(order: list[float]) -> list[tuple[object, ...]]:
        jobs = Given()
        for number, cost in enumerate(order):
            jobs.and_job(queued(), *spent(cost), job=f"{JOB[:-1]}{number}")
        return jobs.values(PROJECTS, "cost_usd")

    assert summed(costs) == summed(costs[::-1]) == [(Decimal("1000000000.300000001"),)]


def test_money_takes_whatever_a_float_can_be() -> None:
    assert usd(1e300) == Decimal.from_float(1e300)
    assert usd(5e-324) == 0
