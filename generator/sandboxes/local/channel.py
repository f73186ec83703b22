"""A client's connection to the agent inside a sandbox, where everything that comes is suspect."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from generator.sandboxes.local.inside.frames import (
    CONTROL,
    HEADER,
    RESULT,
    MalformedFrame,
    frame,
    payload_size,
)

HANG_UP_S = 3.0


class ChannelLost(Exception):
    """Nobody answers, or no longer: most likely the sandbox has ended."""


class Channel:
    """Frames to and from the agent, for one operation."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._received = BufferedByteReceiveStream(stream)

    async def begin(self, kind: bytes) -> None:
        """Tell the supervisor that the agent is wanted, and whether to install."""
        await self._send(kind)

    async def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send one frame."""
        await self._send(frame(kind, payload))

    async def receive(self) -> tuple[bytes, bytes]:
        """Kind and payload of the next frame. Raises `ChannelLost` or `MalformedFrame`."""
        try:
            header = await self._received.receive_exactly(HEADER.size)
            kind, size = payload_size(header)
            return kind, await self._received.receive_exactly(size)
        except (anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise ChannelLost from None

    async def result(self) -> dict[str, Any]:
        """The final frame, where no other can come."""
        kind, payload = await self.receive()
        return parsed_result(kind, payload)

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the agent may have said why before it hung up: for `receive` to find out

    async def hang_up(self) -> None:
        """End our half and wait until the agent has ended its own: it has cleaned up then."""
        with anyio.move_on_after(HANG_UP_S, shield=True):
            try:
                await self._stream.send_eof()
                while await self._stream.receive():
                    pass
            except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                pass
        await anyio.aclose_forcefully(self._stream)


@asynccontextmanager
async def open_channel(socket_path: str, kind: bytes = CONTROL) -> AsyncIterator[Channel]:
    """A channel to the agent behind a control socket; leaving it ends the operation inside.

    Raises `ChannelLost` when nobody listens.
    """
    try:
        stream = await anyio.connect_unix(socket_path)
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        raise ChannelLost from None
    channel = Channel(stream)
    try:
        await channel.begin(kind)
        yield channel
    finally:
        await channel.hang_up()


def parsed_result(kind: bytes, payload: bytes) -> dict[str, Any]:
    """The JSON object of a final frame. Raises `MalformedFrame` for anything else."""
    if kind != RESULT:
        raise MalformedFrame(f"a frame of unexpected kind {kind!r}")
    try:
        result = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame("a result that is not JSON") from error
    if not isinstance(result, dict):
        raise MalformedFrame("a result that is not an object")
    return result
