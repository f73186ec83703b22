"""A whole instance whose parts are others': a model writes, E2B runs; both stand on loopback."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from schemas import JobRef, RecordedEvent
from schemas.events import JobReady, RetryScheduled
from service.embedded import embedded_servers
from service.instance import LOCAL_TENANT
from service.settings import RunnerKind, Settings
from service.wiring import running
from tests.e2b_server import E2BServer
from tests.e2b_server.fixture import e2b_server, e2b_session
from tests.llm_server import LLMServer
from tests.llm_server import Status as Refusal
from tests.llm_server.builder import builder
from tests.llm_server.fixture import llm_server, llm_session
from tests.service.homes import furnish
from tests.service.instances import Running, visitor, whole_stream

__all__ = ["e2b_server", "e2b_session", "llm_server", "llm_session"]

pytestmark = pytest.mark.anyio

# The SDK would try again by itself.
NOT_AGAIN = {"Should-Retry": "false"}


@pytest.fixture
async def instance(
    e2b_server: E2BServer, llm_server: LLMServer, tmp_path: Path
) -> AsyncIterator[Running]:
    """What the variables give that both servers print."""
    llm_server.model = builder
    settings = Settings.model_validate(
        {
            "home": tmp_path / "home",
            "runner": RunnerKind.LLM,
            "model": "anthropic:claude-haiku-4-5",
            "ANTHROPIC_API_KEY": llm_server.api_key,
            "ANTHROPIC_BASE_URL": llm_server.url,
            "sandbox": "e2b",
            "E2B_API_KEY": e2b_server.api_key,
            "E2B_API_URL": e2b_server.url,
            "E2B_SANDBOX_URL": e2b_server.url,
            "e2b_preview_url": e2b_server.settings["preview_url"],
            "sandbox_rate": 100,
            "partitions": 2,
            "drain_s": 0,
            "reap_grace_s": 300,
        }
    )
    await furnish(settings.home)
    with embedded_servers(settings.home) as servers:
        async with running(settings, servers, port=0) as (started, log):
            yield Running(settings, servers, started, log)


async def built(instance: Running, client: httpx.AsyncClient, goal: str) -> list[RecordedEvent]:
    """The events of a build that ended READY, whose preview answers a visitor."""
    job = (await client.post("/v1/jobs", json={"goal": goal})).json()["job_id"]
    await whole_stream(client, job)
    events = await instance.log.store.read_job(JobRef(LOCAL_TENANT, job))
    ready = events[-1].payload
    assert isinstance(ready, JobReady), ready
    assert ready.preview_url is not None
    async with visitor(ready.preview_url) as guest:
        page = await guest.get("/")
    assert page.status_code == 200
    assert goal in page.text
    return events


def counted(events: list[RecordedEvent]) -> Counter[str]:
    return Counter(event.type for event in events if not isinstance(event.payload, RetryScheduled))


async def test_faults_of_both_providers_cost_retries_and_nothing_else(
    instance: Running, e2b_server: E2BServer, llm_server: LLMServer
) -> None:
    async with visitor(instance.instance.url, instance.instance.key) as client:
        smooth = await built(instance, client, "a page of notes")
        assert not [e for e in smooth if isinstance(e.payload, RetryScheduled)]

        llm_server.say(Refusal(429, "slow down", {"retry-after": "0"}))
        e2b_server.fail_next("/v2/sandboxes", 503, headers=NOT_AGAIN)
        e2b_server.cut_next("/process.Process/Start", before=b'"data"')
        rough = await built(instance, client, "a page of more notes")

    retries = [e.payload for e in rough if isinstance(e.payload, RetryScheduled)]
    assert [(one.step, one.kind) for one in retries] == [
        ("runner", "runner"),
        ("create_sandbox", "sandbox_busy"),
        ("tests", "sandbox"),
    ]
    assert counted(rough) == counted(smooth)
    assert len(llm_server.asked) == 3
    assert len(e2b_server.living) == 2
