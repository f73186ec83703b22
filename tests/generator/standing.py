"""A worker process that stands still at a point of each job, so that a fault can meet it there.

`python -m tests.generator.standing <redis> <postgres> <folder> <run folder> <lease in ms>`

A job's goal names the point. When all of its jobs stand, the process says so, and goes on when it
is told to. The sandboxes are real ones of this machine.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from redis import Redis as BlockingRedis

from eventstore import (
    Archive,
    Claim,
    CommandHandler,
    EventStore,
    Handled,
    Hub,
    connect_postgres,
    connect_redis,
    open_log,
)
from generator import ArtifactStore, Deadlines, GenerationService, Heart, Patience, Worker
from generator.runner import Listener, RunnerTask
from generator.sandboxes.local import LocalRuntime
from generator.workspace import Workspace
from schemas import Job, JobRef, Phase, Status
from schemas.commands import Command, CompletePhase, FinishBuild, StartJob, Usage
from service.logging import configure_logging
from tests.generator.local.probes import SMALL
from tests.logs import PARTITIONS

ROOT = Path(__file__).parent.parent.parent
POINTS = ("starting", "scaffold", "code", "deps", "checks", "ready")
"""Before the first append, before each phase is told to be completed, before the checks begin,
and before the last append, behind everything that leads to READY."""
HERE, ENDED, GO, BLOCK = b"here\n", b"ended\n", b"go\n", b"block\n"

_APP = """
import http.server, json, os
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        who = {"status": "ok", "job": os.environ["HEADRACE_JOB"],
               "build": os.environ["HEADRACE_MARKER"]}
        body = json.dumps(who).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", 8080), App).serve_forever()
"""
_MANIFEST = """
[commands]
install = "true"
test = "true"
start = "exec python3 app.py"
"""


class CountedRunner:
    """Writes the same small app each time, and leaves a line for each time in a file of the job."""

    name = "counted"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        self._folder.mkdir(exist_ok=True)
        with (self._folder / task.job).open("a") as asked:
            asked.write("asked\n")
        await workspace.write("headrace.toml", _MANIFEST)
        await workspace.write("app.py", _APP)
        return Usage(10, 20, 0.5)


class Gate:
    """Where jobs stand until they are let go."""

    def __init__(self) -> None:
        self._standing: set[str] = set()
        self._open = anyio.Event()
        self.full = anyio.Event()

    async def stand(self, job: str) -> None:
        """Return when all are let go; at once for a job that has stood already."""
        if job in self._standing:
            return
        self._standing.add(job)
        if len(self._standing) == len(POINTS):
            self.full.set()
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


class StandingHandler(CommandHandler):
    """Lets each job stand at its point."""

    def __init__(self, store: EventStore, gate: Gate) -> None:
        super().__init__(store)
        self._gate = gate

    async def handle(
        self, ref: JobRef, *commands: Command, job: Job | None = None, **options: Any
    ) -> Handled:
        if job is not None and job.goal in {_before(one) for one in commands}:
            await self._gate.stand(ref.job)
        handled = await super().handle(ref, *commands, job=job, **options)
        if handled.job.status is Status.CHECKS and handled.job.goal == "checks":
            await self._gate.stand(ref.job)
        return handled


def _before(command: Command) -> str | None:
    match command:
        case StartJob():
            return "starting"
        case CompletePhase(phase=Phase.SCAFFOLD | Phase.CODE | Phase.DEPS as phase):
            return phase.value
        case FinishBuild():
            return "ready"
    return None


class CountingService(GenerationService):
    """Knows when so many builds as there are points have ended in it, well or not."""

    ended = 0
    all_ended: anyio.Event

    async def execute_build(self, claim: Claim) -> Job:
        try:
            return await super().execute_build(claim)
        finally:
            self.ended += 1
            if self.ended == len(POINTS):
                self.all_ended.set()


def sandboxes(folder: Path, run_folder: Path) -> LocalRuntime:
    """The sandboxes of all workers of a test."""
    return LocalRuntime(folder / "sandboxes", run_folder, SMALL)


@asynccontextmanager
async def working(
    handler: CommandHandler, hub: Hub, redis_url: str, folder: Path, run_folder: Path, lease_ms: int
) -> AsyncIterator[CountingService]:
    """A worker with a slot for each point, in this process."""
    service = CountingService(
        handler,
        hub,
        ArtifactStore.in_folder(folder / "artifacts"),
        runner=CountedRunner(folder / "asked"),
        sandbox_runtime_factory=lambda: sandboxes(folder, run_folder),
        workspace_root=folder / "workspaces",
        deadlines=Deadlines(probe_s=30),
        patience=Patience(first_s=0.0),
    )
    service.all_ended = anyio.Event()
    heart = Heart(
        lambda: BlockingRedis.from_url(redis_url, socket_timeout=2),
        lease_ms=lease_ms,
        partition_of=handler.store.partition,
    )
    worker = Worker(handler.store, hub, service, heart, lease_ms=lease_ms, slots=len(POINTS))
    with heart:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            yield service
            tasks.cancel_scope.cancel()


class StandingWorker:
    """The process, as a test drives it."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.generator.standing", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    async def until_all_stand(self) -> None:
        """Return when each of its jobs has come to its point."""
        await self._hear(HERE)

    async def until_all_ended(self) -> None:
        """Return when none of its builds goes on."""
        await self._hear(ENDED)

    def go(self) -> None:
        """Let all jobs go on."""
        self._tell(GO)

    async def block(self) -> None:
        """Let its event loop stand still, until it is told to go."""
        self._tell(BLOCK)
        await self._hear(HERE)

    def kill(self) -> None:
        """End it as a power failure would."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def freeze(self) -> None:
        """It runs no further until it is woken."""
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """It goes on where it was frozen."""
        self._process.send_signal(signal.SIGCONT)

    def _tell(self, what: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what)
        self._process.stdin.flush()

    async def _hear(self, what: bytes) -> None:
        assert self._process.stdout is not None
        line = await anyio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
        assert line == what


@contextmanager
def standing_worker(
    redis_url: str, database_url: str, folder: Path, run_folder: Path, lease_ms: int
) -> Iterator[StandingWorker]:
    """A worker process while the block runs."""
    words = (redis_url, database_url, str(folder), str(run_folder), str(lease_ms))
    worker = StandingWorker(*words)
    try:
        yield worker
    finally:
        worker.kill()


async def _work(*words: str) -> None:
    redis_url, database_url, folder, run_folder, lease_ms = words
    store = await open_log(
        connect_redis(redis_url), Archive(connect_postgres(database_url)), partitions=PARTITIONS
    )
    gate = Gate()
    hub = Hub(store, connect_redis(redis_url))
    where = (redis_url, Path(folder), Path(run_folder), int(lease_ms))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        async with working(StandingHandler(store, gate), hub, *where) as service:
            await gate.full.wait()
            _say(HERE)
            if await anyio.to_thread.run_sync(sys.stdin.buffer.readline) == BLOCK:
                _say(HERE)
                sys.stdin.buffer.readline()  # here, on the loop
            gate.open()
            await service.all_ended.wait()
            _say(ENDED)
            await anyio.sleep_forever()


def _say(what: bytes) -> None:
    sys.stdout.buffer.write(what)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    configure_logging(sys.stderr)  # stdout is for who started us
    anyio.run(_work, *sys.argv[1:])
