"""Runs inside a sandbox: starts processes, signals them, and opens connections to its ports.

One connection to its unix socket is one order, a line of JSON. Only the standard library is here.

    {"op": "exec", "argv": [...], "env": {...}, "cwd": "..."}
        answers lines: {"pid"} or {"error"}, then {"stdout"} and {"stderr"} in base64, {"exit_code"}
    {"op": "signal", "pid": 7, "signal": 9}     answers {"found": true}
    {"op": "dial", "port": 8080}                answers {"open": true}, then relays bytes
"""

import asyncio
import base64
import contextlib
import json
import os
import sys
from asyncio import StreamReader, StreamWriter
from typing import Any

CHUNK_BYTES = 32 * 1024
MAX_LINE_BYTES = 1024 * 1024


async def serve(socket_path: str) -> None:
    server = await asyncio.start_unix_server(answer, socket_path, limit=MAX_LINE_BYTES)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


async def answer(reader: StreamReader, writer: StreamWriter) -> None:
    # The server may hang up at any moment; what it started goes on.
    with contextlib.suppress(ConnectionError), contextlib.closing(writer):
        match order := json.loads(await reader.readline()):
            case {"op": "exec"}:
                await run(order, writer)
            case {"op": "signal", "pid": pid, "signal": number}:
                try:
                    os.kill(pid, number)
                    tell(writer, found=True)
                except ProcessLookupError:
                    tell(writer, found=False)
            case {"op": "dial", "port": port}:
                await relay(port, reader, writer)
        await writer.drain()


async def run(order: dict[str, Any], writer: StreamWriter) -> None:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *order["argv"],
            cwd=order["cwd"],
            env=order["env"],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
    except OSError as error:
        tell(writer, error=str(error))
        return
    assert process.stdout is not None
    assert process.stderr is not None
    tell(writer, pid=process.pid)
    # As envd does: a command has ended when nobody holds its output any more.
    await asyncio.gather(
        copy_output("stdout", process.stdout, writer), copy_output("stderr", process.stderr, writer)
    )
    tell(writer, exit_code=await process.wait())


async def copy_output(name: str, source: StreamReader, writer: StreamWriter) -> None:
    while data := await source.read(CHUNK_BYTES):
        tell(writer, **{name: base64.b64encode(data).decode()})
        with contextlib.suppress(ConnectionError):
            await writer.drain()


async def relay(port: int, reader: StreamReader, writer: StreamWriter) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        tell(writer, open=False)
        return
    tell(writer, open=True)
    await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))


async def pump(source: StreamReader, sink: StreamWriter) -> None:
    """Copy until the source ends, and pass its end on."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof()


def tell(writer: StreamWriter, **message: object) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
