"""Faults at random over a running instance, and what is found of its jobs afterwards.

Real `./headrace worker` processes build real apps in real sandboxes, on servers that are killed
and started again on their data. Whatever comes, each job must end once, each number be given once,
and nothing be left behind: no sandbox, and on the machine no process, cgroup, folder or socket.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid6 import uuid7

from benchmarks.remains import processes, sandbox_cgroups, sandbox_folders, sandbox_sockets
from benchmarks.rows import Say, silent
from eventstore import (
    Archive,
    CommandHandler,
    EventStore,
    Hub,
    connect_postgres,
    connect_redis,
    open_log,
    patiently,
)
from generator.sandbox import SandboxInfo
from generator.sandboxes.local.registry import ID_PREFIX
from projector import Projector, verify
from schemas import Job, JobIsTerminal, JobRef, Phase, RecordedEvent, Status
from schemas.commands import RequestBuild, RequestCancel
from schemas.events import JobReady, PhaseCompleted
from service.commands.terminal import run
from service.embedded import Servers, embedded_servers
from service.errors import EmbeddedServerFailed
from service.logging import configure_logging
from service.migrating import upgrade
from service.settings import ROOT, Settings
from service.wiring import make_sandbox_runtime

WORKERS = 2
AT_ONCE = 4
LEASE_S = 2
TENANTS = ("acme", "globex")
GOALS = ("a todo list for two", "notes for a team", "a poll for lunch")
PAUSE_S = (1.0, 5.0)
FROZEN_S = (0.5, 3.0 * LEASE_S)
END_S = 180.0
"""How long jobs may still take when no more faults come."""
PATIENCE_S = 60.0
_LOOK_S = 0.25


@dataclass(slots=True)
class Found:
    """What was done, and what was found."""

    done: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def is_clean(self) -> bool:
        """Whether everything held."""
        return not +self.wrong

    def show(self, console: Console) -> None:
        """Print it as a table."""
        table = Table(box=None, header_style="dim", pad_edge=False)
        for title in ("WHAT", "", "TIMES"):
            table.add_column(title, justify="right" if title == "TIMES" else "left")
        for what, counts in (("done", self.done), ("ended", self.ended), ("wrong", self.wrong)):
            for name, times in sorted(counts.items()):
                style = "red" if what == "wrong" and times else None
                table.add_row(what, name, f"{times:,}", style=style)
        console.print(table)


def bench_chaos(say: Say = silent, *, minutes: float = 1.0, seed: int | None = None) -> Found:
    """Faults for so many minutes; what was found when the jobs had ended.

    It takes some three seconds to build an app in a sandbox, so that most faults meet one. With a
    seed the same faults come after the same pauses; what they meet is up to the machine.
    """
    chance = random.Random(seed)  # noqa: S311 - faults, not secrets
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
        home = Path(folder)
        with (home / "chaos.log").open("w") as log_file:
            configure_logging(log_file)
            with Machines(home, chance) as machines:
                storm = run(_chaos, machines, minutes * 60, chance, say)
        wrong, ids = storm.found.wrong, storm.sandboxes
        # When the servers have ended too.
        wrong["processes left over"] = len(processes(home, ids))
        wrong["cgroups left over"] = len(sandbox_cgroups(ids))
        wrong["folders of sandboxes left over"] = len(sandbox_folders(home))
        wrong["sockets of sandboxes left over"] = len(sandbox_sockets(home))
        return storm.found


async def _chaos(machines: "Machines", seconds: float, chance: random.Random, say: Say) -> "Storm":
    async with _opened(machines.servers) as (store, engine, hub):
        projector = Projector(store, engine)
        storm = Storm(machines, CommandHandler(store), chance, say)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.run)
            tasks.start_soon(projector.run, hub)
            await storm.rage(seconds)
            tasks.cancel_scope.cancel()
        machines.end_workers()
        await projector.catch_up()
        await storm.examine()
        _, differences = await verify(engine)
        storm.found.wrong["differences of the read model"] = len(differences)
    return storm


class Machines:
    """The servers and the worker processes, all of which may be killed. A context manager."""

    def __init__(self, home: Path, chance: random.Random) -> None:
        self._home = home
        self._chance = chance
        self._stack = ExitStack()
        self._workers: list[subprocess.Popen[bytes]] = []
        self.runtime = make_sandbox_runtime(Settings(home=home))

    def __enter__(self) -> "Machines":
        self.servers = self._stack.enter_context(embedded_servers(self._home))
        run(_migrated, self.servers)
        for _ in range(WORKERS):
            self._start_worker()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_workers()
        self._stack.close()

    def worker(self) -> "subprocess.Popen[bytes]":
        """Any worker."""
        return self._chance.choice(self._workers)

    def sandbox_names(self) -> set[str]:
        """Those of all that there is a folder of, also of what is nobody's yet."""
        return {one.name for one in (self._home / "sandboxes").glob(f"{ID_PREFIX}*")}

    def kill_worker(self) -> None:
        """End one as a power failure would, and start another."""
        worker = self.worker()
        self._workers.remove(worker)
        worker.kill()
        worker.wait()
        self._start_worker()

    def kill_servers(self) -> None:
        """End both as a power failure would, and start them again on their data."""
        for pid in self._server_pids():
            os.kill(pid, signal.SIGKILL)
        with suppress(EmbeddedServerFailed):  # they say that they have ended
            self._stack.close()
        self.servers = self._stack.enter_context(embedded_servers(self._home))

    def end_workers(self) -> None:
        """No worker runs any more."""
        for worker in self._workers:
            worker.kill()
            worker.wait()
        self._workers.clear()

    def _start_worker(self) -> None:
        environment = {
            **os.environ,
            "HEADRACE_HOME": str(self._home),
            "HEADRACE_LEASE_S": str(LEASE_S),
            "HEADRACE_RUNNER": "template",
            "HEADRACE_SANDBOX": "local",
            "REDIS_URL": self.servers.redis_url,
            "DATABASE_URL": self.servers.database_url,
        }
        with (self._home / "workers.log").open("ab") as log:
            self._workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "service", "worker"],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
            )

    def _server_pids(self) -> Sequence[int]:
        """Children of this process that are servers: their command lines name their data."""
        pids: list[int] = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (process / "cmdline").read_bytes()
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                is_server = f"{self._home}/valkey".encode() in line or (
                    f"{self._home}/postgres".encode() in line
                )
                if is_server and int(parent) == os.getpid():
                    pids.append(int(process.name))
        return pids


