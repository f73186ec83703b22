"""Erasing files: what only these builds have is gone, what any other has is there."""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import obstore
import pytest
from obstore.store import ObjectStore

from generator import ArtifactStore
from generator.artifacts import Deleted
from generator.errors import ArtifactMissing

pytestmark = pytest.mark.anyio

SHARED, OURS, THEIRS = b"<html>the same for all", b"a diary for Erika", b"a shop"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def artifacts(folder: Path) -> ArtifactStore:
    return ArtifactStore.in_folder(folder)


def stored(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_what_only_erased_builds_have_is_deleted_and_counted(
    artifacts: ArtifactStore, folder: Path
) -> None:
    ours = await artifacts.put({"index.html": SHARED, "app.py": OURS}, job="ours")
    before = {content for content in stored(folder) if not content.startswith(b"[")}
    theirs = await artifacts.put({"index.html": SHARED, "app.py": THEIRS}, job="theirs")
    gone = before - {SHARED}
    erased = await artifacts.erase([ours], jobs=["ours"], kept=[theirs])
    assert erased == Deleted(2, sum(map(len, gone)))
    assert not stored(folder) & gone
    assert await artifacts.get(theirs) == {"index.html": SHARED, "app.py": THEIRS}
    with pytest.raises(ArtifactMissing):
        await artifacts.get(ours)


async def test_builds_with_the_very_same_files_keep_them(artifacts: ArtifactStore) -> None:
    ours = await artifacts.put({"app.py": OURS}, job="ours")
    assert await artifacts.erase([ours], jobs=["ours"], kept=[ours]) == Deleted()
    assert await artifacts.get(ours) == {"app.py": OURS}


async def test_of_several_builds_erased_at_once_nothing_is_left(
    artifacts: ArtifactStore, folder: Path
) -> None:
    early = await artifacts.put({"index.html": SHARED}, job="early")
    late = await artifacts.put({"index.html": SHARED, "app.py": OURS}, job="late")
    erased = await artifacts.erase([early, late], jobs=["early", "late"], kept=[])
    assert erased.blobs == 4
    assert stored(folder) == set()


async def test_what_a_build_under_way_has_stored_too_is_left_to_it(
    artifacts: ArtifactStore, folder: Path
) -> None:
    unnamed = await artifacts.put({"index.html": SHARED, "app.py": THEIRS}, job="theirs")
    ours = await artifacts.put({"index.html": SHARED, "app.py": OURS}, job="ours")
    erased = await artifacts.erase([ours], jobs=["ours"], kept=[])
    assert (erased.blobs, erased.left) == (2, 1)
    assert OURS not in stored(folder)
    assert await artifacts.get(unnamed) == {"index.html": SHARED, "app.py": THEIRS}


async def test_what_a_build_under_way_has_is_not_touched_for_a_moment(
    artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await artifacts.put({"index.html": SHARED, "app.py": THEIRS}, job="theirs")
    ours = await artifacts.put({"index.html": SHARED, "app.py": OURS}, job="ours")
    rename, moved = obstore.rename_async, set[str]()

    async def told(store: ObjectStore, source: str, target: str) -> None:
        moved.add(Path(source).name)
        await rename(store, source, target)

    monkeypatch.setattr(obstore, "rename_async", told)
    await artifacts.erase([ours], jobs=["ours"], kept=[])
    assert moved == {ours, hashlib.sha256(OURS).hexdigest()}


async def test_what_a_build_begins_to_store_in_the_middle_of_an_erasure_is_put_back(
    artifacts: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = await artifacts.put({"app.py": OURS}, job="ours")
    rename, theirs = obstore.rename_async, list[str]()

    async def overtaken(store: ObjectStore, source: str, target: str) -> None:
        if not theirs:
            theirs.append(await artifacts.put({"app.py": OURS}, job="theirs"))
        await rename(store, source, target)

    monkeypatch.setattr(obstore, "rename_async", overtaken)
    assert await artifacts.erase([ours], jobs=["ours"], kept=[]) == Deleted(left=2)
    assert await artifacts.get(theirs[0]) == {"app.py": OURS}


async def test_an_erasure_that_was_interrupted_finds_the_rest_when_it_is_repeated(
    artifacts: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {str(number): str(number).encode() for number in range(40)}
    for broken in ("rename_async", "delete_async"):
        ours = await artifacts.put(files, job="ours")
        theirs = await artifacts.put({"7": b"7"}, job="theirs")
        act, done = getattr(obstore, broken), list[str]()

        async def ends(
            store: ObjectStore,
            *paths: str,
            act: Callable[..., Awaitable[None]] = act,
            done: list[str] = done,
        ) -> None:
            if len(done) == 15:
                raise OSError("the connection is gone")
            done.append(paths[0])
            await act(store, *paths)

        with monkeypatch.context() as patch:
            patch.setattr(obstore, broken, ends)
            with pytest.raises(OSError, match="the connection is gone"):
                await artifacts.erase([ours], jobs=["ours"], kept=[theirs])
        await artifacts.erase([ours], jobs=["ours"], kept=[theirs])
        assert await artifacts.get(theirs) == {"7": b"7"}
        assert not stored(folder) & (set(files.values()) - {b"7"})


async def test_what_is_under_way_when_an_erasure_fails_is_done_when_it_has_failed(
    artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = await artifacts.put({"app.py": OURS, "index.html": SHARED}, job="ours")
    rename, failed, begun, done = obstore.rename_async, anyio.Event(), list[str](), list[str]()

    async def slow(store: ObjectStore, source: str, target: str) -> None:
        begun.append(source)
        if len(begun) > 1:
            failed.set()
            raise OSError("the connection is gone")
        await failed.wait()
        await rename(store, source, target)
        done.append(source)

    monkeypatch.setattr(obstore, "rename_async", slow)
    with pytest.raises(OSError, match="the connection is gone"):
        await artifacts.erase([ours], jobs=["ours"], kept=[])
    assert done == begun[:1]


async def test_manifests_that_are_gone_already_are_no_hindrance(
    artifacts: ArtifactStore, folder: Path
) -> None:
    ours, missing = await artifacts.put({"app.py": OURS}), "0" * 64
    assert (await artifacts.erase([ours, missing], jobs=["ours"], kept=[missing])).blobs == 2
    assert await artifacts.erase([ours], jobs=["ours"], kept=[]) == Deleted()
    assert stored(folder) == set()
