"""Draining: a worker that is asked to stop, and the jobs that it runs then."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from redis import Redis as BlockingRedis

from eventstore import Claim, CommandHandler, Hub
from generator import Heart, Worker
from generator.service import GenerationService
from schemas import Status
from service.embedded import Servers
from tests.generator.builds import LEASE_MS, Builds, previews
from tests.generator.doubles import PATIENCE_S, ScriptedRunner, ScriptedRuntime

pytestmark = pytest.mark.anyio


@pytest.fixture
def heart(handler: CommandHandler, servers: Servers) -> Iterator[Heart]:
    with Heart(
        lambda: BlockingRedis.from_url(servers.redis_url),
        lease_ms=LEASE_MS,
        partition_of=handler.store.partition,
    ) as beating:
        yield beating


@asynccontextmanager
async def working(
    builds: Builds, hub: Hub, heart: Heart, service: GenerationService, *, slots: int = 2
) -> AsyncIterator[Worker]:
    """A worker at work; the block's end waits until it has ended, so drain it."""
    worker = Worker(
        builds.handler.store, hub, service, heart, lease_ms=LEASE_MS, slots=slots, name="w1"
    )
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            yield worker


async def test_a_drained_worker_finishes_what_it_runs_and_takes_nothing_more(
    builds: Builds, hub: Hub, heart: Heart, handler: CommandHandler
) -> None:
    runtime = ScriptedRuntime(hang_on="install")
    service = builds.service(ScriptedRunner(), runtime)
    async with previews(runtime), working(builds, hub, heart, service) as worker:
        running = await builds.queued()
        await runtime.hanging.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.drain, PATIENCE_S)
            await anyio.wait_all_tasks_blocked()
            waiting = await builds.queued()
            runtime.go_on.set()
    assert (await handler.load(running)).status is Status.READY
    assert (await handler.load(waiting)).status is Status.QUEUED


async def test_a_worker_that_is_asked_to_stop_in_the_middle_of_a_round_asks_no_further_partition(
    builds: Builds, hub: Hub, heart: Heart, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = builds.handler.store.work
    claim, asked = work.claim, list[int]()
    worker = Worker(
        builds.handler.store, hub, builds.service(ScriptedRunner()), heart, lease_ms=LEASE_MS
    )

    async def claim_and_drain(partition: int, *args: Any, **kwargs: Any) -> list[Claim]:
        asked.append(partition)
        if len(asked) == 1:
            tasks.start_soon(worker.drain, 0)
            await anyio.lowlevel.checkpoint()
        return await claim(partition, *args, **kwargs)

    monkeypatch.setattr(work, "claim", claim_and_drain)
    assert builds.handler.store.partitions > 1
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
    assert asked == [0]


async def test_what_does_not_end_in_time_is_handed_back_at_once_and_gone_on_with(
    builds: Builds, hub: Hub, heart: Heart
) -> None:
    runner, runtime = ScriptedRunner(), ScriptedRuntime(hang_on="install")
    service = builds.service(runner, runtime)
    async with working(builds, hub, heart, service) as worker:
        ref = await builds.queued()
        await runtime.hanging.wait()
        await worker.drain(0)
        assert worker.running == 0
        claim = await builds.claim("w2")
    # As the delivery is not counted, a job may be handed back any number of times.
    assert (claim.ref, claim.attempt, claim.deliveries) == (ref, 2, 1)
    runtime.hang_on = None
    async with previews(runtime):
        job = await service.execute_build(claim)
    assert (job.status, job.sandbox_id, runner.runs) == (Status.READY, "sb-1", 1)


async def test_a_runner_that_is_cut_off_by_a_drain_leaves_its_draft(
    builds: Builds, hub: Hub, heart: Heart
) -> None:
    hanging = ScriptedRunner(hang=True, hang_after=1)
    async with working(builds, hub, heart, builds.service(hanging)) as worker:
        await builds.queued()
        await hanging.hanging.wait()
        await worker.drain(0)
        claim = await builds.claim("w2")
    runner, runtime = ScriptedRunner(), ScriptedRuntime()
    async with previews(runtime):
        await builds.service(runner, runtime).execute_build(claim)
    assert runner.tasks[0].drafted == {"headrace.toml"}


async def test_an_idle_worker_is_drained_at_once(builds: Builds, hub: Hub, heart: Heart) -> None:
    async with working(builds, hub, heart, builds.service(None)) as worker:
        await worker.drain(3600)


# --- signals, as processes get them ---------------------------------------------------------------

PROGRAM = """
import anyio
from service.commands.terminal import run_until_stopped

async def main(stopping):
    print("up", flush=True)
    try:
        await stopping.wait()
        print("draining", flush=True)
        await anyio.sleep_forever()
    finally:
        print("ended", flush=True)

run_until_stopped(main)
"""


@contextmanager
def program() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_the_second_ends_at_once(number: signal.Signals) -> None:
    with program() as process:
        assert process.stdout is not None
        process.send_signal(number)
        assert process.stdout.readline() == "draining\n"
        process.send_signal(number)
        assert process.stdout.readline() == "ended\n"
        assert process.wait() == 0


def test_a_terminal_that_closes_ends_at_once() -> None:
    with program() as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "ended\n"
        assert process.wait() == 0
