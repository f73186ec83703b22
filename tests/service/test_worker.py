"""`./headrace worker`: workers as processes of their own, and what becomes of their jobs."""

import os
import signal
from pathlib import Path
from uuid import uuid4

import anyio
import httpx
import pytest

from eventstore import JobEvent, follow
from schemas import JobRef, RecordedEvent, Status
from schemas.commands import RequestBuild
from schemas.events import SandboxCreated
from service.embedded import embedded_servers
from service.settings import Settings
from service.wiring import Log, make_sandbox_runtime, opened_log
from tests.service.command_line import CommandLine, command_line_on, in_this_process_on
from tests.service.homes import furnish

pytestmark = pytest.mark.anyio

PATIENCE_S = 120.0


async def until(log: Log, ref: JobRef, kind: str) -> RecordedEvent:
    with anyio.fail_after(PATIENCE_S):
        async for entry in follow(log.hub, ref):
            if isinstance(entry, JobEvent) and entry.event.type == kind:
                return entry.event
    raise AssertionError


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_job_of_a_worker_that_is_gone_or_frozen_is_gone_on_with_in_its_sandbox(
    tmp_path: Path, number: signal.Signals
) -> None:
    settings = Settings(home=tmp_path, partitions=1)
    await furnish(tmp_path)
    # Whatever is left of the home is ended last, the servers before.
    with command_line_on(tmp_path), embedded_servers(tmp_path) as servers:
        headrace = CommandLine(
            tmp_path,
            {
                "REDIS_URL": servers.redis_url,
                "DATABASE_URL": servers.database_url,
                "HEADRACE_PARTITIONS": "1",
                "HEADRACE_LEASE_S": "2",
            },
        )
        async with opened_log(settings, servers) as log:
            await _taken_over(settings, log, headrace, number)


async def _taken_over(
    settings: Settings, log: Log, headrace: CommandLine, number: signal.Signals
) -> None:
    ref = JobRef("acme", str(uuid4()))
    with headrace.started("worker") as first:
        await anyio.to_thread.run_sync(first.line_with, "Worker is up")
        await log.handler.handle(ref, RequestBuild("acme", "ann", "shop", "a todo list"))
        created = (await until(log, ref, SandboxCreated.type)).payload
        assert isinstance(created, SandboxCreated)
        os.kill(first.process.pid, number)
        with headrace.started("worker") as second:
            await until(log, ref, "JobReady")
            job = await log.handler.load(ref)
            assert (job.status, job.attempt, job.build_number) == (Status.READY, 2, 1)
            assert job.sandbox_id == created.sandbox_id
            if number == signal.SIGSTOP:
                # It wakes up, is told that the job is another's, and leaves it alone.
                os.kill(first.process.pid, signal.SIGCONT)
                await anyio.to_thread.run_sync(first.line_with, "build_fenced", "lease_lost")
                assert first.end(signal.SIGTERM) == 0
            assert second.end(signal.SIGTERM) == 0
    assert (await log.handler.load(ref)).version == job.version
    runtime = make_sandbox_runtime(settings)
    assert [info.sandbox_id for info in await runtime.list({})] == [job.sandbox_id]
    async with httpx.AsyncClient(trust_env=False, verify=False) as visitor:
        assert (await visitor.get(f"{job.preview_url}/healthz")).status_code == 200


def test_a_worker_without_an_instance_or_servers_says_what_it_needs(tmp_path: Path) -> None:
    with in_this_process_on(tmp_path) as headrace:
        done = headrace.run("worker")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "no Headrace runs on" in said
    assert "set REDIS_URL and DATABASE_URL" in said
