"""The agent's end of a client's connection."""

import asyncio
import errno
from contextlib import suppress
from typing import Any

from .frames import HEADER, frame, payload_size

Result = dict[str, Any]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN, errno.ENOMEM, errno.EMFILE}
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


class Refused(Exception):
    """An operation that cannot be done; `kind` is `full`, `missing` or `failed`."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)

    @classmethod
    def by(cls, error: OSError) -> "Refused":
        """What the system's refusal means to the client."""
        if error.errno in _FULL:
            return cls("full", str(error))
        return cls("missing" if error.errno in _MISSING else "failed", str(error))


class Client:
    """Frames from and to one client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._sending = asyncio.Lock()

    async def receive(self) -> tuple[bytes, bytes]:
        """Kind and payload. Raises `IncompleteReadError` when the client has gone."""
        kind, size = payload_size(await self._reader.readexactly(HEADER.size))
        return kind, await self._reader.readexactly(size)

    async def send(self, kind: bytes, payload: bytes) -> None:
        """Returns when the kernel has taken it: this is what slows an endless printer down."""
        async with self._sending:
            self._writer.write(frame(kind, payload))
            await self._writer.drain()

    async def gone(self) -> None:
        """Returns when the client has closed its sending half."""
        with suppress(OSError):
            await self._reader.read(1)
