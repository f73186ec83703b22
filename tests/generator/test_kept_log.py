"""The whole log of a job: kept at its end, however it ended and whoever began it."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import anyio
import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from eventstore import Claim, CommandHandler, Hub, read_progress
from generator import ArtifactStore, Deadlines, GenerationService, kept_lines, log_lines
from generator.errors import RunnerFailed
from generator.runner import Listener, RunnerTask
from generator.workspace import Workspace
from schemas import Job, JobRef, Status
from schemas.commands import RequestBuild, RequestCancel, Usage
from schemas.events import Limits
from tests.generator.doubles import ScriptedRunner, ScriptedRuntime

pytestmark = pytest.mark.anyio

TENANT = "acme"
Serve = Callable[..., GenerationService]


class Talking(ScriptedRunner):
    """Says what it does, in pieces."""

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        for piece in ("I write ", "a list.\n", "Done"):
            await listener.said(piece)
        return await super().run(task, workspace, listener)


@pytest.fixture
def artifacts() -> ArtifactStore:
    return ArtifactStore(MemoryStore())


@pytest.fixture
def serve(handler: CommandHandler, hub: Hub, artifacts: ArtifactStore, tmp_path: Path) -> Serve:
    def make(runtime: ScriptedRuntime, runner: ScriptedRunner | None = None) -> GenerationService:
        return GenerationService(
            handler,
            hub,
            artifacts,
            runner=runner or Talking(),
            sandbox_runtime_factory=lambda: runtime,
            workspace_root=tmp_path,
            deadlines=Deadlines(probe_s=0.05),
        )

    return make


async def claimed(handler: CommandHandler) -> Claim:
    ref = JobRef(TENANT, str(uuid4()))
    once = Limits(max_repairs=0)
    await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list", limits=once))
    return await claim_again(handler, "w1")


async def claim_again(handler: CommandHandler, worker: str) -> Claim:
    (claim,) = await handler.store.work.claim(
        handler.store.partition(TENANT), worker, free_slots=1, lease_ms=60_000
    )
    return claim


async def kept(artifacts: ArtifactStore, job: Job) -> list[tuple[int, str, str, str]]:
    assert job.log is not None
    content = await artifacts.get_blob(job.log)
    return [(line.attempt, line.phase, line.stream, line.text) for line in kept_lines(content)]


def but_the_reason(lines: list[tuple[int, str, str, str]]) -> list[tuple[int, str, str, str]]:
    """What was said before it was told why the job failed."""
    return [line for line in lines if line[2] != "note"]


async def test_a_failed_job_keeps_all_that_was_said(
    handler: CommandHandler, artifacts: ArtifactStore, serve: Serve
) -> None:
    runtime = ScriptedRuntime(exit_codes={"test": 1})
    job = await serve(runtime).execute_build(await claimed(handler))
    assert job.status is Status.FAILED
    assert but_the_reason(await kept(artifacts, job)) == [
        (1, "code", "model", "I write a list."),
        (1, "code", "model", "Done"),
        (1, "deps", "command", "install"),
        (1, "deps", "stdout", "install says hello"),
        (1, "checks", "command", "test"),
        (1, "checks", "stdout", "test says hello"),
    ]


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (RunnerFailed("no such app can be written"), "no such app can be written"),
        (ValueError("a bug"), "something went wrong on our side"),
    ],
)
async def test_a_job_that_its_runner_refuses_says_why_in_its_log(
    handler: CommandHandler,
    artifacts: ArtifactStore,
    serve: Serve,
    raised: Exception,
    reason: str,
) -> None:
    runner = ScriptedRunner(raises=[raised])
    job = await serve(ScriptedRuntime(), runner).execute_build(await claimed(handler))
    assert job.status is Status.FAILED
    ((attempt, phase, stream, text),) = await kept(artifacts, job)
    assert (attempt, phase, stream) == (1, "code", "note")
    assert text == f"the job failed: {job.error_message}"
    assert reason in text


async def test_what_the_started_app_says_is_in_the_log(
    handler: CommandHandler, artifacts: ArtifactStore, serve: Serve
) -> None:
    runtime = ScriptedRuntime(server_says="listening on 8080\nGET /healthz 500\n")
    job = await serve(runtime).execute_build(await claimed(handler))
    assert job.status is Status.FAILED  # nobody answers the probe
    assert but_the_reason(await kept(artifacts, job))[-3:] == [
        (1, "checks", "command", "start"),
        (1, "checks", "server", "listening on 8080"),
        (1, "checks", "server", "GET /healthz 500"),
    ]


async def test_what_is_kept_was_shown_live_too(
    handler: CommandHandler, artifacts: ArtifactStore, serve: Serve
) -> None:
    claim = await claimed(handler)
    job = await serve(ScriptedRuntime(exit_codes={"test": 1})).execute_build(claim)
    shown = [one async for one in read_progress(handler.store, claim.ref)]
    lines = [(one.attempt, one.phase, one.stream, one.text) for one in log_lines(shown)]
    assert lines == await kept(artifacts, job)


async def test_a_cancelled_job_keeps_its_log(
    handler: CommandHandler, artifacts: ArtifactStore, serve: Serve
) -> None:
    claim, runtime = await claimed(handler), ScriptedRuntime(hang_on="install")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve(runtime).execute_build, claim)
            await runtime.hanging.wait()
            await handler.handle(claim.ref, RequestCancel(by="ann"))
    job = await handler.load(claim.ref)
    assert job.status is Status.CANCELLED
    assert (await kept(artifacts, job))[-1] == (1, "deps", "command", "install")


async def test_after_a_takeover_the_log_has_what_the_first_worker_has_shown(
    handler: CommandHandler, artifacts: ArtifactStore, serve: Serve
) -> None:
    claim, runtime = await claimed(handler), ScriptedRuntime(hang_on="test")
    service = serve(runtime)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.execute_build, claim)
        await runtime.hanging.wait()
        tasks.cancel_scope.cancel()
    await handler.store.work.release(claim)
    runtime.hang_on, runtime.exit_codes = None, {"test": 1}
    job = await service.execute_build(await claim_again(handler, "w2"))
    assert job.attempt == 2
    lines = await kept(artifacts, job)
    assert (1, "deps", "stdout", "install says hello") in lines
    assert but_the_reason(lines)[-1] == (2, "checks", "stdout", "test says hello")
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)


async def test_a_store_that_is_away_does_not_keep_a_job_from_ending(
    handler: CommandHandler, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put_async

    async def away(store: object, path: str, content: bytes) -> object:
        if b'"stream"' in content:
            raise GenericError("no route to the bucket")
        return await put(store, path, content)  # type: ignore[arg-type]

    monkeypatch.setattr(obstore, "put_async", away)
    job = await serve(ScriptedRuntime(exit_codes={"test": 1})).execute_build(await claimed(handler))
    assert (job.status, job.log) == (Status.FAILED, None)


async def test_of_a_job_that_said_nothing_there_is_no_log(
    handler: CommandHandler, hub: Hub, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    simulated = GenerationService(
        handler,
        hub,
        artifacts,
        runner=None,
        sandbox_runtime_factory=None,
        workspace_root=tmp_path,
    )
    job = await simulated.execute_build(await claimed(handler))
    assert (job.status, job.log) == (Status.READY, None)
