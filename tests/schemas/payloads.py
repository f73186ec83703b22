"""Any payload of every event type: what a recorded fact may look like."""

from datetime import UTC, timedelta, timezone

from hypothesis import strategies as st

from schemas import Phase
from schemas.events import (
    MAX_GOAL_CHARS,
    MAX_OUTPUT_CHARS,
    CancelRequested,
    ChecksFailed,
    JobCancelled,
    JobFailed,
    JobQueued,
    JobReady,
    JobStarted,
    Known,
    Limits,
    PhaseCompleted,
    PhaseStarted,
    PreviewExpired,
    PreviewPaused,
    PreviewRequested,
    PreviewResumed,
    RetryScheduled,
    SandboxCreated,
)

_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(_characters, max_size=20)
slugs = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
times = st.datetimes(
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
)
phases = st.sampled_from(Phase)
numbers = st.integers(min_value=1)
counts = st.integers(min_value=0)
facts = st.one_of(
    texts, st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none()
)

usage = {
    "input_tokens": counts,
    "output_tokens": counts,
    "cost_usd": st.floats(min_value=0, allow_infinity=False),
}

payloads: dict[type[Known], st.SearchStrategy[Known]] = {
    JobQueued: st.builds(
        JobQueued,
        tenant=slugs,
        user_id=slugs,
        project_id=slugs,
        goal=st.text(_characters, min_size=1, max_size=MAX_GOAL_CHARS),
        tier=st.sampled_from(["free", "pro"]),
        base_build=st.none() | numbers,
        base_manifest=st.none() | texts,
        base_job=st.none() | slugs,
        restore=st.booleans(),
        in_place=st.booleans(),
        limits=st.builds(
            Limits,
            max_tokens=st.none() | numbers,
            max_cost_usd=st.none() | st.floats(0, 1e9, exclude_min=True),
            max_wall_s=st.none() | numbers,
            max_repairs=st.integers(0, 10),
        ),
    ),
    JobStarted: st.builds(JobStarted, attempt=numbers, worker=texts),
    PhaseStarted: st.builds(PhaseStarted, phase=phases, round=numbers),
    PhaseCompleted: st.builds(
        PhaseCompleted,
        phase=phases,
        round=numbers,
        duration_ms=counts,
        evidence=st.dictionaries(texts, facts, max_size=5),
        manifest=st.none() | texts,
        **usage,
    ),
    RetryScheduled: st.builds(
        RetryScheduled,
        phase=phases,
        round=numbers,
        step=texts,
        tries=numbers,
        kind=texts,
        message=texts,
        wait_s=st.floats(min_value=0, allow_infinity=False),
        **usage,
    ),
    SandboxCreated: st.builds(SandboxCreated, sandbox_id=texts, provider=texts, ends_at=times),
    ChecksFailed: st.builds(
        ChecksFailed,
        phase=phases,
        round=numbers,
        fingerprint=texts,
        command=texts,
        exit_code=st.none() | st.integers(),
        output=st.text(_characters, max_size=MAX_OUTPUT_CHARS),
        message=texts,
    ),
    CancelRequested: st.builds(CancelRequested, by=texts, reason=texts),
    JobReady: st.builds(
        JobReady,
        build_number=numbers,
        build_version=texts,
        sandbox_id=st.none() | texts,
        preview_url=st.none() | texts,
        workspace_path=st.none() | texts,
        manifest=st.none() | texts,
        log=st.none() | texts,
    ),
    JobFailed: st.builds(
        JobFailed,
        phase=st.none() | phases,
        kind=texts,
        message=texts,
        debug_id=texts,
        log=st.none() | texts,
        **usage,
    ),
    JobCancelled: st.builds(JobCancelled, by=texts, reason=texts, log=st.none() | texts, **usage),
    PreviewRequested: st.builds(PreviewRequested, by=texts),
    PreviewPaused: st.builds(PreviewPaused, kept_until=st.none() | times),
    PreviewResumed: st.builds(PreviewResumed, sandbox_id=texts, preview_url=texts, ends_at=times),
    PreviewExpired: st.builds(PreviewExpired, reason=texts, continued_by=st.none() | slugs),
}

any_payload: st.SearchStrategy[Known] = st.one_of(*payloads.values())
