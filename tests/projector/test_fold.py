"""From events to a row, without a server."""

import pytest
from hypothesis import given

from projector import HistoryBroken
from projector.fold import advance, row
from projector.tables import jobs
from schemas import Job, Phase, Position
from schemas.events import Known, PreviewExpired, UnknownEvent
from tests.histories import (
    NOON,
    SITUATIONS,
    all_completed,
    build,
    failed,
    job_histories,
    queued,
    recorded,
    repaired_build,
    started,
    state_after,
)

AT = Position(2, 1, 7)


def row_after(*payloads: Known) -> dict[str, object]:
    """The row of a job to which this happened."""
    job = state_after(payloads)
    assert job is not None
    return row(job, AT)


# --- row -----------------------------------------------------------------------------------------


@given(job_histories())
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
        "queued_at": recorded([queued()])[0].time,
        "started_at": None,
        "finished_at": None,
        "updated_at": recorded([queued()])[0].time,
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


# --- advance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if name != "unknown"])
def test_a_whole_history_advances_to_its_state(situation: str) -> None:
    job: Job | None = None
    for event in recorded(SITUATIONS[situation]):
        job = advance(job, event)
    assert job == state_after(SITUATIONS[situation])


def test_a_hole_in_a_history_is_refused_with_both_versions() -> None:
    events = recorded(all_completed())
    job = advance(None, events[0])
    with pytest.raises(HistoryBroken, match="version 2 expected, 4 found") as caught:
        advance(job, events[3])
    assert (caught.value.job, caught.value.expected, caught.value.found) == (job.job, 2, 4)


def test_an_event_that_was_folded_already_is_refused() -> None:
    events = recorded(all_completed())
    job = advance(advance(None, events[0]), events[1])
    for event in events[:2]:
        with pytest.raises(HistoryBroken):
            advance(job, event)


def test_a_history_that_does_not_begin_at_its_beginning_is_refused() -> None:
    with pytest.raises(HistoryBroken):
        advance(None, recorded(all_completed())[1])
    with pytest.raises(HistoryBroken):
        advance(None, recorded([started()])[0])


def test_an_unknown_event_advances_the_version_so_that_the_next_one_fits() -> None:
    first, second, third = recorded([queued(), started(), started(2)])
    unknown = second._replace(type="JobPraised", payload=UnknownEvent())
    job = advance(advance(advance(None, first), unknown), third)
    assert (job.version, job.attempt) == (3, 2)
    assert job.queued_at > NOON
