"""Process 1 of a sandbox: does inside what clients ask for, and connects browsers to the app.

Every connection arrives as a socket passed over the channel to the supervisor, with a byte that
says what it is: `CONTROL` for one operation of a client, `PREVIEW` for a connection to the app.
As process 1 the agent reaps every orphan, no signal of the app can end it, and no process of
bubblewrap remains visible inside, whose /proc/1/exe would be a way to a file of the host.
"""

import asyncio
import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

from . import files
from .client import Client, Refused, Result
from .commands import Commands
from .frames import CHUNK_BYTES, PREVIEW, READY, RESULT, WAY_OUT, MalformedFrame
from .outlet import Outlet
from .relay import bounded, peer, relay

APP_HOSTS = ("127.0.0.1", "::1")
APP_PORT = 8080


async def serve(channel: socket.socket) -> None:
    """Serve connections until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    supervisor_gone = asyncio.Event()
    connections: set[asyncio.Task[None]] = set()
    commands, outlet = Commands(), Outlet(channel)

    def accept() -> None:
        kind, fds, _, _ = socket.recv_fds(channel, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not kind:
            supervisor_gone.set()
        for fd in fds:
            sock = socket.socket(fileno=fd)
            if kind == WAY_OUT:
                outlet.given(sock)
                continue
            connection = show_app(sock) if kind == PREVIEW else answer(sock, commands, outlet)
            task = loop.create_task(connection)
            connections.add(task)  # the loop keeps weak references only
            task.add_done_callback(connections.discard)

    loop.add_signal_handler(signal.SIGCHLD, commands.reap)
    loop.add_reader(channel, accept)
    channel.send(READY)
    await supervisor_gone.wait()


async def show_app(sock: socket.socket) -> None:
    """Connect a browser to the app; with no app listening, its connection is closed."""
    browser = await peer(sock)
    for host in APP_HOSTS:
        with suppress(OSError):
            app = await asyncio.open_connection(host, APP_PORT, limit=CHUNK_BYTES)
            await relay(browser, bounded(*app))
            break
    browser[1].close()


async def answer(sock: socket.socket, commands: Commands, outlet: Outlet) -> None:
    """Do the one operation that a client asks for."""
    reader, writer = await peer(sock)
    client = Client(reader, writer)
    with suppress(OSError, asyncio.IncompleteReadError):
        try:
            result = await perform(client, commands, outlet)
        except Refused as refusal:
            result = {"error": refusal.kind, "message": str(refusal)}
        except (ValueError, KeyError, TypeError, MalformedFrame) as error:
            result = {"error": "failed", "message": f"request not understood: {error}"}
        await client.send(RESULT, json.dumps(result).encode())
    writer.close()


async def perform(client: Client, commands: Commands, outlet: Outlet) -> Result:
    _, payload = await client.receive()
    match json.loads(payload):
        case {"op": "run", "command": command, "env": env, "timeout_s": timeout_s}:
            return await commands.run(client, command, env, timeout_s)
        case {"op": "install", "command": command, "env": env, "timeout_s": timeout_s}:
            async with outlet.open() as proxy:
                return await commands.run(client, command, env | proxy, timeout_s)
        case {"op": "start", "command": command, "env": env, "log_path": log_path}:
            return commands.start(command, env, log_path)
        case {"op": "write"}:
            return await files.write(client)
        case {"op": "read", "path": path}:
            return await files.read(client, path)
        case {"op": "end"}:
            return await commands.end_all()
        case {"op": "ping"}:
            return {}
        case other:
            raise ValueError(other)


def close_all_but(kept: set[int]) -> None:
    """Close what bubblewrap left open: the app could reach into it through /proc."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in kept:
            with suppress(OSError):
                os.close(fd)


def main() -> None:
    """Arguments: the channel's descriptor, and a JSON object of resource limits by name."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    close_all_but({0, 1, 2, channel.fileno()})
    os.umask(0o022)
    # Process 1 gets no signal from inside that it has no handler for; Python has one for this.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Set here and not outside: inside the user namespace RLIMIT_NPROC counts this sandbox alone.
    for name, limit in json.loads(sys.argv[2]).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    asyncio.run(serve(channel))
