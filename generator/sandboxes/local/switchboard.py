"""Connects clients and browsers with a sandbox, for as long as it may live.

Runs in the supervisor. No socket of the host's network ever goes into the sandbox, where it could
be connected to somewhere else: each connection is relayed to a socket pair of its own.
"""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from .inside.frames import CHUNK_BYTES, CONTROL, KILL, PREVIEW, READY
from .inside.relay import Peer, bounded, peer, relay
from .supervisor import Box, StartFailed

READY_WITHIN_S = 10.0
MAX_CONNECTIONS = {CONTROL: 64, PREVIEW: 512}
"""At once; counted apart, so that browsers cannot shut out the worker."""

MAX_LOG_BYTES = 16 * 1024


class Switchboard:
    """The connections of one sandbox."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._open = {CONTROL: 0, PREVIEW: 0}
        self.stop = asyncio.Event()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to the control socket; its first byte says what is wanted."""
        with suppress(OSError):
            if await reader.read(1) == KILL:
                self.stop.set()
                await asyncio.Event().wait()  # closed by the end of this process: all is gone then
            await self._connect(CONTROL, bounded(reader, writer))
        writer.close()

    async def browser(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to the preview port."""
        with suppress(OSError):
            await self._connect(PREVIEW, bounded(reader, writer))
        writer.close()

    async def _connect(self, kind: bytes, outside: Peer) -> None:
        if self._open[kind] >= MAX_CONNECTIONS[kind]:
            return
        self._open[kind] += 1
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                # Full, if the agent is stuck: an error, which closes this connection.
                socket.send_fds(self._box.channel, [kind], [theirs.fileno()])
            await relay(outside, await peer(ours))
        finally:
            self._open[kind] -= 1


def run(
    box: Box,
    control: socket.socket,
    preview: socket.socket,
    *,
    timeout_s: float,
    ready: Callable[[], None],
) -> None:
    """Serve until the sandbox has ended by itself, by its time or by request; then all is gone.

    `ready` is called once clients are welcome. Raises `StartFailed`.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two per connection
    asyncio.run(_run(box, control, preview, timeout_s, ready))


async def _run(
    box: Box,
    control: socket.socket,
    preview: socket.socket,
    timeout_s: float,
    ready: Callable[[], None],
) -> None:
    loop = asyncio.get_running_loop()
    board = Switchboard(box)
    loop.add_signal_handler(signal.SIGTERM, board.stop.set)
    loop.call_later(timeout_s, board.stop.set)
    try:
        box.channel.setblocking(False)
        os.set_blocking(box.errors, False)
        await _until_ready(box)
        box.watch()
        loop.add_reader(box.ended, board.stop.set)
        loop.add_reader(box.errors, _Complaints(box.errors).read)
        await asyncio.start_unix_server(board.client, sock=control, limit=CHUNK_BYTES)
        await asyncio.start_server(board.browser, sock=preview, limit=CHUNK_BYTES)
        ready()
        await board.stop.wait()
    finally:
        # While the clients who asked for the end are still connected: they wait for ours.
        box.end()


async def _until_ready(box: Box) -> None:
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            word = await asyncio.get_running_loop().sock_recv(box.channel, 64)
    except TimeoutError:
        raise StartFailed(f"no answer from inside within {READY_WITHIN_S:g} s") from None
    if word != READY:
        with suppress(BlockingIOError):
            word = os.read(box.errors, MAX_LOG_BYTES)
        raise StartFailed(word.decode(errors="replace").strip() or "it ended without a word")


class _Complaints:
    """What comes from inside goes to the log, up to a limit: no app may fill the host's disk."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._left = MAX_LOG_BYTES

    def read(self) -> None:
        data = os.read(self._fd, CHUNK_BYTES)
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
        os.write(2, data[: self._left])
        self._left -= min(self._left, len(data))
