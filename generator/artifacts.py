"""The files of builds, kept by content: every blob under its SHA-256, and a manifest per build.

A manifest is a blob too; its digest stands in events and names a build's files until they are
erased. Blobs are written before the event that names them, so that an event never points at
nothing.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import anyio
import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from generator.drafts import Drafts
from generator.errors import ArtifactMissing

_PARALLEL = 16
_READ_AT_ONCE = 500
# Much longer than a build lasts: by then an event names what it stored, or none ever will.
_NOTICES_HOLD = timedelta(days=1)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deleted:
    """What an erasure removed, and how many blobs it `left` to builds that are under way."""

    blobs: int = 0
    size_bytes: int = 0
    left: int = 0


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
                    path: {"sha256": digests[path], "size": len(files[path])}
                    for path in sorted(files)
                }
            },
            separators=(",", ":"),
        ).encode()
        digest = _digest(manifest)
        if job is not None:
            # Before the first blob: of two that have the same one, neither may miss the other.
            notice = json.dumps([digest, *digests.values()]).encode()
            await obstore.put_async(self._store, _notice(job), notice)
        limit = anyio.CapacityLimiter(_PARALLEL)
        async with anyio.create_task_group() as tasks:
            for path, content in files.items():
                tasks.start_soon(self._put_blob, digests[path], content, limit)
        await self._put_blob(digest, manifest, limit)
        return digest

    async def get(self, manifest: str) -> dict[str, bytes]:
        """The files of a manifest. Raises `ArtifactMissing`, also for content that was changed."""
        entries = json.loads(await self._get_blob(manifest))["files"]
        return {path: await self._get_blob(entry["sha256"]) for path, entry in entries.items()}

    async def put_blob(self, content: bytes) -> str:
        """Store a blob that no manifest lists; its digest."""
        digest = _digest(content)
        await self._put_blob(digest, content, anyio.CapacityLimiter(1))
        return digest

    async def get_blob(self, digest: str) -> bytes:
        """The content of a blob. Raises `ArtifactMissing`."""
        return await self._get_blob(digest)

    async def erase(
        self, manifests: Collection[str], *, jobs: Collection[str], kept: Sequence[str]
    ) -> Deleted:
        """Delete what these jobs' manifests name, and these, but nothing that others have too.

        Others are the manifests `kept`, and builds of other jobs that are under way: no event names
        their files yet. One erasure at a time. One that was interrupted finds the rest when it is
        repeated.
        """
        await self._put_back(await self._aside())
        found = await self._blobs(list(manifests))
        doomed = {digest for blobs in found.values() for digest in blobs} | found.keys()
        for first in range(0, len(kept), _READ_AT_ONCE):
            others = await self._blobs(kept[first : first + _READ_AT_ONCE])
            doomed -= {digest for blobs in others.values() for digest in blobs} | others.keys()
        ours = doomed - await self._under_way(jobs)
        await self._each(ours, self._set_aside)
        # Whoever begins to store one of them from here on stores it again; of those who began
        # before we are told now.
        wanted = ours & await self._under_way(jobs)
        await self._put_back(wanted)
        ours -= wanted
        # Manifests last: by them an erasure that is repeated finds the rest.
        sizes = await self._each(ours - found.keys(), self._delete_aside)
        sizes += await self._each(ours & found.keys(), self._delete_aside)
        await self._each(jobs, self._delete_notice)
        await self._each(jobs, lambda job: self.drafts(job).remove())
        return Deleted(len(ours), sum(sizes), len(doomed - ours))

    async def _blobs(self, manifests: Sequence[str]) -> dict[str, list[str]]:
        """The digests of the files in each of the manifests that are there and whole."""

        async def read(manifest: str) -> list[str] | None:
            try:
                files = json.loads(await self._get_blob(manifest))["files"]
            except ArtifactMissing:
                return None
            return [entry["sha256"] for entry in files.values()]

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
        async for some in obstore.list(self._store, prefix="storing"):
            for meta in some:
                if meta["last_modified"] >= since and Path(meta["path"]).name not in jobs:
                    try:
                        result = await obstore.get_async(self._store, meta["path"])
                    except (NotFoundError, FileNotFoundError):
                        continue
                    digests |= set(json.loads(bytes(await result.bytes_async())))
        return digests

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

    async def _each(self, names: Collection[str], action: Callable[[str], Awaitable[T]]) -> list[T]:
        """What the action gives for each, in order; some at a time."""
        limit = anyio.CapacityLimiter(_PARALLEL)
        results: dict[str, T] = {}

        async def act(name: str) -> None:
            async with limit:
                # Not cut off: it would go on in the store, behind the back of who tries again.
                with anyio.CancelScope(shield=True):
                    results[name] = await action(name)

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(act, name)
        return [results[name] for name in names]

    async def _put_blob(self, digest: str, content: bytes, limit: anyio.CapacityLimiter) -> None:
        async with limit:
            await obstore.put_async(self._store, _key(digest), content)

    async def _get_blob(self, digest: str) -> bytes:
        try:
            result = await obstore.get_async(self._store, _key(digest))
        except (NotFoundError, FileNotFoundError) as error:
            raise ArtifactMissing(digest, "it is not in the store") from error
        content = bytes(await result.bytes_async())
        if _digest(content) != digest:
            raise ArtifactMissing(digest, "its content was changed")
        return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _key(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _notice(job: str) -> str:
    """Where a job says what it stores, from before it does; of use until an event says so."""
    return f"storing/{job}"
