"""The files of builds, kept by content: every blob under its SHA-256, and a manifest per build.

A manifest is a blob too; its digest stands in events and names a build's files until they are
erased. Blobs are written before the event that names them, so that an event never points at
nothing.
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import anyio
import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from generator.drafts import Drafts
from generator.errors import ArtifactMissing, ArtifactsUnavailable

MODE, EXECUTABLE = 0o644, 0o755
_PARALLEL = 16
_READ_AT_ONCE = 500
_LISTED_AT_ONCE = 1_000
# Much longer than a build lasts: by then an event names what it stored, or none ever will.
_NOTICES_HOLD = timedelta(days=1)
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Beside the blobs: by job, which of them it stores, and what its runner has finished so far.
_NOTICES, _DRAFTS = "storing", "drafts"
_COLLECTED = "collected"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deleted:
    """What an erasure removed, and how many blobs it `left` to builds that are under way."""

    blobs: int = 0
    size_bytes: int = 0
    left: int = 0


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed (or would have), what it kept, and what it missed.

    `young` blobs are named by nothing and too new to tell; `left` were stored again meanwhile;
    `missing` are manifests that events name and nobody can read.
    """

    blobs: int = 0
    size_bytes: int = 0
    kept: int = 0
    young: int = 0
    left: int = 0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as its manifest has it."""

    sha256: str
    size_bytes: int
    mode: int = MODE


class ArtifactStore:
    """Files by digest, in a local folder or any store that obstore knows."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def in_folder(cls, folder: Path) -> "ArtifactStore":
        """A store in a folder, made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        # Removes folders that have become empty, as an object store has none.
        return cls(LocalStore(folder, automatic_cleanup=True))

    @classmethod
    def at(cls, url: str) -> "ArtifactStore":
        """A store by URL: `s3://bucket/prefix`, `gs://…`, `az://…`, `file:///…`."""
        return cls(from_url(url))

    def drafts(self, job: str) -> Drafts:
        """What a job's runner has finished and no event names yet."""
        return Drafts(self._store, job)

    async def put(self, files: Mapping[str, bytes], *, job: str | None = None) -> str:
        """Store files; the digest of their manifest, equal for equal files.

        `job`: whose build it is. Until an event names the manifest, an erasure knows by it that
        these files are wanted.
        """
        digests = {path: _digest(content) for path, content in files.items()}
        manifest = json.dumps(
            {
                "files": {
                    path: {
                        "sha256": digests[path],
                        "size": len(files[path]),
                        "mode": f"{_mode(files[path]):o}",
                    }
                    for path in sorted(files)
                }
            },
            separators=(",", ":"),
        ).encode()
        digest = _digest(manifest)
        if job is not None:
            # Before the first blob: of two that have the same one, neither may miss the other.
            notice = json.dumps([digest, *digests.values()]).encode()
            await self._put_object(_notice(job), notice)

        async def put(path: str) -> None:
            await self._put_object(_key(digests[path]), files[path])

        await self._each(files, put, is_whole=False)
        await self._put_object(_key(digest), manifest)
        return digest

    async def files(self, manifest: str) -> dict[str, StoredFile]:
        """What a manifest lists, by path in order. Raises `ArtifactMissing`."""
        entries = _entries(manifest, await self._get_blob(manifest, "a manifest"))
        return {
            path: StoredFile(entry["sha256"], entry["size"], int(entry.get("mode", "644"), 8))
            for path, entry in sorted(entries.items())
        }

    async def read(self, path: str, file: StoredFile) -> bytes:
        """The content of a listed file. Raises `ArtifactMissing`, which names its path."""
        return await self._get_blob(file.sha256, f"the file {path!r}")

    async def get(self, manifest: str) -> dict[str, bytes]:
        """The files of a manifest. Raises `ArtifactMissing`, also for content that was changed."""
        listed = await self.files(manifest)

        async def read(path: str) -> bytes:
            return await self.read(path, listed[path])

        return dict(zip(listed, await self._each(listed, read, is_whole=False), strict=True))

    async def put_blob(self, content: bytes, *, job: str | None = None) -> str:
        """Store a blob that no manifest lists, of this job; its digest."""
        digest = _digest(content)
        if job is not None:
            await self._put_object(_notice(f"{job}.blob"), json.dumps([digest]).encode())
        await self._put_object(_key(digest), content)
        return digest

    async def get_blob(self, digest: str) -> bytes:
        """The content of a blob. Raises `ArtifactMissing`."""
        return await self._get_blob(digest)

    async def erase(
        self,
        manifests: Collection[str],
        *,
        jobs: Collection[str],
        kept: Sequence[str],
        blobs: Collection[str] = (),
        kept_blobs: Collection[str] = (),
    ) -> Deleted:
        """Delete what these jobs' manifests name, and these, but nothing that others have too.

        `blobs` are further ones that no manifest lists. Others are the manifests and blobs `kept`,
        and builds of other jobs that are under way: no event names their files yet. One removal at
        a time. One that was interrupted finds the rest when it is repeated.
        """
        await self._put_back(await self._aside())
        found = await self._blobs(list(manifests))
        doomed = {*blobs, *found, *(digest for listed in found.values() for digest in listed)}
        doomed -= await self._named(kept, kept_blobs)
        gone, size_bytes = await self._remove(doomed, jobs, last=found.keys())
        await self._each(jobs, self._delete_notice)
        await self._each([f"{job}.blob" for job in jobs], self._delete_notice)
        await self.remove_drafts(jobs)
        return Deleted(gone, size_bytes, len(doomed) - gone)

    async def collect(
        self,
        manifests: Sequence[str],
        blobs: Collection[str] = (),
        *,
        grace: timedelta = _NOTICES_HOLD,
        dry_run: bool = False,
    ) -> Collected:
        """Delete every blob that is not among `blobs`, nor named by one of the `manifests`.

        Kept are also what builds under way name, and whatever is younger than `grace`: no event
        may name it yet. One removal at a time, beside as many builds as there are; what
        one of them begins to store meanwhile stays, or is stored again. Interrupted, it goes on
        with the next.
        """
        aside = await self._aside()
        if not dry_run:
            await self._put_back(aside)
        found = await self._blobs(manifests)
        named = {*manifests, *blobs, *(digest for listed in found.values() for digest in listed)}
        named |= await self._under_way(())
        before = datetime.now(UTC) - grace
        doomed: dict[str, int] = {}
        kept = young = 0
        async for digest, size_bytes, changed_at in self._all_blobs():
            if digest in named:
                kept += 1
            elif changed_at > before:
                young += 1
            else:
                doomed[digest] = size_bytes
        missing = tuple(manifest for manifest in manifests if manifest not in found)
        if dry_run:
            return Collected(len(doomed), sum(doomed.values()), kept, young, 0, missing)
        gone, freed_bytes = await self._remove(doomed.keys(), ())
        await self._forget_old_notices()
        await obstore.put_async(self._store, _COLLECTED, b"")
        return Collected(gone, freed_bytes, kept, young, len(doomed) - gone, missing)

    async def drafted_jobs(self) -> set[str]:
        """The jobs of which there are drafts."""
        return {
            Path(meta["path"]).parts[1]
            async for some in obstore.list(self._store, prefix=_DRAFTS)
            for meta in some
        }

    async def remove_drafts(self, jobs: Collection[str]) -> None:
        """Delete the drafts of these jobs: they have ended."""
        await self._each(jobs, lambda job: self.drafts(job).remove())

    async def collected_at(self) -> datetime | None:
        """When a collection was last done, by whichever process; None: never."""
        try:
            return (await obstore.head_async(self._store, _COLLECTED))["last_modified"]
        except (NotFoundError, FileNotFoundError):
            return None

    async def _remove(
        self, doomed: Collection[str], jobs: Collection[str], *, last: Collection[str] = ()
    ) -> tuple[int, int]:
        """Delete these blobs but for what builds of other jobs store; how many, how many bytes.

        `last` go behind all others: by them an erasure that is repeated finds the rest.
        """
        ours = set(doomed) - await self._under_way(jobs)
        await self._each(ours, self._set_aside)
        # Whoever begins to store one of them from here on stores it again; of those who began
        # before we are told now.
        wanted = ours & await self._under_way(jobs)
        await self._put_back(wanted)
        ours -= wanted
        sizes = await self._each(ours.difference(last), self._delete_aside)
        sizes += await self._each(ours.intersection(last), self._delete_aside)
        return len(ours), sum(sizes)

    async def _named(self, manifests: Sequence[str], blobs: Collection[str]) -> set[str]:
        """These, and what these manifests list."""
        named = set(blobs)
        for first in range(0, len(manifests), _READ_AT_ONCE):
            others = await self._blobs(manifests[first : first + _READ_AT_ONCE])
            named |= {digest for listed in others.values() for digest in listed} | others.keys()
        return named

    async def _all_blobs(self) -> AsyncIterator[tuple[str, int, datetime]]:
        """Digest, size and age of every blob there is."""
        listing = obstore.list(self._store, prefix="blobs", chunk_size=_LISTED_AT_ONCE)
        async for some in listing:
            for meta in some:
                digest = Path(meta["path"]).name
                # What somebody else laid there, or a store was still writing, is not ours.
                if _DIGEST.fullmatch(digest):
                    yield digest, meta["size"], meta["last_modified"]

    async def _blobs(self, manifests: Sequence[str]) -> dict[str, list[str]]:
        """The digests of the files in each of the manifests that are there and whole."""

        async def read(manifest: str) -> list[str] | None:
            try:
                entries = _entries(manifest, await self._get_blob(manifest))
            except ArtifactMissing:
                return None
            return [entry["sha256"] for entry in entries.values()]

        found = await self._each(manifests, read)
        return {
            manifest: blobs
            for manifest, blobs in zip(manifests, found, strict=True)
            if blobs is not None
        }

    async def _under_way(self, jobs: Collection[str]) -> set[str]:
        """What builds of other jobs have stored lately, or are about to."""
        since = datetime.now(UTC) - _NOTICES_HOLD
        digests: set[str] = set()
        async for some in obstore.list(self._store, prefix=_NOTICES):
            for meta in some:
                job = Path(meta["path"]).name.partition(".")[0]
                if meta["last_modified"] >= since and job not in jobs:
                    try:
                        result = await obstore.get_async(self._store, meta["path"])
                    except (NotFoundError, FileNotFoundError):
                        continue
                    digests |= set(json.loads(bytes(await result.bytes_async())))
        return digests

    async def _forget_old_notices(self) -> None:
        """Delete the notices that nobody heeds any more."""
        before = datetime.now(UTC) - _NOTICES_HOLD
        old = [
            Path(meta["path"]).name
            async for some in obstore.list(self._store, prefix=_NOTICES)
            for meta in some
            if meta["last_modified"] < before
        ]
        await self._each(old, self._delete_notice)

    async def _aside(self) -> set[str]:
        """What an erasure has set aside that was interrupted."""
        return {
            Path(meta["path"]).name
            async for some in obstore.list(self._store, prefix="erasing")
            for meta in some
        }

    async def _set_aside(self, digest: str) -> None:
        await self._move(_key(digest), f"erasing/{digest}")

    async def _put_back(self, digests: Collection[str]) -> None:
        async def put_back(digest: str) -> None:
            await self._move(f"erasing/{digest}", _key(digest))

        await self._each(digests, put_back)

    async def _move(self, source: str, target: str) -> None:
        """Move what is there."""
        try:
            await obstore.rename_async(self._store, source, target)
        except (NotFoundError, FileNotFoundError):
            return

    async def _delete_aside(self, digest: str) -> int:
        """How many bytes it had."""
        path = f"erasing/{digest}"
        try:
            size = (await obstore.head_async(self._store, path))["size"]
            await obstore.delete_async(self._store, path)
        except (NotFoundError, FileNotFoundError):
            return 0
        return size

    async def _delete_notice(self, job: str) -> None:
        try:
            await obstore.delete_async(self._store, _notice(job))
        except (NotFoundError, FileNotFoundError):
            return

    async def _each(
        self,
        names: Collection[str],
        action: Callable[[str], Awaitable[T]],
        *,
        is_whole: bool = True,
    ) -> list[T]:
        """What the action gives for each, in order; some at a time. Raises what the first raises.

        `is_whole`: one that has begun is not cut off by a cancel.
        """
        limit = anyio.CapacityLimiter(_PARALLEL)
        results: dict[str, T] = {}
        failed: list[Exception] = []

        async def act(name: str) -> None:
            async with limit:
                # It would go on in the store, behind the back of who tries again.
                with anyio.CancelScope(shield=is_whole):
                    try:
                        results[name] = await action(name)
                    except Exception as error:  # noqa: BLE001 - out of the group, as it is
                        failed.append(error)
                        tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(act, name)
        if failed:
            raise failed[0]
        return [results[name] for name in names]

    async def _put_object(self, path: str, content: bytes) -> None:
        try:
            await obstore.put_async(self._store, path, content)
        except BaseError as error:
            raise ArtifactsUnavailable(str(error)) from error

    async def _get_blob(self, digest: str, what: str = "a blob") -> bytes:
        try:
            result = await obstore.get_async(self._store, _key(digest))
            content = bytes(await result.bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            raise ArtifactMissing(digest, what, "it is not in the store") from error
        except BaseError as error:
            raise ArtifactsUnavailable(str(error)) from error
        if _digest(content) != digest:
            raise ArtifactMissing(digest, what, "its content was changed")
        return content


def _entries(digest: str, manifest: bytes) -> dict[str, dict[str, Any]]:
    try:
        entries: dict[str, dict[str, Any]] = json.loads(manifest)["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactMissing(digest, "a manifest", "it is something else") from error
    return entries


def _mode(content: bytes) -> int:
    """What starts with a line for the kernel can be run; a runner says no more than that."""
    return EXECUTABLE if content.startswith(b"#!") else MODE


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _key(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _notice(job: str) -> str:
    """Where a job says what it stores, from before it does; of use until an event says so."""
    return f"{_NOTICES}/{job}"
