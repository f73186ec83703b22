"""Worker processes, as a benchmark starts, kills and ends them."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import anyio
import anyio.to_thread
import redis as blocking_redis

from benchmarks.servers import NO_CAP, PARTITIONS
from eventstore import Archive, CommandHandler, Hub, connect_postgres, connect_redis, open_log
from generator import ArtifactStore, GenerationService, Heart, Runner, Worker
from generator.runner import Listener, RunnerTask
from generator.workspace import Workspace
from schemas.commands import NO_USAGE, Usage
from service.collector import settle
from service.embedded import Servers
from service.logging import configure_logging

DONE, GO, REST = b"done\n", b"go\n", b"rest\n"
ROOT = Path(__file__).parent.parent


class Waiting:
    """A runner that writes nothing, and takes so long for it."""

    name = "waiting"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        await anyio.sleep(self._seconds)
        return NO_USAGE


class WorkerProcess:
    """A worker in a process of its own. It ends with the block that started it, if not before."""

    def __init__(self, words: list[str]) -> None:
        self._process = Popen(
            [sys.executable, "-m", "benchmarks.worker", *words],
            cwd=ROOT,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
        )

    def go(self) -> None:
        """Let it take work."""
        self._tell(GO)

    def rest(self) -> None:
        """Let it take no more; it hands back what it has."""
        self._tell(REST)

    def kill(self) -> None:
        """End it as a power failure would."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def wait(self) -> None:
        """Return when it has done what it was told, first of all to start."""
        assert self._process.stdout is not None  # noqa: S101 - it was made with one
        if self._process.stdout.readline() != DONE:
            raise RuntimeError(f"a worker process ended with code {self._process.wait()}")

    def _tell(self, what: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was made with one
        self._process.stdin.write(what)
        self._process.stdin.flush()
        self.wait()


@contextmanager
def workers(
    count: int, servers: Servers, *, slots: int, lease_s: float = 15.0, busy_s: float = 0.0
) -> Iterator[list[WorkerProcess]]:
    """So many of them, which take no work yet. With `busy_s` the code of a build takes so long.

    Without it they walk the simulated loop.
    """
    words = [servers.redis_url, servers.database_url, *map(str, (slots, lease_s, busy_s))]
    # Not theirs: who is killed removes nothing.
    with tempfile.TemporaryDirectory(prefix="headrace-workers-") as folder:
        homes = [Path(folder) / str(number) for number in range(count)]
        for home in homes:
            home.mkdir()
        processes = [WorkerProcess([*words, str(home)]) for home in homes]
        try:
            for process in processes:
                process.wait()
            yield processes
        finally:
            for process in processes:
                process.kill()


async def _serve(words: list[str], home: Path) -> None:
    redis_url, database_url = words[:2]
    slots, lease_s, busy_s = int(words[2]), float(words[3]), float(words[4])
    lease_ms = round(lease_s * 1000)
    store = await open_log(
        connect_redis(redis_url),
        Archive(connect_postgres(database_url)),
        partitions=PARTITIONS,
        tenant_cap=NO_CAP,
    )
    hub = Hub(store, connect_redis(redis_url))
    runner: Runner | None = Waiting(busy_s) if busy_s else None
    service = GenerationService(
        CommandHandler(store),
        hub,
        ArtifactStore.in_folder(home / "artifacts"),
        runner=runner,
        sandbox_runtime_factory=None,
        workspace_root=home / "workspaces",
    )
    heart = Heart(
        lambda: blocking_redis.Redis.from_url(redis_url, socket_timeout=2),
        lease_ms=lease_ms,
        partition_of=store.partition,
    )
    worker = Worker(store, hub, service, heart, lease_ms=lease_ms, slots=slots)
    with heart:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.run)
            settle()
            await _obey(worker)
            tasks.cancel_scope.cancel()


async def _obey(worker: Worker) -> None:
    """Until whoever started this process ends, too."""
    _say_done()
    while await anyio.to_thread.run_sync(sys.stdin.buffer.readline) == GO:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            _say_done()
            await anyio.to_thread.run_sync(sys.stdin.buffer.readline)
            tasks.cancel_scope.cancel()
        _say_done()


def _say_done() -> None:
    sys.stdout.buffer.write(DONE)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    *its_words, its_home = sys.argv[1:]
    with (Path(its_home) / "headrace.log").open("w") as log_file:
        configure_logging(log_file)  # as an instance does
        anyio.run(_serve, its_words, Path(its_home))
