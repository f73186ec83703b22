"""The worker's end of a sandbox that is on its way: started ahead, and told later whose it is."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import anyio

from generator.errors import SandboxError
from generator.sandboxes.local.nursery import FORK

UP_WITHIN_S = 15.0
_ANSWER_BYTES = 256 * 1024
_NOTHING = b'{"failed": "its supervisor said nothing"}'


# Imports the nursery without the packages around it, whose own imports would cost a second.
BOOT = """
import sys
sys.modules["ssl"] = None
local = sys.modules["local"] = type(sys)("local")
local.__path__ = [sys.argv[1]]
from local.nursery import main
main()
"""
_PYTHON = os.path.realpath(sys.executable)
NURSERY = (_PYTHON, "-P", "-E", "-s", "-S", "-c", BOOT, str(Path(__file__).parent))


class Nursery:
    """This process's end of its nursery, which is started when it is first needed."""

    def __init__(self, command: Sequence[str] = NURSERY) -> None:
        self._command = command
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Its process, if it was needed."""
        return self._process.pid if self._process else None

    def fork(self, spec: int, worker: int, log: int) -> None:
        """Let it make a supervisor with these descriptors. Raises `OSError`."""
        with self._lock:
            try:
                self._ask(spec, worker, log)
            except ConnectionError:  # it was killed
                self._start()
                self._ask(spec, worker, log)

    def close(self) -> None:
        """End it; what it has made lives on."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()
        self._socket = self._process = None

    def _ask(self, *descriptors: int) -> None:
        if self._socket is None:
            self._start()
        assert self._socket is not None  # noqa: S101 - just made
        socket.send_fds(self._socket, [FORK], descriptors)

    def _start(self) -> None:
        self.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )


OWN = Nursery()


class Launch:
    """A supervisor that was started with a `Spec`; it ends with this process unless claimed."""

    def __init__(self, spec: Mapping[str, Any], log: BinaryIO, nursery: Nursery) -> None:
        """Does not wait for anything; what goes wrong then is told to who claims it."""
        self.sandbox_id: str = spec["sandbox_id"]
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.memfd_create("spec"), "w+b") as told:
            told.write(json.dumps(spec).encode())
            told.seek(0)
            nursery.fork(told.fileno(), theirs.fileno(), log.fileno())

    async def claim(self, metadata: Mapping[str, str], timeout_s: int) -> dict[str, Any]:
        """What the supervisor holds, once it is up; or why not, as `refused` or `failed`.

        Raises `SandboxError` when it hangs.
        """
        claim = json.dumps({"metadata": dict(metadata), "timeout_s": timeout_s}).encode()
        with self._socket as talk:
            with suppress(BrokenPipeError):  # it has ended; what it said is still to be read
                talk.send(claim)
            answer: dict[str, Any] = json.loads(await self._said() or _NOTHING)
            return answer

    async def give_up(self) -> None:
        """Nobody wants it. Returns when it has ended; one that hangs ends in its own time."""
        with self._socket as talk, suppress(SandboxError):
            talk.shutdown(socket.SHUT_WR)
            await self._said()

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
