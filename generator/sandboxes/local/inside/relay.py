"""Bytes from one stream to another and back, with bounded memory."""

import asyncio
import socket
from contextlib import suppress

from .frames import CHUNK_BYTES

LINGER_S = 1.0

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def peer(sock: socket.socket) -> Peer:
    """Bounded streams on a connected socket."""
    return bounded(*await asyncio.open_connection(sock=sock, limit=CHUNK_BYTES))


def bounded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Peer:
    """The streams, `drain` returning only when everything has been handed to the kernel."""
    writer.transport.set_write_buffer_limits(0)
    return reader, writer


async def relay(left: Peer, right: Peer) -> None:
    """Carry bytes both ways until both sides have ended; each may end its half alone."""
    try:
        await asyncio.gather(pour(left[0], right[1]), pour(right[0], left[1]))
    finally:
        left[1].close()
        right[1].close()


async def pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Carry bytes one way until either end has gone."""
    with suppress(OSError):
        while data := await _next(source):
            sink.write(data)
            await sink.drain()
        sink.write_eof()
        return
    # The sink has gone. Closing the source with bytes unread would turn its clean end into a
    # reset, so a client that is still sending its request gets a moment to finish.
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while await _next(source):
                pass


async def _next(source: asyncio.StreamReader) -> bytes:
    try:
        return await source.read(CHUNK_BYTES)
    except ConnectionError:
        return b""  # whoever is cut off gets no more than an end either
