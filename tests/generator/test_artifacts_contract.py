"""What every store of artifacts must do, over each that is at hand."""

from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import anyio
import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import LocalStore, MemoryStore, ObjectStore, S3Store

from generator import ArtifactStore
from generator.artifacts import StoredFile
from generator.errors import ArtifactMissing, ArtifactsUnavailable
from tests.s3_server import BUCKET, s3_server

pytestmark = pytest.mark.anyio

FILES = {"app.py": b"print('hi')\n", "run": b"#!/bin/sh\n", "a/b.bin": bytes(range(256)), "no": b""}


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    match request.param:
        case "folder":
            yield LocalStore(tmp_path)
        case "memory":
            yield MemoryStore()
        case _:
            with s3_server() as server:
                yield S3Store(
                    BUCKET,
                    prefix="headrace",
                    client_options={"allow_http": True},
                    **server.settings,
                )


@pytest.fixture
def artifacts(store: ObjectStore) -> ArtifactStore:
    return ArtifactStore(store)


async def test_what_was_put_comes_back(artifacts: ArtifactStore) -> None:
    assert await artifacts.get(await artifacts.put(FILES)) == FILES


async def test_equal_files_have_one_manifest_and_others_another(artifacts: ArtifactStore) -> None:
    first = await artifacts.put(FILES)
    assert await artifacts.put(dict(reversed(FILES.items())), job="another") == first
    assert await artifacts.put({**FILES, "no": b"."}) != first


async def test_a_manifest_says_path_digest_size_and_mode(artifacts: ArtifactStore) -> None:
    listed = await artifacts.files(await artifacts.put(FILES))
    assert list(listed) == ["a/b.bin", "app.py", "no", "run"]
    assert listed["run"] == StoredFile(sha256(FILES["run"]).hexdigest(), 10, 0o755)
    assert listed["app.py"].mode == 0o644
    assert await artifacts.read("a/b.bin", listed["a/b.bin"]) == FILES["a/b.bin"]


async def test_a_blob_that_is_gone_is_told_by_the_path_of_its_file(
    artifacts: ArtifactStore, store: ObjectStore
) -> None:
    manifest = await artifacts.put(FILES)
    digest = (await artifacts.files(manifest))["a/b.bin"].sha256
    await obstore.delete_async(store, f"blobs/{digest[:2]}/{digest}")
    with pytest.raises(ArtifactMissing, match=r"the file 'a/b\.bin' .* not in the store") as told:
        await artifacts.get(manifest)
    assert told.value.digest == digest


@pytest.mark.parametrize("content", [b"", b"print('ho')\n", b"print('hi')\n\n"])
async def test_a_blob_that_was_changed_is_told_by_the_path_of_its_file(
    artifacts: ArtifactStore, store: ObjectStore, content: bytes
) -> None:
    manifest = await artifacts.put(FILES)
    digest = (await artifacts.files(manifest))["app.py"].sha256
    await obstore.put_async(store, f"blobs/{digest[:2]}/{digest}", content)
    with pytest.raises(ArtifactMissing, match=r"the file 'app\.py' .* its content was changed"):
        await artifacts.get(manifest)


async def test_a_manifest_that_is_none_is_told(artifacts: ArtifactStore) -> None:
    with pytest.raises(ArtifactMissing, match="a manifest cannot be had"):
        await artifacts.files("0" * 64)
    blob = (await artifacts.files(await artifacts.put(FILES)))["app.py"].sha256
    with pytest.raises(ArtifactMissing, match="it is something else"):
        await artifacts.files(blob)


async def test_a_damaged_blob_is_mended_by_storing_it_again(
    artifacts: ArtifactStore, store: ObjectStore
) -> None:
    manifest = await artifacts.put(FILES)
    digest = (await artifacts.files(manifest))["app.py"].sha256
    await obstore.put_async(store, f"blobs/{digest[:2]}/{digest}", b"x")
    await artifacts.put({"app.py": FILES["app.py"]})
    assert await artifacts.get(manifest) == FILES


async def test_a_manifest_of_before_files_had_modes_is_read(
    artifacts: ArtifactStore, store: ObjectStore
) -> None:
    digest = (await artifacts.files(await artifacts.put(FILES)))["run"].sha256
    old = b'{"files":{"run":{"sha256":"%s","size":10}}}' % digest.encode()
    name = sha256(old).hexdigest()
    await obstore.put_async(store, f"blobs/{name[:2]}/{name}", old)
    assert (await artifacts.files(name))["run"].mode == 0o644
    assert await artifacts.get(name) == {"run": FILES["run"]}


async def test_a_collection_deletes_what_nothing_names_and_nothing_else(
    artifacts: ArtifactStore, store: ObjectStore
) -> None:
    kept = await artifacts.put(FILES)
    gone = await artifacts.put({**FILES, "app.py": b"another"})
    loose = await stored_blob(store, b"a whole log")
    log = await stored_blob(store, b"another log")
    before = await artifacts.collect([kept], [log], grace=timedelta(0), dry_run=True)
    assert (before.blobs, before.kept) == (3, 6)
    assert await artifacts.get(gone)
    assert await artifacts.collected_at() is None
    collected = await artifacts.collect([kept], [log], grace=timedelta(0))
    assert (collected.blobs, collected.size_bytes) == (3, before.size_bytes)
    assert await artifacts.collected_at() is not None
    assert await artifacts.get(kept) == FILES
    for digest in (gone, loose):
        with pytest.raises(ArtifactMissing):
            await artifacts.files(digest)
    assert await artifacts.collect([kept], [log], grace=timedelta(0)) == type(collected)(kept=6)


