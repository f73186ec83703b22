"""What a started app says, read from its file in the sandbox and put into the transcript."""

from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from shlex import quote

import anyio
import structlog

from eventstore import EventStoreError
from generator.errors import GenerationError, SandboxGone
from generator.sandbox import Sandbox
from generator.transcript import Transcript

LOOK_EVERY_S = 0.5
LOOK_S = 5.0
MAX_LOOK_BYTES = 32 * 1024
"""How much is read at once. A server that says more than that is not caught up with."""

log = structlog.get_logger()


@asynccontextmanager
async def server_shown(sandbox: Sandbox, path: str, transcript: Transcript) -> AsyncIterator[None]:
    """Show what comes into the file at `path` while the block runs, and at its end the rest.

    A sandbox that cannot be asked costs these lines only. One that has ended ends the block, too:
    raises `SandboxGone`. Whoever waits there for an answer would wait in vain.
    """
    reader, is_over = _Reader(sandbox, path, transcript), anyio.Event()
    gone: SandboxGone | None = None

    async def look_now_and_then() -> None:
        nonlocal gone
        try:
            while not is_over.is_set():
                with anyio.move_on_after(LOOK_EVERY_S):
                    await is_over.wait()
                await reader.look()
        except SandboxGone as error:
            gone = error
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look_now_and_then)
        try:
            yield
        finally:
            is_over.set()
    if gone is not None:
        raise gone


class _Reader:
    """Reads a growing file on from where it was. A command does: files are read whole otherwise."""

    def __init__(self, sandbox: Sandbox, path: str, transcript: Transcript) -> None:
        self._sandbox = sandbox
        self._path = path
        self._transcript = transcript
        self._seen_bytes = 0

    async def look(self) -> None:
        command = (
            f"tail -c +{self._seen_bytes + 1} {quote(self._path)} 2>/dev/null "
            f"| head -c {MAX_LOOK_BYTES} | base64"
        )
        try:
            done = await self._sandbox.run(command, timeout_s=LOOK_S)
            # Bytes, as they stand in the file: only so their number is known.
            new = b64decode(done.output)
            self._seen_bytes += len(new)
            await self._transcript.take("server", new.decode(errors="replace"))
        except SandboxGone:
            raise
        except (GenerationError, EventStoreError, ValueError) as error:
            log.warning("server_output_unread", path=self._path, error=str(error))
