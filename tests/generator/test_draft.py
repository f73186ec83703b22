"""Drafts: what is kept of a run, and that nothing of it stays."""

from pathlib import Path

import pytest

from generator.artifacts import ArtifactStore
from generator.drafts import NO_DRAFT, Draft, changed
from schemas.commands import Usage

pytestmark = pytest.mark.anyio

DRAFT = Draft({"a.py": b"1", "b/c.py": b"2"}, frozenset({"old"}), Usage(1, 2, 0.5))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore.in_folder(tmp_path)


async def test_the_newest_draft_before_an_attempt_is_found_as_it_was_kept(
    store: ArtifactStore,
) -> None:
    older = Draft({"a.py": b"0"})
    await store.drafts("j").keep(older, round_=1, attempt=1)
    await store.drafts("j").keep(DRAFT, round_=1, attempt=3)
    assert await store.drafts("j").newest(round_=1, before=9) == DRAFT
    assert await store.drafts("j").newest(round_=1, before=3) == older
    assert await store.drafts("j").newest(round_=2, before=9) == NO_DRAFT
    assert await store.drafts("other").newest(round_=1, before=9) == NO_DRAFT


async def test_a_kept_file_that_is_damaged_counts_as_not_written(
    store: ArtifactStore, tmp_path: Path
) -> None:
    await store.drafts("j").keep(DRAFT, round_=1, attempt=1)
    for path in (tmp_path / "drafts/j/files").iterdir():
        if path.read_bytes() == b"1":
            path.write_bytes(b"9")
    found = await store.drafts("j").newest(round_=1, before=2)
    assert found == Draft({"b/c.py": b"2"}, DRAFT.deleted, DRAFT.usage)


async def test_removed_drafts_leave_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    await store.drafts("j").keep(DRAFT, round_=1, attempt=1)
    await store.drafts("k").keep(DRAFT, round_=1, attempt=1)
    await store.drafts("j").remove()
    assert not (tmp_path / "drafts/j").exists()
    assert await store.drafts("k").newest(round_=1, before=2) == DRAFT


async def test_an_erasure_takes_the_drafts_of_its_jobs(
    store: ArtifactStore, tmp_path: Path
) -> None:
    await store.drafts("j").keep(DRAFT, round_=1, attempt=1)
    await store.erase([], jobs=["j"], kept=[])
    assert not (tmp_path / "drafts/j").exists()


def test_a_draft_is_what_changed_and_what_went() -> None:
    base = {"same": b"s", "old": b"o", "edited": b"1"}
    files = {"same": b"s", "edited": b"2", "new": b"n"}
    draft = changed(base, files, Usage())
    assert draft == Draft({"edited": b"2", "new": b"n"}, frozenset({"old"}))
    assert draft.applied_to(base) == files
