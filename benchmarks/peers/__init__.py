"""What others do in the same run, on the same servers: installed when they are asked for.

Each peer is a program beside this file. They have an environment of their own, from
`locks/peers.txt`: what they need is nothing that Headrace should have.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from anyio import to_thread

from benchmarks.rows import Say
from service.embedded import Servers
from service.errors import ServiceError
from service.settings import ROOT

AT_ONCE = 32
DBOS = "dbos_workflows"
TASKIQ = "taskiq_jobs"
EVENTSOURCING = "eventsourcing_projection"
FOLDING = "eventsourcing, a commit for each event"
PEER_EVENTS = 6_000
"""Events at most: so few, because a commit for each takes as long as ours take for many more."""
_LOCK = ROOT / "locks" / "peers.txt"
_HOME = ROOT / ".venv" / "peers"
_INSTALL_S = 300.0
_RUN_S = 300.0


class Peers:
    """The peers, ready to run on these servers."""

    def __init__(self, servers: Servers, say: Say) -> None:
        """Installs them, once. Raises `ServiceError`."""
        self._servers = servers
        self._python = _installed(say)

    async def rate(self, name: str, **more: Any) -> float:
        """How many jobs a peer ends a second, or events it folds; `more` says how many of them.

        Raises `ServiceError`.
        """
        return await self._found(name, "per_s", more)

    async def wait_p50_ms(self, name: str, jobs: int) -> float:
        """How long a job of a peer waits for a worker with nothing to do. Raises `ServiceError`."""
        return await self._found(name, "wait_p50_ms", {"waits": jobs})

    async def _found(self, name: str, what: str, more: dict[str, Any]) -> float:
        asked = {
            "redis_url": self._servers.redis_url,
            "database_url": self._servers.database_url,
            "at_once": AT_ONCE,
            **more,
        }
        program = str(Path(__file__).parent / f"{name}.py")
        command = [str(self._python), "-P", program, json.dumps(asked)]
        said = await to_thread.run_sync(_run, command, _RUN_S)
        return float(json.loads(said.splitlines()[-1])[what])


def _installed(say: Say) -> Path:
    """The Python that has them."""
    python, stamp = _HOME / "bin" / "python", _HOME / "installed.txt"
    lock = _LOCK.read_text()
    if not (stamp.is_file() and stamp.read_text() == lock):
        say(f"installing the peers from {_LOCK.relative_to(ROOT)} (once)")
        _run([sys.executable, "-m", "venv", "--clear", str(_HOME)], _INSTALL_S)
        install = ["pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        _run([str(python), "-m", *install, "-r", str(_LOCK)], _INSTALL_S)
        stamp.write_text(lock)
    return python


def _run(command: list[str], timeout_s: float) -> str:
    """What a program prints. Raises `ServiceError`."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise ServiceError(f"{' '.join(command[:3])} failed, saying: {said[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"{' '.join(command[:3])} did not end in {timeout_s:g} s") from error
    return done.stdout
