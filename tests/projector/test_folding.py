"""One more event of a job, and whole histories of many, in memory."""

import pytest

from eventstore import LogEntry
from projector import HistoryBroken
from projector.folding import Folding, advance, fold_entries
from projector.projection import Change, Projection
from projector.projections import JOBS, PHASES, PROJECTIONS
from schemas import Job, Position, RecordedEvent
from schemas.events import JobStarted, UnknownEvent, Unreadable
from tests.histories import (
    JOB,
    NOON,
    SITUATIONS,
    all_completed,
    build,
    queued,
    recorded,
    started,
    state_after,
)
from tests.projector.given import OTHER_JOB

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


def test_a_job_that_is_queued_once_more_is_refused() -> None:
    first, second = recorded([queued(), queued()])
    with pytest.raises(HistoryBroken):
        advance(advance(None, first), second)


def test_an_unknown_event_advances_the_version_so_that_the_next_one_fits() -> None:
    first, second, third = recorded([queued(), started(), started(2)])
    unknown = second._replace(type="JobPraised", payload=UnknownEvent())
    job = advance(advance(advance(None, first), unknown), third)
    assert (job.version, job.attempt) == (3, 2)
    assert job.queued_at > NOON


# --- many jobs -----------------------------------------------------------------------------------


def entries_of(*jobs: str) -> list[LogEntry]:
    """Builds of these jobs, event by event in turn."""
    histories = [recorded(build(), job=job) for job in jobs]
    turns = [event for turn in zip(*histories, strict=True) for event in turn]
    return [LogEntry(Position(0, 1, seq), event) for seq, event in enumerate(turns, start=1)]


def test_a_job_that_cannot_be_folded_is_parked_there_and_the_others_go_on() -> None:
    entries = entries_of(JOB, OTHER_JOB)
    position, spoilt = entries[6]
    entries[6] = LogEntry(position, spoilt._replace(payload=Unreadable(reason="no JSON")))
    folding = fold_entries(PROJECTIONS, entries, {}, {})
    (parked,) = folding.parked
    assert (parked.job, parked.position, parked.version) == (JOB, position, 4)
    assert "no JSON" in parked.error
    versions = {row["id"]: row["version"] for row in folding.rows()[JOBS].values()}
    assert versions == {JOB: 3, OTHER_JOB: len(build())}


def test_what_was_set_aside_before_is_folded_up_to_there_and_not_parked_again() -> None:
    entries = entries_of(JOB, OTHER_JOB)
    folding = fold_entries(PROJECTIONS, entries, {}, {JOB: entries[6].position})
    versions = {row["id"]: row["version"] for row in folding.rows()[JOBS].values()}
    assert versions == {JOB: 3, OTHER_JOB: len(build())}
    assert folding.parked == []


def test_rows_that_were_asked_for_in_the_middle_are_the_same_in_the_end() -> None:
    entries = entries_of(JOB, OTHER_JOB)
    folding, states = Folding(PROJECTIONS), dict[str, Job]()
    for entry in entries:
        folding.add(entry.event.job, [entry], states)
        folding.rows()
    assert folding.rows() == fold_entries(PROJECTIONS, entries, {}, {}).rows()


def test_a_fold_that_raises_parks_the_job_and_leaves_the_others_alone() -> None:
    def stumble(_: Job | None, event: RecordedEvent, __: Job) -> Change | None:
        if event.job == JOB:
            raise KeyError("colour")
        return None

    stumbling = Projection(PHASES.table, of_event={JobStarted: stumble})
    folding = fold_entries([JOBS, stumbling], entries_of(JOB, OTHER_JOB), {}, {})
    assert [(one.job, one.version, one.error) for one in folding.parked] == [(JOB, 2, "'colour'")]
    found = {row["id"]: row["version"] for row in folding.rows()[JOBS].values()}
    assert found == {JOB: 1, OTHER_JOB: len(build())}
