"""Each fault at each point of a build: it ends READY once, nothing is paid or numbered twice.

One worker process runs six jobs, each of which stands at another point when the fault comes: so
the six wait for one lease together.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import anyio
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import (
    Archive,
    CommandHandler,
    EventStore,
    Hub,
    connect_postgres,
    connect_redis,
    open_log,
)
from generator.sandboxes.local import LocalRuntime
from projector import Projector, verify
from schemas import Job, JobRef, Phase, Status
from schemas.commands import RequestBuild
from schemas.events import JobReady, JobStarted, PhaseCompleted
from service.embedded import Servers
from service.migrating import upgrade
from tests.eventstore.killable import KillableServer
from tests.generator.standing import (
    POINTS,
    StandingWorker,
    sandboxes,
    standing_worker,
    working,
)
from tests.logs import PARTITIONS
from tests.projector.killable import KillablePostgres

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("isolation_is_possible"),
    pytest.mark.timeout(240),
]

TENANT = "acme"
LEASE_MS = 2_000
PATIENCE_S = 60.0
"""How long to wait for what must come. Only a broken build ever waits so long."""


@dataclass(frozen=True)
class Scene:
    """Six jobs at their points, in a worker that stands still."""

    worker: StandingWorker
    store: EventStore
    engine: AsyncEngine
    hub: Hub
    redis_url: str
    folder: Path
    run_folder: Path
    jobs: dict[str, JobRef]

    @property
    def runtime(self) -> LocalRuntime:
        return sandboxes(self.folder, self.run_folder)

    async def until_all_ended(self) -> dict[str, Job]:
        """The jobs, by their point, as they ended."""
        ended: dict[str, Job] = {}
        with anyio.fail_after(PATIENCE_S):
            for point, ref in self.jobs.items():
                with self.hub.listen_job(ref.job) as waker:
                    while not (job := await CommandHandler(self.store).load(ref)).is_terminal:
                        await waker.wait(1)
                ended[point] = job
        return ended

    @asynccontextmanager
    async def another_worker(self) -> AsyncIterator[None]:
        where = (self.redis_url, self.folder, self.run_folder, LEASE_MS)
        async with working(CommandHandler(self.store), self.hub, *where):
            yield

    def asked(self, point: str) -> int:
        """How often the runner was asked for the job's code."""
        return len((self.folder / "asked" / self.jobs[point].job).read_text().splitlines())


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    run_folder = Path(tempfile.mkdtemp(prefix="hr-"))
    yield tmp_path, run_folder
    shutil.rmtree(run_folder)


