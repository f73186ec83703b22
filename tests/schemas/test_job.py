"""What holds of every history: of those that commands lead to, and of any recorded facts."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import (
    TERMINAL,
    TRANSITIONS,
    CommandRefused,
    Job,
    Phase,
    Status,
    UndecodableEvent,
    decide,
    evolve,
    fold,
)
from schemas.events import (
    AnyPayload,
    JobQueued,
    Known,
    PreviewExpired,
    PreviewPaused,
    PreviewResumed,
    UnknownEvent,
    Unreadable,
)
from schemas.evolving import CHANGES
from tests.histories import (
    NOON,
    build,
    commands_for,
    job_histories,
    queued,
    recorded,
    repaired_build,
    started,
    state_after,
)
from tests.schemas.payloads import any_payload

any_facts = st.lists(any_payload, max_size=12)
long_examples = settings(max_examples=40)


def steps(history: Sequence[Known]) -> list[Job]:
    """The job after each of its events."""
    states: list[Job] = []
    job = None
    for event in recorded(history):
        job = evolve(job, event)
        assert job is not None
        states.append(job)
    return states


@given(st.lists(st.integers(min_value=0), max_size=40))
def test_no_sequence_of_commands_leads_off_the_map(choices: list[int]) -> None:
    job: Job | None = None
    for choice in choices:
        commands = list(commands_for(job).values())
        try:
            events = decide(job, commands[choice % len(commands)])
        except CommandRefused:
            continue
        after = fold(recorded(events, after=job.version if job else 0), job)
        if job is None:
            assert after is None or after.status is Status.QUEUED
        else:
            assert after is not None
            assert after.status is job.status or after.status in TRANSITIONS[job.status]
        job = after


@given(job_histories())
@long_examples
def test_every_step_of_a_decided_history_is_a_transition(history: list[Known]) -> None:
    states = steps(history)
    assert states[0].status is Status.QUEUED
    for before, after in pairwise(states):
        assert after.status is before.status or after.status in TRANSITIONS[before.status]


@given(job_histories())
@long_examples
def test_a_decided_history_never_leaves_a_terminal_status(history: list[Known]) -> None:
    statuses = [state.status for state in steps(history)]
    ends = [number for number, status in enumerate(statuses) if status in TERMINAL]
    if ends:
        assert set(statuses[ends[0] :]) == {statuses[ends[0]]}


@given(job_histories())
@long_examples
def test_a_finished_time_stands_exactly_in_jobs_that_have_ended(history: list[Known]) -> None:
    for state in steps(history):
        assert (state.finished_at is not None) is state.is_terminal


@given(job_histories())
@long_examples
def test_a_ready_job_has_seen_every_phase_and_has_its_number(history: list[Known]) -> None:
    for state in steps(history):
        assert (state.build_number is not None) is (state.status is Status.READY)
        if state.status is Status.READY:
            assert state.next_phase is None


@given(job_histories())
@long_examples
def test_no_phase_is_completed_twice_and_none_before_the_one_in_front_of_it(
    history: list[Known],
) -> None:
    for state in steps(history):
        assert state.completed == tuple(Phase)[: len(state.completed)]


@given(any_facts)
def test_evolve_takes_every_recorded_fact_in_any_state(facts: list[Known]) -> None:
    states = steps([queued(), *facts])
    assert [state.version for state in states] == list(range(1, len(facts) + 2))


@given(any_facts)
def test_the_version_is_the_number_of_events(facts: list[Known]) -> None:
    job = state_after([queued(), *facts])
    assert job is not None
    assert job.version == len(facts) + 1


@given(any_facts, st.integers(min_value=0))
def test_folding_may_stop_anywhere_and_go_on(facts: list[Known], cut: int) -> None:
    events = recorded([queued(), *facts])
    cut %= len(events) + 1
    assert fold(events[cut:], fold(events[:cut])) == fold(events)
    assert fold(events) == steps([queued(), *facts])[-1]


@given(any_facts)
def test_a_history_without_its_beginning_tells_no_job(facts: list[Known]) -> None:
    without = [fact for fact in facts if fact.type != "JobQueued"]
    assert fold(recorded(without)) is None


@given(job_histories())
@long_examples
def test_an_event_of_an_unknown_type_moves_only_version_and_time(history: list[Known]) -> None:
    events = recorded(history)
    job = fold(events)
    assert job is not None
    unknown = events[-1]._replace(
        type="JobPraised",
        version=job.version + 1,
        time=events[-1].time.replace(year=2030),
        payload=UnknownEvent(),
    )
    assert evolve(job, unknown) == replace(job, version=unknown.version, updated_at=unknown.time)


def test_every_event_means_something_for_a_job() -> None:
    assert {JobQueued, *CHANGES} == set(get_args(AnyPayload))


def test_an_event_that_was_read_without_its_payload_cannot_be_folded() -> None:
    (first, second) = recorded([queued(), started()])
    with pytest.raises(UndecodableEvent, match="JobStarted cannot be decoded: half of it is gone"):
        fold([first, second._replace(payload=Unreadable(reason="half of it is gone"))])


def test_a_phase_takes_as_long_as_all_its_rounds_together() -> None:
    job = state_after(repaired_build())
    assert job is not None
    assert (job.scaffold_ms, job.code_ms, job.deps_ms, job.checks_ms) == (7, 14, 14, 7)


def test_a_preview_runs_sleeps_runs_again_and_expires() -> None:
    resumed = PreviewResumed(sandbox_id="sb-2", preview_url="https://elsewhere", ends_at=NOON)
    later: list[Known] = [PreviewPaused(), resumed, PreviewExpired(reason="time-out")]
    found = [state_after([*build(), *later[:count]]) for count in range(4)]
    assert [job.preview for job in found if job] == ["running", "paused", "running", "expired"]
    assert [job.sandbox_id for job in found if job] == ["sb-1", "sb-1", "sb-2", None]
