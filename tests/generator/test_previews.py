"""The preview of a finished build, asked for again: kept alive, woken, made anew, or given up."""

from datetime import timedelta

import anyio
import pytest

from eventstore import Claim, CommandHandler, Fenced
from generator import GenerationService
from schemas import Job, Preview, Status
from schemas.commands import ExpirePreview, PausePreview, RequestPreview
from schemas.events import PreviewExpired, PreviewResumed, SandboxCreated
from tests.generator.builds import Builds, previews
from tests.generator.doubles import PATIENCE_S, ScriptedRunner, ScriptedRuntime

pytestmark = pytest.mark.anyio

LATER = timedelta(hours=2)


async def built(builds: Builds, runtime: ScriptedRuntime) -> tuple[GenerationService, Claim]:
    """A build that is READY in `runtime`, whose app answers."""
    service, claim = builds.service(ScriptedRunner(), runtime), await builds.claimed()
    job = await service.execute_build(claim)
    assert job.status is Status.READY
    return service, claim


async def asked(builds: Builds, claim: Claim) -> Job:
    """Somebody wants the preview for longer than it lasts."""
    until = builds.handler.clock() + LATER
    return (await builds.handler.handle(claim.ref, RequestPreview("ann", until))).job


async def test_a_preview_that_is_asked_for_is_kept_alive_where_it_is(builds: Builds) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        before = await builds.handler.load(first.ref)
        assert (await asked(builds, first)).preview is Preview.WAKING
        job = await service.execute_build(await builds.claim("w2"))
    assert (job.preview, job.sandbox_id) == (Preview.RUNNING, before.sandbox_id)
    assert runtime.woken == [before.sandbox_id]
    assert before.sandbox_ends_at is not None
    assert job.sandbox_ends_at is not None
    assert job.sandbox_ends_at > before.sandbox_ends_at
    assert len(runtime.made) == 1


async def test_a_paused_preview_is_woken_as_it_was(builds: Builds) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        kept_until = builds.handler.clock() + LATER
        paused = await builds.handler.handle(first.ref, PausePreview(kept_until))
        assert paused.job.sandbox_id is not None
        await runtime.pause(paused.job.sandbox_id)
        await asked(builds, first)
        job = await service.execute_build(await builds.claim("w2"))
    assert (job.preview, runtime.paused) == (Preview.RUNNING, set())
    assert runtime.made[0].commands == ["install", "test", "start"]


async def test_an_expired_preview_is_made_anew_from_the_builds_files(builds: Builds) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        await runtime.kill("sb-1")
        await builds.handler.handle(first.ref, ExpirePreview("time-out"))
        await asked(builds, first)
        second = await builds.claim("w2")
        job = await service.execute_build(second)
        assert (job.preview, job.sandbox_id) == (Preview.RUNNING, "sb-2")
        assert job.preview_url == runtime.preview
    (_, anew) = runtime.made
    assert anew.app_files == runtime.made[0].app_files
    assert anew.commands == ["install", "start"]
    assert anew.metadata["headrace"] == builds.handler.store.lineage
    assert (await builds.types(first))[-4:] == [
        "PreviewExpired",
        "PreviewRequested",
        "SandboxCreated",
        "PreviewResumed",
    ]
    assert not await builds.handler.store.work.is_in_hand(first.ref)


async def test_a_sandbox_that_ends_under_the_app_it_is_to_show_is_made_anew_at_once(
    builds: Builds,
) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        await runtime.kill("sb-1")
        await builds.handler.handle(first.ref, ExpirePreview("time-out"))
        await asked(builds, first)
        runtime.dies_on = ["start"]
        service = builds.service(None, runtime, probe_s=10 * PATIENCE_S)
        with anyio.fail_after(PATIENCE_S):
            job = await service.execute_build(await builds.claim("w2"))
    assert (job.preview, job.sandbox_id) == (Preview.RUNNING, "sb-3")


