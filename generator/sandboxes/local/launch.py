"""The worker's end of a sandbox that is on its way: started ahead, and told later whose it is."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import anyio

from generator.errors import SandboxError

UP_WITHIN_S = 15.0
_ANSWER_BYTES = 256 * 1024
_NOTHING = b'{"failed": "its supervisor said nothing"}'


class Launch:
    """A supervisor that was started with a `Spec`; it ends with this process unless claimed."""

    def __init__(self, command: Sequence[str], spec: Mapping[str, Any], log: BinaryIO) -> None:
        """Does not wait for anything; what goes wrong then is told to who claims it."""
        self.sandbox_id: str = spec["sandbox_id"]
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.memfd_create("spec"), "w+b") as told:
            told.write(json.dumps(spec).encode())
            told.seek(0)
            self._process = subprocess.Popen(
                command,
                stdin=told,
                stdout=theirs.fileno(),
                stderr=log,
                env={},
                cwd="/",
                start_new_session=True,
            )

    async def claim(self, metadata: Mapping[str, str], timeout_s: int) -> dict[str, Any]:
        """What the supervisor holds, once it is up; or why not, as `refused` or `failed`.

        Raises `SandboxError` when it hangs.
        """
        claim = json.dumps({"metadata": dict(metadata), "timeout_s": timeout_s}).encode()
        with self._ending() as talk:
            with suppress(BrokenPipeError):  # it has ended; what it said is still to be read
                talk.send(claim)
            answer: dict[str, Any] = json.loads(await self._said() or _NOTHING)
            return answer

    async def give_up(self) -> None:
        """Nobody wants it. Returns when nothing of it is left; what hangs ends in its own time."""
        with self._ending() as talk, suppress(SandboxError):
            talk.shutdown(socket.SHUT_WR)
            await self._said()

    @contextmanager
    def _ending(self) -> Iterator[socket.socket]:
        """Close the socket at the end, and collect the process that has made the supervisor."""
        with self._socket as talk:
            try:
                yield talk
            finally:
                self._process.kill()  # it has ended long ago, unless it hangs
                self._process.wait()

    async def _said(self) -> bytes:
        """Its one message, empty when it has ended without. Raises `SandboxError` if it hangs."""
        try:
            with anyio.fail_after(UP_WITHIN_S):
                await anyio.wait_readable(self._socket)
            return self._socket.recv(_ANSWER_BYTES)
        except TimeoutError:
            raise SandboxError(f"no sandbox came up within {UP_WITHIN_S:g} s") from None
        except ConnectionResetError:  # it was killed before it heard us
            return b""
