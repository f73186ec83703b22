"""Connects clients and browsers with a sandbox, for as long as it may live.

Runs in the supervisor. No socket of the host's network ever goes into the sandbox, where it could
be connected to somewhere else: each connection is relayed to a socket pair of its own.
"""

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from .inside.frames import (
    CHUNK_BYTES,
    CONTROL,
    HEADER,
    INSTALL,
    KILL,
    NOTE,
    PREVIEW,
    READY,
    RESULT,
    WAY_OUT,
    MalformedFrame,
    frame,
    payload_size,
)
from .inside.relay import Peer, bounded, peer, pour, relay
from .supervisor import UNCLAIMED_S, Box, StartFailed

if TYPE_CHECKING:
    from .egress import Egress

READY_WITHIN_S = 10.0
MAX_CONNECTIONS = {CONTROL: 64, PREVIEW: 512}
"""At once; counted apart, so that browsers cannot shut out the worker."""

MAX_LOG_BYTES = 16 * 1024
MAX_NOTES = 500
MAX_NOTE_BYTES = 500

Carry = Callable[[Peer, Peer], Awaitable[None]]

Claimed = Callable[[], float | None]
"""Told that the worker speaks, says how many seconds the sandbox may live; None for no more."""


class Switchboard:
    """The connections of one sandbox."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._open = {CONTROL: 0, PREVIEW: 0}
        self._egress: Egress | None = None
        self.stop = asyncio.Event()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to the control socket; its first byte says what is wanted."""
        with suppress(OSError):
            wanted = await reader.read(1)
            if wanted == KILL:
                self.stop.set()
                await asyncio.Event().wait()  # closed by the end of this process: all is gone then
            carry = self._install if wanted == INSTALL else relay
            await self._connect(CONTROL, bounded(reader, writer), carry)
        writer.close()

    async def browser(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to the preview port."""
        with suppress(OSError):
            await self._connect(PREVIEW, bounded(reader, writer))
        writer.close()

    async def _connect(self, kind: bytes, outside: Peer, carry: Carry = relay) -> None:
        if self._open[kind] >= MAX_CONNECTIONS[kind]:
            return
        self._open[kind] += 1
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                # Full, if the agent is stuck: an error, which closes this connection.
                socket.send_fds(self._box.channel, [kind], [theirs.fileno()])
            await carry(outside, await peer(ours))
        finally:
            self._open[kind] -= 1

    async def _install(self, client: Peer, agent: Peer) -> None:
        """Let the sandbox out, to the hosts that were named, until this operation has ended."""
        from .egress import Egress

        notes = MAX_NOTES

        def tell(line: str) -> None:
            nonlocal notes
            notes -= 1
            if notes >= 0 and not client[1].is_closing():
                text = f"network: {line}"[:MAX_NOTE_BYTES] if notes else "network: …"
                client[1].write(frame(NOTE, f"{text}\n".encode()))

        async def until_client_is_gone() -> None:
            await pour(client[0], agent[1])
            egress.close()  # whatever the agent does then

        egress = Egress(self._box.install_hosts, tell)
        loop, channel = asyncio.get_running_loop(), self._box.channel
        # The newest counts: the one before belongs to a worker that was superseded.
        loop.add_reader(channel, self._let_out, egress)
        self._egress = egress
        try:
            await asyncio.gather(
                until_client_is_gone(), _pour_frames(agent[0], client[1], egress.close)
            )
        finally:
            if self._egress is egress:
                loop.remove_reader(channel)
            egress.close()
            agent[1].close()
            client[1].close()

    def _let_out(self, egress: "Egress") -> None:
        """The agent asks for a way out. Nothing else is understood, and no descriptor taken."""
        loop, channel = asyncio.get_running_loop(), self._box.channel
        try:
            asked = channel.recv(64) == WAY_OUT
        except BlockingIOError:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(channel, [WAY_OUT], [theirs.fileno()])
            except OSError:
                asked = False
        if not asked or not egress.serve(ours):
            ours.close()
            loop.remove_reader(channel)  # no more of it, for this install


def run(
    box: Box,
    control: socket.socket,
    preview: socket.socket,
    worker: socket.socket,
    claimed: Claimed,
) -> None:
    """Serve until the sandbox has ended by itself, by its time or by request; then all is gone.

    `claimed` is called once clients are welcome and `worker` has something to say. Raises
    `StartFailed`.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two per connection
    asyncio.run(_run(box, control, preview, worker, claimed))


async def _run(
    box: Box,
    control: socket.socket,
    preview: socket.socket,
    worker: socket.socket,
    claimed: Claimed,
) -> None:
    loop = asyncio.get_running_loop()
    board = Switchboard(box)
    loop.add_signal_handler(signal.SIGTERM, board.stop.set)

    unclaimed = loop.call_later(UNCLAIMED_S, board.stop.set)

    def hear() -> None:
        loop.remove_reader(worker)
        unclaimed.cancel()
        try:
            life_s = claimed()
        except BaseException:
            board.stop.set()  # of one that could not be written down nobody would know
            raise
        if life_s is None:
            board.stop.set()
        else:
            loop.call_later(life_s, board.stop.set)

    try:
        box.channel.setblocking(False)
        os.set_blocking(box.errors, False)
        await _until_ready(box)
        box.watch()
        loop.add_reader(box.ended, board.stop.set)
        loop.add_reader(box.errors, _Complaints(box.errors).read)
        await asyncio.start_unix_server(board.client, sock=control, limit=CHUNK_BYTES)
        await asyncio.start_server(board.browser, sock=preview, limit=CHUNK_BYTES)
        loop.add_reader(worker, hear)
        await board.stop.wait()
    finally:
        # While the clients who asked for the end are still connected: they wait for ours.
        box.end()


async def _pour_frames(
    agent: asyncio.StreamReader, client: asyncio.StreamWriter, before_result: Callable[[], None]
) -> None:
    """Carry whole frames, so that notes fit between them; none of the agent's passes for a note."""
    with suppress(OSError, asyncio.IncompleteReadError, MalformedFrame):
        while True:
            kind, size = payload_size(await agent.readexactly(HEADER.size))
            payload = await agent.readexactly(size)
            if kind == RESULT:
                before_result()
            if kind != NOTE:
                client.write(frame(kind, payload))
                await client.drain()
    with suppress(OSError):
        client.write_eof()


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