async def stored_blob(store: ObjectStore, content: bytes) -> str:
    digest = sha256(content).hexdigest()
    await obstore.put_async(store, f"blobs/{digest[:2]}/{digest}", content)
    return digest


async def test_what_is_young_or_drafted_or_being_stored_is_not_collected(
    artifacts: ArtifactStore, store: ObjectStore
) -> None:
    storing = await artifacts.put({"a": b"storing"}, job="job-1")
    await obstore.put_async(store, "drafts/job-2/1/1.json", b"{}")
    printed = await artifacts.put_blob(b"printed", job="job-1")
    young = await stored_blob(store, b"young")
    collected = await artifacts.collect([], grace=timedelta(hours=1))
    assert (collected.blobs, collected.young) == (0, 1)
    collected = await artifacts.collect([], grace=timedelta(0))
    assert (collected.blobs, collected.kept) == (1, 3)
    assert await artifacts.get(storing) == {"a": b"storing"}
    assert await artifacts.get_blob(printed) == b"printed"
    assert await artifacts.drafted_jobs() == {"job-2"}
    with pytest.raises(FileNotFoundError):
        await obstore.head_async(store, key(young))


async def test_an_erased_jobs_whole_log_goes_and_that_of_others_stays(
    artifacts: ArtifactStore,
) -> None:
    ours = await artifacts.put_blob(b"what ours printed", job="ours")
    alike = await artifacts.put_blob(b"OK\n", job="ours")
    assert await artifacts.put_blob(b"OK\n", job="theirs") == alike
    erased = await artifacts.erase([], jobs=["ours"], kept=[], blobs=[ours, alike])
    assert (erased.blobs, erased.left) == (1, 1)
    erased = await artifacts.erase([], jobs=["ours"], kept=[], blobs=[alike], kept_blobs=[alike])
    assert await artifacts.get_blob(alike) == b"OK\n"
    with pytest.raises(ArtifactMissing):
        await artifacts.get_blob(ours)


async def test_drafts_go_by_job(artifacts: ArtifactStore, store: ObjectStore) -> None:
    for name in ("one/1/1.json", "one/files/x", "two/1/1.json", "one-more/1/1.json"):
        await obstore.put_async(store, f"drafts/{name}", b"{}")
    await artifacts.remove_drafts(["one", "three"])
    assert await artifacts.drafted_jobs() == {"two", "one-more"}


def key(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


async def test_a_manifest_that_cannot_be_read_is_told_of(artifacts: ArtifactStore) -> None:
    collected = await artifacts.collect(["0" * 64], grace=timedelta(0))
    assert collected.missing == ("0" * 64,)


async def test_what_somebody_else_laid_among_the_blobs_stays(
    artifacts: ArtifactStore, store: ObjectStore
) -> None:
    await obstore.put_async(store, "blobs/README", b"hands off")
    assert (await artifacts.collect([], grace=timedelta(0))).blobs == 0
    assert (await obstore.head_async(store, "blobs/README"))["size"] == 9


async def test_a_store_that_does_not_answer_deletes_nothing(
    artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = await artifacts.put({"a": b"kept"}), await artifacts.put({"a": b"gone"})
    get = obstore.get_async

    async def fails(store: ObjectStore, path: str) -> object:
        if path.endswith(kept):
            raise obstore.exceptions.GenericError("no route to host")
        return await get(store, path)

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "get_async", fails)
        with pytest.raises(ArtifactsUnavailable, match="no route to host"):
            await artifacts.collect([kept], grace=timedelta(0))
    assert await artifacts.get(gone) == {"a": b"gone"}


# --- beside builds that go on --------------------------------------------------------------------

CALLS = ("get_async", "rename_async", "head_async", "delete_async", "put_async")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_build_that_stores_at_any_moment_of_a_collection_has_its_files(
    data: st.DataObject,
) -> None:
    """Between any two calls of the collection to its store a build may store what it will."""
    anyio.run(store_in_the_middle, data)


async def store_in_the_middle(data: st.DataObject) -> None:
    artifacts = ArtifactStore(MemoryStore())
    contents = [b"one", b"two", b"three"]
    chosen = st.lists(st.sampled_from(contents), min_size=1, unique=True)

    def files() -> dict[str, bytes]:
        return {content.decode(): content for content in data.draw(chosen)}

    for _ in range(data.draw(st.integers(0, 2))):
        await artifacts.put(files())
    named = [await artifacts.put(files()) for _ in range(data.draw(st.integers(0, 1)))]
    at = data.draw(st.integers(0, 30))
    under_way: list[tuple[str, dict[str, bytes]]] = []
    calls = 0

    def told(name: str) -> None:
        act = getattr(obstore, name)

        async def call(*arguments: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at and not under_way:
                under_way.append(("", {}))
                stored = files()
                under_way[0] = (await artifacts.put(stored, job="late"), stored)
            return await act(*arguments, **more)

        patch.setattr(obstore, name, call)

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            told(name)
        await artifacts.collect(named, grace=timedelta(0))
    for manifest, stored in under_way:
        assert await artifacts.get(manifest) == stored
    for manifest in named:
        assert await artifacts.get(manifest)
