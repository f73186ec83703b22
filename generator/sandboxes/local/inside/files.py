"""Files inside a sandbox. Whatever links an app has planted, they lead nowhere but inside."""

import json
import os
import stat
from contextlib import suppress

from .client import Client, Refused, Result
from .commands import PROJECT_DIR
from .frames import CHUNK_BYTES, DATA, END, FILE


async def write(client: Client) -> Result:
    """Write the files that the client sends until its `END`."""
    fd = -1
    refusal = None
    try:
        while (received := await client.receive())[0] != END:
            if refusal is None:
                try:
                    fd = _take(fd, *received)
                except OSError as error:
                    # The rest is read nevertheless: hanging up on a client that is still sending
                    # would cost it the answer.
                    refusal = Refused.by(error)
    finally:
        if fd >= 0:
            os.close(fd)
    if refusal is not None:
        raise refusal
    return {}


async def read(client: Client, path: str) -> Result:
    """Send one regular file below the project."""
    fd = _open(path)
    try:
        while data := os.read(fd, CHUNK_BYTES):
            await client.send(DATA, data)
    finally:
        os.close(fd)
    return {}


def _take(fd: int, kind: bytes, payload: bytes) -> int:
    """The file that is open after one more frame."""
    if kind == FILE:
        if fd >= 0:
            os.close(fd)
        return _create(**json.loads(payload))
    if kind == DATA:
        view = memoryview(payload)
        while view:
            view = view[os.write(fd, view) :]
    return fd


def _create(path: str, executable: bool) -> int:
    target = os.path.join(PROJECT_DIR, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(target)  # it may be a link, a pipe, or a program that is running
    return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if executable else 0o644)


def _open(path: str) -> int:
    real = os.path.realpath(os.path.join(PROJECT_DIR, path))
    if not real.startswith(PROJECT_DIR + "/"):
        raise Refused("missing", path)  # a link to, say, /dev/zero
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise Refused.by(error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused("missing", path)
    return fd
