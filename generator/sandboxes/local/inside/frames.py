"""The wire format between a client and the agent inside a sandbox.

A frame is a kind (1 byte), a length (4 bytes, big-endian) and the payload. A client opens one
connection per operation and sends a `REQUEST` (a JSON object with `op`); for `write` it goes on
with a `FILE` (JSON: path, executable) and its `DATA` per file, then `END`. It closes its sending
half when it wants no more. The agent answers with `STDOUT`, `STDERR` or `DATA` frames and one
`RESULT` (a JSON object), then closes. Between the frames of an `INSTALL` the supervisor says with a
`NOTE` (text) what was reached.
"""

import struct

HEADER = struct.Struct(">cI")
MAX_FRAME_BYTES = 1024 * 1024
CHUNK_BYTES = 32 * 1024

REQUEST, FILE, DATA, END = b"q", b"f", b"d", b"z"
STDOUT, STDERR, RESULT, NOTE = b"o", b"e", b"r", b"n"

# The first byte of a connection to the supervisor, and what accompanies a socket to the agent.
# `INSTALL` is a `CONTROL` during which the agent may ask, by that byte, for a `WAY_OUT`.
CONTROL, PREVIEW, KILL, INSTALL, WAY_OUT = b"c", b"p", b"k", b"i", b"w"

READY = b"ready"
"""What the agent tells its supervisor once it serves."""


class MalformedFrame(Exception):
    """The other side does not speak this format; nothing more can be read from it."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame, ready to send. Raises `ValueError` when the payload is too large."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, not {len(payload)}")
    return HEADER.pack(kind, len(payload)) + payload


def payload_size(header: bytes) -> tuple[bytes, int]:
    """Kind and length that `header` announces. Raises `MalformedFrame` beyond the limit."""
    kind, size = HEADER.unpack(header)
    if size > MAX_FRAME_BYTES:
        raise MalformedFrame(f"a frame of {size} bytes was announced")
    return kind, size
