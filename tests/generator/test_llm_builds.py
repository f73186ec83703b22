"""Whole builds with the LLM runner, in the worker's hands: retries, takeovers and cancels."""

import anyio
import pytest

from eventstore import CommandHandler
from schemas import Status
from schemas.commands import RequestCancel
from schemas.events import JobCancelled, PhaseCompleted, RetryScheduled
from tests.generator.builds import Builds, app_answering
from tests.generator.doubles import ScriptedRuntime
from tests.generator.llm_runs import DONE, MANIFEST, WHOLE_APP, runner, write
from tests.generator.test_execute_build import marker_of
from tests.llm_server import LLMServer, Turn
from tests.llm_server import Status as Answer

pytestmark = pytest.mark.anyio


async def test_a_rate_limit_is_an_event_and_what_was_finished_is_not_written_twice(
    builds: Builds, llm_server: LLMServer
) -> None:
    claim = await builds.claimed()
    llm_server.say(
        Turn((write("headrace.toml", MANIFEST),)),
        Answer(429, "slow down", {"retry-after": "0"}),
        Turn((write("app.py"),)),
        DONE,
    )
    async with app_answering(lambda: marker_of(claim)) as url:
        job = await builds.service(runner(llm_server), ScriptedRuntime(preview=url)).execute_build(
            claim
        )
    assert job.status is Status.READY
    (retry,) = await builds.told(claim, RetryScheduled)
    assert retry.step == "runner"
    assert "is at its rate limit (429)" in retry.message
    assert "headrace.toml (" in llm_server.asked[2].texts[0]
    _, code, *_ = await builds.told(claim, PhaseCompleted)
    assert code.evidence["models"] == "claude-haiku-4-5"
    assert (job.input_tokens, job.output_tokens) == (300, 150)
    assert job.cost_usd > 0


async def test_a_cancel_closes_the_models_connection_and_keeps_count_of_what_it_cost(
    builds: Builds, handler: CommandHandler, llm_server: LLMServer
) -> None:
    claim = await builds.claimed()
    llm_server.say(Turn((*WHOLE_APP, write("last.py", "l" * 500)), hold_before=b"llll"))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(builds.service(runner(llm_server)).execute_build, claim)
            async for line in builds.progress(claim.ref):
                if b"app.py" in line.data:
                    break
            await handler.handle(claim.ref, RequestCancel(by="ann"))
    await llm_server.client_gone()
    (cancelled,) = await builds.told(claim, JobCancelled)
    assert cancelled.input_tokens == 100