async def _migrated(servers: Servers) -> None:
    engine = connect_postgres(servers.database_url)
    await upgrade(engine)
    await engine.dispose()


@asynccontextmanager
async def _opened(servers: Servers) -> AsyncIterator[tuple[EventStore, AsyncEngine, Hub]]:
    redis, bells = connect_redis(servers.redis_url), connect_redis(servers.redis_url)
    engine = connect_postgres(servers.database_url)
    try:
        store = await open_log(redis, Archive(engine), partitions=Settings().partitions)
        yield store, engine, Hub(store, bells)
    finally:
        await redis.aclose()
        await bells.aclose()
        await engine.dispose()


class Storm:
    """Requests, faults, and what became of the jobs."""

    def __init__(
        self, machines: Machines, handler: CommandHandler, chance: random.Random, say: Say
    ) -> None:
        self._machines = machines
        self._handler = handler
        self._chance = chance
        self._say = say
        self._all: list[JobRef] = []
        self._alive: dict[JobRef, Status] = {}
        self.found = Found()
        self.sandboxes: set[str] = set()
        """All that were seen."""

    async def rage(self, seconds: float) -> None:
        """Builds and faults for so long; then the builds come to their end."""
        ends = time.monotonic() + seconds
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._build, ends)
            while time.monotonic() < ends:
                await anyio.sleep(self._chance.uniform(*PAUSE_S))
                await self._strike()
            self._say("waiting for the last jobs")
        self.found.wrong["jobs that did not end"] = len(self._alive)

    async def _build(self, ends: float) -> None:
        while time.monotonic() < ends + END_S:
            while len(self._alive) < AT_ONCE and time.monotonic() < ends:
                await self._submit()
            await self._living_sandboxes()
            for ref in list(self._alive):
                job = await self._patiently(partial(self._handler.load, ref))
                if job.is_terminal:
                    del self._alive[ref]
                else:
                    self._alive[ref] = job.status
            if not self._alive and time.monotonic() >= ends:
                return
            self._say(f"{len(self._all)} jobs, {self.found.done.total()} faults")
            await anyio.sleep(_LOOK_S)

    async def _submit(self) -> None:
        tenant = self._chance.choice(TENANTS)
        ref = JobRef(tenant, str(uuid7()))
        goal = self._chance.choice(GOALS)
        request = RequestBuild(tenant, "chaos", "p", goal)
        self._all.append(ref)
        await self._handler.handle(ref, request, command_id=ref.job, patience_s=PATIENCE_S)
        self._alive[ref] = Status.QUEUED

    async def _strike(self) -> None:
        faults: dict[str, Callable[[], Awaitable[bool]]] = {
            "a worker was killed": self._kill_worker,
            "a worker was frozen": self._freeze_worker,
            "Redis and Postgres were killed": self._kill_servers,
            "a sandbox was killed": self._kill_sandbox,
            "a cancel was requested": self._cancel,
        }
        name = self._chance.choice(list(faults))
        if await faults[name]():
            self.found.done[name] += 1

    async def _kill_worker(self) -> bool:
        self._machines.kill_worker()
        return True

    async def _freeze_worker(self) -> bool:
        worker = self._machines.worker()
        worker.send_signal(signal.SIGSTOP)
        await anyio.sleep(self._chance.uniform(*FROZEN_S))
        worker.send_signal(signal.SIGCONT)
        return True

    async def _kill_servers(self) -> bool:
        self._machines.kill_servers()
        return True

    async def _kill_sandbox(self) -> bool:
        building = {ref.job for ref in self._alive}
        found = [
            info for info in await self._living_sandboxes() if info.metadata.get("job") in building
        ]
        if not found:
            return False
        return await self._machines.runtime.kill(self._chance.choice(found).sandbox_id)

    async def _cancel(self) -> bool:
        if not self._alive:
            return False
        ref = self._chance.choice(list(self._alive))
        try:
            await self._handler.handle(ref, RequestCancel("chaos"), patience_s=PATIENCE_S)
        except JobIsTerminal:
            return False
        return True

    async def examine(self) -> None:
        """Look at every job, every number, and every sandbox that is left."""
        wrong, numbers = self.found.wrong, Counter[tuple[str, int]]()
        ready: set[str | None] = set()
        for ref in self._all:
            events = await self._handler.store.read_job(ref)
            job = await self._handler.load(ref)
            self.found.ended[_end(job)] += 1
            wrong["jobs that became READY twice"] += _count(events, JobReady) > 1
            wrong["phases that were completed twice"] += _completed_twice(events)
            wrong["failures without a reason"] += (
                job.status is Status.FAILED and not job.error_message
            )
            if job.build_number:
                numbers[ref.tenant, job.build_number] += 1
                ready.add(job.sandbox_id)
        for tenant in TENANTS:
            given = [number for one, number in numbers.elements() if one == tenant]
            wrong["numbers given twice"] += len(given) - len(set(given))
            wrong["numbers left out"] += max(given, default=0) - len(set(given))
        for info in await self._living_sandboxes():
            wrong["sandboxes left over"] += info.sandbox_id not in ready
            await self._machines.runtime.kill(info.sandbox_id)

    async def _living_sandboxes(self) -> list[SandboxInfo]:
        found = await self._machines.runtime.list({})
        self.sandboxes |= {info.sandbox_id for info in found} | self._machines.sandbox_names()
        return found

    async def _patiently(self, action: Callable[[], Awaitable[Job]]) -> Job:
        return await patiently(action, PATIENCE_S)


def _end(job: Job) -> str:
    return f"failed: {job.failure_kind}" if job.status is Status.FAILED else job.status.value


def _count(events: Sequence[RecordedEvent], kind: type[JobReady]) -> int:
    return sum(isinstance(event.payload, kind) for event in events)


def _completed_twice(events: Sequence[RecordedEvent]) -> int:
    """Phases of a round that were done again although they were completed: not the checks."""
    completed = Counter(
        (event.payload.phase, event.payload.round)
        for event in events
        if isinstance(event.payload, PhaseCompleted) and event.payload.phase is not Phase.CHECKS
    )
    return sum(times - 1 for times in completed.values())
