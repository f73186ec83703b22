"""A PostgreSQL that can be killed and started again on the same data."""

import signal
import subprocess
from pathlib import Path

import anyio
import asyncpg

from service import embedded

START_S = 30
LOOK_S = 0.01


class KillablePostgres:
    """One server on a socket of its own, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._cluster = folder, folder / "cluster"
        self._binaries = embedded._postgres_binaries()
        self._process: subprocess.Popen[bytes] | None = None
        with (folder / "initdb.log").open("wb") as log:
            embedded._initialise(self._binaries, self._cluster, log)

    @property
    def url(self) -> str:
        return f"postgresql://headrace@/{embedded.DATABASE}?host={self._folder}"

    async def start(self) -> None:
        """Start, and wait until it has recovered."""
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": f'"{self._folder}"',
            "shared_buffers": "16MB",
            "timezone": "UTC",
        }
        command = [*embedded._as_user(), str(self._binaries / "postgres"), "-D", str(self._cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220
        with anyio.fail_after(START_S):
            while not await self._answers():  # noqa: ASYNC110 - it is another process
                await anyio.sleep(LOOK_S)

    def kill(self) -> None:
        """End it in the middle of whatever it does: it must recover when it starts again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_S)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url)
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True
