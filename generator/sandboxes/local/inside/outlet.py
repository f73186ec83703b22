"""A proxy's address inside the sandbox, for as long as an install command runs.

Each connection to it asks the supervisor for a way out; where that leads, and whether anywhere, is
decided outside. Whoever pretends to be this agent can ask for no more.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .frames import CHUNK_BYTES, WAY_OUT
from .relay import bounded, peer, relay

GIVEN_WITHIN_S = 10.0


class Outlet:
    """Connections that wait for their way out, in the order in which they asked."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._waiting: deque[asyncio.Future[socket.socket]] = deque()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[dict[str, str]]:
        """The environment of a command that may use it."""
        server = await asyncio.start_server(self._leave, "127.0.0.1", 0, limit=CHUNK_BYTES)
        proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        home = "localhost,127.0.0.1,::1"
        try:
            yield {
                **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"), proxy),
                **{"https_proxy": proxy, "NO_PROXY": home, "no_proxy": home},
            }
        finally:
            server.close()

    def given(self, sock: socket.socket) -> None:
        """The supervisor has sent a way out."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(sock)
                return
        sock.close()

    async def _leave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiter: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            self._channel.send(WAY_OUT, socket.MSG_DONTWAIT)
            async with asyncio.timeout(GIVEN_WITHIN_S):
                sock = await waiter
            await relay(bounded(reader, writer), await peer(sock))
        except (OSError, TimeoutError):
            waiter.cancel()
        finally:
            writer.close()