@asynccontextmanager
async def staged(
    redis_url: str, database_url: str, folders: tuple[Path, Path]
) -> AsyncIterator[Scene]:
    """Jobs, and a worker that has come to the point of each."""
    redis, bells = connect_redis(redis_url), connect_redis(redis_url)
    engine = connect_postgres(database_url)
    store = await open_log(redis, Archive(engine), partitions=PARTITIONS, tenant_cap=100)
    hub, jobs = Hub(store, bells), {point: JobRef(TENANT, str(uuid4())) for point in POINTS}
    for point, ref in jobs.items():
        await CommandHandler(store).handle(ref, RequestBuild(TENANT, "ann", "shop", point))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        with standing_worker(redis_url, database_url, *folders, LEASE_MS) as worker:
            with anyio.fail_after(PATIENCE_S):
                await worker.until_all_stand()
            scene = Scene(worker, store, engine, hub, redis_url, *folders, jobs)
            try:
                yield scene
            finally:
                for info in await scene.runtime.list({}):
                    await scene.runtime.kill(info.sandbox_id)
        tasks.cancel_scope.cancel()
    await redis.aclose()
    await bells.aclose()
    await engine.dispose()


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """For a server of the test's own: a short path, for it listens there."""
    made = Path(tempfile.mkdtemp(prefix="hr-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def scene(
    redis: Redis, servers: Servers, database_url: str, folders: tuple[Path, Path]
) -> AsyncIterator[Scene]:
    async with staged(servers.redis_url, database_url, folders) as one:
        yield one


async def check(
    scene: Scene,
    ended: dict[str, Job],
    *,
    asked_again: frozenset[str] = frozenset(),
    killed: frozenset[str] = frozenset(),
) -> None:
    """What must hold whatever came: `asked_again` names the points at which code was not stored.

    `killed`: sandboxes that somebody else has ended.
    """
    ends = {point: (job.status, job.error_message) for point, job in ended.items()}
    assert ends == dict.fromkeys(POINTS, (Status.READY, None))
    assert sorted(job.build_number or 0 for job in ended.values()) == [1, 2, 3, 4, 5, 6]
    for ref in scene.jobs.values():
        payloads = [event.payload for event in await scene.store.read_job(ref)]
        assert sum(isinstance(payload, JobReady) for payload in payloads) == 1
        completed = Counter(one.phase for one in payloads if isinstance(one, PhaseCompleted))
        assert completed == dict.fromkeys(Phase, 1)
    asked = {point: scene.asked(point) for point in POINTS}
    assert asked == {point: 2 if point in asked_again else 1 for point in POINTS}
    living = {info.sandbox_id for info in await scene.runtime.list({})}
    assert living == {job.sandbox_id for job in ended.values()} - killed
    assert any_process_of(ended)
    for sandbox_id in living:
        await scene.runtime.kill(sandbox_id)
    with anyio.fail_after(PATIENCE_S):
        while any_process_of(ended):  # noqa: ASYNC110 - they tell nobody that they end
            await anyio.sleep(0.01)
    await Projector(scene.store, scene.engine).catch_up()
    _, differences = await verify(scene.engine)
    assert differences == []


def any_process_of(ended: dict[str, Job]) -> bool:
    """Whether an app of these jobs runs on this machine: each is told its job."""
    told = [f"HEADRACE_JOB={job.job}".encode() for job in ended.values()]
    return any(one in environment for environment in environments() for one in told)


def environments() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            yield process.read_bytes()


async def test_a_worker_that_is_killed_at_any_point_costs_no_job_and_nothing_twice(
    scene: Scene,
) -> None:
    scene.worker.kill()
    async with scene.another_worker():
        ended = await scene.until_all_ended()
    assert {job.attempt for job in ended.values()} == {2}
    await check(scene, ended, asked_again=frozenset({"code"}))


async def test_a_worker_that_was_frozen_at_any_point_wakes_up_without_effect(scene: Scene) -> None:
    scene.worker.freeze()
    async with scene.another_worker():
        ended = await scene.until_all_ended()
        before = {ref: await scene.store.read_job(ref) for ref in scene.jobs.values()}
        scene.worker.go()
        scene.worker.wake()
        with anyio.fail_after(PATIENCE_S):
            await scene.worker.until_all_ended()
        assert {ref: await scene.store.read_job(ref) for ref in scene.jobs.values()} == before
    await check(scene, ended, asked_again=frozenset({"code"}))


async def test_a_worker_whose_event_loop_is_blocked_for_leases_keeps_its_jobs(scene: Scene) -> None:
    await scene.worker.block()
    async with scene.another_worker():
        await anyio.sleep(3 * LEASE_MS / 1000)  # what is tested is that time passes
        scene.worker.go()
        ended = await scene.until_all_ended()
    for ref in scene.jobs.values():
        events = await scene.store.read_job(ref)
        assert [e.payload.attempt for e in events if isinstance(e.payload, JobStarted)] == [1]
    await check(scene, ended)


async def test_sandboxes_that_end_at_any_point_are_made_anew(scene: Scene) -> None:
    killed = frozenset(info.sandbox_id for info in await scene.runtime.list({}))
    for sandbox_id in killed:
        assert await scene.runtime.kill(sandbox_id)
    scene.worker.go()
    # Just before READY nobody looks at it any more: the preview is gone as it may be later.
    await check(scene, await scene.until_all_ended(), killed=killed)


async def test_a_redis_that_restarts_at_any_point_costs_a_moment(
    database_url: str, folders: tuple[Path, Path], server_folder: Path
) -> None:
    server = KillableServer(server_folder)
    await server.start()
    try:
        async with staged(server.url, database_url, folders) as scene:
            server.kill()
            scene.worker.go()
            await server.start()
            await check(scene, await scene.until_all_ended())
    finally:
        server.kill()


async def test_a_postgres_that_restarts_at_any_point_costs_no_build_anything(
    redis: Redis, servers: Servers, folders: tuple[Path, Path], server_folder: Path
) -> None:
    postgres = KillablePostgres(server_folder)
    await postgres.start()
    try:
        engine = connect_postgres(postgres.url)
        await upgrade(engine)
        await engine.dispose()
        async with staged(servers.redis_url, postgres.url, folders) as scene:
            postgres.kill()
            scene.worker.go()
            ended = await scene.until_all_ended()
            await postgres.start()
            await check(scene, ended)
    finally:
        postgres.kill()
