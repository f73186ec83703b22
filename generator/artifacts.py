"""The files of builds, kept by content: every blob under its SHA-256, and a manifest per build.

A manifest is a blob too; its digest stands in events and names a build's files for ever. Blobs are
written before the event that names them, so that an event never points at nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import anyio
import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from generator.errors import ArtifactMissing

_PARALLEL = 16


class ArtifactStore:
    """Files by digest, in a local folder or any store that obstore knows."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def in_folder(cls, folder: Path) -> "ArtifactStore":
        """A store in a folder, made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(LocalStore(folder))

    @classmethod
    def at(cls, url: str) -> "ArtifactStore":
        """A store by URL: `s3://bucket/prefix`, `gs://…`, `az://…`, `file:///…`."""
        return cls(from_url(url))

    async def put(self, files: Mapping[str, bytes]) -> str:
        """Store files; the digest of their manifest, equal for equal files."""
        digests = {path: _digest(content) for path, content in files.items()}
        limit = anyio.CapacityLimiter(_PARALLEL)
        async with anyio.create_task_group() as tasks:
            for path, content in files.items():
                tasks.start_soon(self._put_blob, digests[path], content, limit)
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
        await self._put_blob(digest, manifest, limit)
        return digest

    async def get(self, manifest: str) -> dict[str, bytes]:
        """The files of a manifest. Raises `ArtifactMissing`, also for content that was changed."""
        entries = json.loads(await self._get_blob(manifest))["files"]
        return {path: await self._get_blob(entry["sha256"]) for path, entry in entries.items()}

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
