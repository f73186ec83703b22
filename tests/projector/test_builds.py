"""`builds`: what became READY, numbered within its project."""

from datetime import timedelta

from projector.projections import BUILDS
from schemas import Phase
from schemas.events import (
    JobCancelled,
    Known,
    PreviewExpired,
    PreviewPaused,
    PreviewResumed,
)
from tests.histories import (
    JOB,
    NOON,
    SITUATIONS,
    all_completed,
    build,
    failed,
    queued,
    repaired_build,
    started,
)
from tests.projector.given import OTHER_JOB, THIRD_JOB, at, given

PREVIEW = ("preview", "preview_url", "sandbox_id", "expires_at")


def preview(*behind: Known) -> list[tuple[object, ...]]:
    """The preview of a build to which this happened."""
    return given(*build(), *behind).values(BUILDS, *PREVIEW)


def test_a_ready_job_is_a_build() -> None:
    assert given(*build(3)).rows(BUILDS) == [
        {
            "tenant": "acme",
            "project_id": "shop",
            "number": 3,
            "job_id": JOB,
            "version": "build_v0_3",
            "goal": "a list",
            "manifest": "files-1",
            "parent": None,
            "preview": "running",
            "preview_url": "https://8080-sb-1.example",
            "sandbox_id": "sb-1",
            "workspace_path": "/home/user/project",
            "cost_usd": 1.0,
            "ready_at": at(len(build())),
            "expires_at": NOON + timedelta(hours=1),
        }
    ]


def test_a_job_that_is_not_ready_is_no_build() -> None:
    for situation, history in SITUATIONS.items():
        rows = given(*history).rows(BUILDS)
        assert bool(rows) == situation.startswith("ready"), situation


def test_a_job_that_failed_or_was_cancelled_with_all_phases_done_is_no_build() -> None:
    assert given(*all_completed(), failed(Phase.CHECKS)).rows(BUILDS) == []
    assert given(*all_completed(), JobCancelled(by="ann")).rows(BUILDS) == []


def test_a_build_names_the_one_whose_files_it_began_with() -> None:
    based = queued().model_copy(update={"base_build": 2})
    assert given(based, *build(3)[1:]).values(BUILDS, "number", "parent") == [(3, 2)]


def test_a_repaired_build_has_the_files_of_its_last_round_and_the_cost_of_all() -> None:
    assert given(*repaired_build(2)).values(BUILDS, "manifest", "cost_usd") == [("files-2", 1.5)]


def test_a_simulated_build_has_no_preview() -> None:
    history = SITUATIONS["ready, simulated"]
    assert given(*history).values(BUILDS, "preview", "preview_url", "sandbox_id") == [
        (None, None, None)
    ]


# --- its preview ---------------------------------------------------------------------------------


def test_a_paused_preview_keeps_sandbox_and_address() -> None:
    assert preview(PreviewPaused()) == [
        ("paused", "https://8080-sb-1.example", "sb-1", NOON + timedelta(hours=1))
    ]


def test_a_resumed_preview_may_be_elsewhere() -> None:
    later = NOON + timedelta(hours=5)
    resumed = PreviewResumed(sandbox_id="sb-2", preview_url="https://b.example", ends_at=later)
    assert preview(PreviewPaused(), resumed) == [("running", "https://b.example", "sb-2", later)]


def test_an_expired_preview_leaves_the_build_and_its_files() -> None:
    assert preview(PreviewExpired(reason="time-out")) == [("expired", None, None, None)]
    history = [*build(3), PreviewExpired(reason="time-out")]
    kept = ("number", "manifest", "workspace_path", "ready_at")
    assert given(*history).values(BUILDS, *kept) == [
        (3, "files-1", "/home/user/project", at(len(build())))
    ]


# --- more than one -------------------------------------------------------------------------------


def test_projects_number_their_builds_by_themselves() -> None:
    several = (
        given(*build(1))
        .and_job(*build(2), job=OTHER_JOB)
        .and_job(*build(1), job=THIRD_JOB, project="till")
        .and_job(queued(), started(), job="01900000-0000-7000-8000-000000000004")
    )
    assert several.values(BUILDS, "project_id", "number", "job_id") == [
        ("shop", 1, JOB),
        ("shop", 2, OTHER_JOB),
        ("till", 1, THIRD_JOB),
    ]
