"""What a runner has finished so far, kept while it goes on, so that no worker's end costs it twice.

In the artifact store, beside the blobs, below `drafts/<job>/`: the files by their content, and for
each round and attempt a record of which there are, which were deleted, and what the run has used.
The record is replaced as the run goes on, after the files that it names. A worker that was taken
over from can only write its own record, which nobody reads any more.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore

from schemas.commands import NO_USAGE, Usage


@dataclass(frozen=True, slots=True)
class Draft:
    """Finished files (path to content), deleted ones, and what was used for them."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    deleted: frozenset[str] = frozenset()
    usage: Usage = NO_USAGE

    @property
    def is_empty(self) -> bool:
        """Whether nothing was finished, nor paid for."""
        return not (self.files or self.deleted) and self.usage == NO_USAGE

    def applied_to(self, base: Mapping[str, bytes]) -> dict[str, bytes]:
        """The base's files with what was changed in them."""
        kept = {path: content for path, content in base.items() if path not in self.deleted}
        return {**kept, **self.files}


NO_DRAFT = Draft()


def changed(base: Mapping[str, bytes], files: Mapping[str, bytes], usage: Usage) -> Draft:
    """What `files` has that `base` has not, and the other way round."""
    return Draft(
        {path: content for path, content in files.items() if base.get(path) != content},
        frozenset(base.keys() - files.keys()),
        usage,
    )


class Drafts:
    """The drafts of one job."""

    def __init__(self, store: ObjectStore, job: str) -> None:
        self._store = store
        self._folder = f"drafts/{job}"
        self._kept: set[str] = set()

    async def keep(self, draft: Draft, *, round_: int, attempt: int) -> None:
        """Keep a draft in place of the attempt's earlier one. Raises obstore's errors."""
        digests = {path: _digest(content) for path, content in draft.files.items()}
        contents = {digests[path]: content for path, content in draft.files.items()}
        # One after the other: a runner finishes them one after the other, too.
        for digest in contents.keys() - self._kept:
            await obstore.put_async(self._store, self._file(digest), contents[digest])
            self._kept.add(digest)
        record = {
            "files": digests,
            "deleted": sorted(draft.deleted),
            "usage": asdict(draft.usage),
        }
        await obstore.put_async(
            self._store, self._record(round_, attempt), json.dumps(record).encode()
        )

    async def newest(self, *, round_: int, before: int) -> Draft:
        """The draft of the newest attempt before attempt `before` that has left one; maybe none.

        A file that is not whole counts as not written.
        """
        for attempt in range(before - 1, 0, -1):
            record = await self._read(self._record(round_, attempt))
            if record is not None:
                return await self._draft(json.loads(record))
        return NO_DRAFT

    async def remove(self) -> None:
        """Remove all drafts of the job: it is further on."""
        names = [
            meta["path"]
            async for some in obstore.list(self._store, prefix=self._folder)
            for meta in some
        ]
        if names:
            await obstore.delete_async(self._store, names)

    async def _draft(self, record: Mapping[str, object]) -> Draft:
        digests, deleted, usage = record["files"], record["deleted"], record["usage"]
        assert isinstance(digests, dict)  # noqa: S101 - as `keep` writes it
        assert isinstance(deleted, list)  # noqa: S101
        assert isinstance(usage, dict)  # noqa: S101
        files = {}
        for path, digest in digests.items():
            content = await self._read(self._file(digest))
            if content is not None and _digest(content) == digest:
                files[path] = content
        return Draft(files, frozenset(deleted), Usage(**usage))

    async def _read(self, name: str) -> bytes | None:
        try:
            result = await obstore.get_async(self._store, name)
        except (NotFoundError, FileNotFoundError):
            return None
        return bytes(await result.bytes_async())

    def _file(self, digest: str) -> str:
        return f"{self._folder}/files/{digest}"

    def _record(self, round_: int, attempt: int) -> str:
        return f"{self._folder}/{round_}/{attempt}.json"


STORE_ERRORS = (BaseError, OSError)
"""What a store raises that cannot be reached: a draft is not worth failing for."""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