@pytest.mark.parametrize("fate", ["gone", "silent"])
async def test_a_preview_that_cannot_be_woken_is_made_anew(builds: Builds, fate: str) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        if fate == "gone":
            await runtime.kill("sb-1")
        else:
            runtime.marker = "somebody-else"
            service = builds.service(None, runtime, call_s=0.2)
        await asked(builds, first)
        job = await service.execute_build(await builds.claim("w2"))
    assert job.preview is Preview.RUNNING
    assert job.sandbox_id in runtime.living
    assert len(runtime.living) == 1
    assert await builds.told(first, PreviewResumed)


async def test_a_preview_that_cannot_be_made_again_says_why_and_leaves_no_sandbox(
    builds: Builds,
) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        await runtime.kill("sb-1")
        runtime.exit_codes = {"install": 7}
        await asked(builds, first)
        job = await service.execute_build(await builds.claim("w2"))
    assert (job.status, job.preview, job.sandbox_id) == (Status.READY, Preview.EXPIRED, None)
    (told,) = await builds.told(first, PreviewExpired)
    assert "cannot be installed: `install` ended with exit code 7" in told.reason
    assert not runtime.living
    assert not await builds.handler.store.work.is_in_hand(first.ref)


async def test_a_bug_while_waking_ends_as_an_event_too(builds: Builds) -> None:
    class Stumbling(ScriptedRuntime):
        async def wake(self, sandbox_id: str, *, timeout_s: int):  # type: ignore[no-untyped-def]
            raise ZeroDivisionError("secret detail")

    runtime = Stumbling()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        await asked(builds, first)
        job = await service.execute_build(await builds.claim("w2"))
    assert job.preview is Preview.EXPIRED
    (told,) = await builds.told(first, PreviewExpired)
    assert "secret detail" not in told.reason


async def test_another_worker_goes_on_with_a_preview_whose_worker_is_gone(
    builds: Builds,
) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        await runtime.kill("sb-1")
        await asked(builds, first)
        claim = await builds.claim("w2")
        runtime.hang_on = "install"
        async with builds.interrupted(service, claim, runtime.hanging.wait):
            pass
        runtime.hang_on = None
        job = await service.execute_build(await builds.taken_over(claim, "w3"))
    assert (job.preview, job.sandbox_id) == (Preview.RUNNING, "sb-2")
    assert len(await builds.told(first, SandboxCreated)) == 2
    assert list(runtime.living) == ["sb-2"]


async def test_a_preview_that_is_ended_while_it_is_woken_stays_ended(builds: Builds) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        await runtime.kill("sb-1")
        await asked(builds, first)
        claim = await builds.claim("w2")
        runtime.hang_on = "install"

        async def end() -> None:
            await runtime.hanging.wait()
            await builds.handler.handle(first.ref, ExpirePreview("ended by ann"))
            runtime.go_on.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end)
            with pytest.raises(Fenced):
                await service.execute_build(claim)
    job = await builds.handler.load(first.ref)
    assert job.preview is Preview.EXPIRED


async def test_asking_twice_gives_the_work_to_one_worker(builds: Builds) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        _, first = await built(builds, runtime)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(asked, builds, first)
    assert (await builds.types(first)).count("PreviewRequested") == 1
    await builds.claim("w2")
    store = builds.handler.store
    more = await store.work.claim(
        store.partition(first.ref.tenant), "w3", free_slots=4, lease_ms=60_000
    )
    assert more == []


async def test_a_woken_preview_does_not_begin_the_build_again(
    builds: Builds, handler: CommandHandler
) -> None:
    runtime = ScriptedRuntime()
    async with previews(runtime):
        service, first = await built(builds, runtime)
        await asked(builds, first)
        await service.execute_build(await builds.claim("w2"))
    types = await builds.types(first)
    assert types.count("JobStarted") == 1
    assert types.count("JobReady") == 1
