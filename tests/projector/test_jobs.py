"""`jobs`: every job as it is now."""

from datetime import timedelta

from hypothesis import given as whatever

from projector.projections import JOBS, PROJECTIONS
from projector.projections.jobs import job_row, jobs
from schemas import Phase, Position
from schemas.events import (
    CancelRequested,
    JobCancelled,
    Known,
    PreviewExpired,
    PreviewPaused,
    PreviewResumed,
)
from tests.histories import (
    JOB,
    NOON,
    build,
    entered,
    failed,
    job_histories,
    phases,
    queued,
    recorded,
    repaired_build,
    started,
    state_after,
)
from tests.projector.given import OTHER_JOB, at, given

AT = Position(2, 1, 7)


def row_after(*payloads: Known) -> dict[str, object]:
    """The row of a job to which this happened."""
    job = state_after(payloads)
    assert job is not None
    row = job_row(job, AT)
    return {name: row[name] for name in JOBS.columns}


@whatever(job_histories())
def test_a_row_fills_every_column_and_each_with_what_it_takes(history: list[Known]) -> None:
    columns = row_after(*history)
    assert columns.keys() == set(jobs.columns.keys())
    for column in jobs.columns:
        value = columns[column.name]
        if value is None:
            assert column.nullable, column
        else:
            # Exactly: a StrEnum is a str to Python, and something else to a driver.
            assert type(value) is column.type.python_type, column


def test_a_queued_job_has_who_asked_and_what_for_and_nothing_of_a_build() -> None:
    assert row_after(queued()) == {
        "id": recorded([queued()])[0].job,
        "tenant": "acme",
        "user_id": "ann",
        "project_id": "shop",
        "goal": "a list",
        "tier": "free",
        "status": "queued",
        "attempt": 0,
        "worker": None,
        "round": 1,
        "version": 1,
        "base_build": None,
        "build_number": None,
        "build_version": None,
        "manifest": None,
        "failed_phase": None,
        "failure_kind": None,
        "error_message": None,
        "debug_id": None,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": 0.0,
        "repair_input_tokens": 0,
        "repair_output_tokens": 0,
        "repair_cost_usd": 0.0,
        "retries": 0,
        "restore": False,
        "log": None,
        "scaffold_ms": None,
        "code_ms": None,
        "deps_ms": None,
        "checks_ms": None,
        "queued_at": recorded([queued()])[0].time,
        "started_at": None,
        "finished_at": None,
        "updated_at": recorded([queued()])[0].time,
        "expires_at": None,
        "preview": None,
        "position": "2:1-7",
        "sandbox_id": None,
        "preview_url": None,
        "workspace_path": None,
    }


def test_a_ready_job_fills_the_four_sandbox_columns() -> None:
    columns = row_after(*build(3))
    assert {
        name: columns[name]
        for name in ("sandbox_id", "preview_url", "build_version", "workspace_path")
    } == {
        "sandbox_id": "sb-1",
        "preview_url": "https://8080-sb-1.example",
        "build_version": "build_v0_3",
        "workspace_path": "/home/user/project",
    }


def test_an_expired_preview_empties_sandbox_and_address_and_keeps_the_build() -> None:
    columns = row_after(*build(3), PreviewExpired(reason="time-out"))
    assert (columns["sandbox_id"], columns["preview_url"]) == (None, None)
    assert (columns["build_version"], columns["workspace_path"]) == (
        "build_v0_3",
        "/home/user/project",
    )


def test_a_failed_job_says_where_how_and_under_which_debug_id() -> None:
    columns = row_after(queued(), started(), failed(Phase.DEPS))
    assert columns["status"] == "failed"
    assert columns["failed_phase"] == "deps"
    assert columns["failure_kind"] == "runner"
    assert columns["error_message"] == "try another goal"
    assert columns["debug_id"] == "dbg-1"


def test_a_repaired_build_counts_what_all_its_rounds_have_used() -> None:
    columns = row_after(*repaired_build())
    assert (columns["attempt"], columns["round"], columns["status"]) == (2, 2, "ready")
    # Six phases were completed, ten and three tokens and a quarter each.
    assert (columns["input_tokens"], columns["output_tokens"], columns["cost_usd"]) == (60, 18, 1.5)
    assert columns["manifest"] == "files-2"


def test_a_job_names_the_worker_that_has_it() -> None:
    columns = row_after(queued(), started(), started(2))
    assert (columns["worker"], columns["attempt"]) == ("w2", 2)


def test_a_phase_takes_as_long_as_all_its_rounds_together() -> None:
    columns = row_after(*repaired_build())
    taken = {phase: columns[f"{phase}_ms"] for phase in Phase}
    assert taken == {"scaffold": 7, "code": 14, "deps": 14, "checks": 7}


def test_a_phase_that_was_not_completed_has_taken_no_time() -> None:
    columns = row_after(queued(), started(), *phases(Phase.SCAFFOLD), entered(Phase.CODE))
    assert (columns["scaffold_ms"], columns["code_ms"]) == (7, None)


def test_a_cancelled_job_is_cancelling_until_its_worker_confirms() -> None:
    asked: list[Known] = [queued(), started(), CancelRequested(by="ann")]
    assert row_after(*asked)["status"] == "cancelling"
    confirmed = row_after(*asked, JobCancelled(by="ann"))
    assert (confirmed["status"], confirmed["finished_at"]) == ("cancelled", at(4))


def test_a_preview_is_paused_resumed_and_expired() -> None:
    later = NOON + timedelta(hours=5)
    resumed = PreviewResumed(sandbox_id="sb-2", preview_url="https://b.example", ends_at=later)
    history: list[Known] = [*build()]
    seen = []
    for event in (PreviewPaused(), resumed, PreviewExpired(reason="time-out")):
        history.append(event)
        columns = row_after(*history)
        assert columns["status"] == "ready"
        seen.append(tuple(columns[name] for name in ("preview", "sandbox_id", "expires_at")))
    assert seen == [
        ("paused", "sb-1", NOON + timedelta(hours=1)),
        ("running", "sb-2", later),
        ("expired", None, None),
    ]


def test_every_job_has_its_own_row_with_the_position_of_its_last_event() -> None:
    two = given(queued(), started()).and_job(queued(), tenant="globex", project="till")
    assert two.values(JOBS, "id", "tenant", "project_id", "version", "position") == [
        (JOB, "acme", "shop", 2, "2:1-2"),
        (OTHER_JOB, "globex", "till", 1, "2:1-3"),
    ]


@whatever(job_histories())
def test_no_history_makes_a_row_with_a_column_too_many_or_too_few(history: list[Known]) -> None:
    for projection in PROJECTIONS:
        for row in given(*history).rows(projection):
            assert row.keys() == set(projection.columns)
            assert all(row[name] is not None for name in projection.key)
