"""The preview of a build over HTTP: how it is, asking for it, ending it."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import CommandHandler, Hub
from schemas import JobRef
from schemas.commands import ExpirePreview, ResumePreview
from schemas.events import JobReady, Known, PreviewExpired, SandboxCreated
from service.api.previews import LASTS
from tests.histories import all_completed, build
from tests.projector.writing import write
from tests.service.quiet_api import QuietApi, quiet_api

pytestmark = pytest.mark.anyio

PREVIEW = "/v1/projects/shop/builds/1/preview"


@pytest.fixture
async def api(handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> AsyncIterator[QuietApi]:
    async with quiet_api(handler, hub, engine) as made:
        yield made


async def built(
    api: QuietApi, *, lasts: timedelta = timedelta(hours=1), then: Sequence[Known] = ()
) -> JobRef:
    """A build, folded, whose sandbox ends so much later than now."""
    history: list[Known] = [
        event.model_copy(update={"ends_at": datetime.now(UTC) + lasts})
        if isinstance(event, SandboxCreated)
        else event
        for event in build()
    ]
    ref = await write(api.store, [*history, *then])
    await api.fold()
    return ref


async def asked(api: QuietApi, status: int, **headers: str) -> Any:
    response = await api.client.post(PREVIEW, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers.get("Location", PREVIEW) == PREVIEW
    return response.json()


async def types(api: QuietApi, ref: JobRef) -> list[str]:
    return [event.type for event in await api.store.read_job(ref)]


async def test_a_preview_tells_how_it_is_and_when_it_ends(api: QuietApi) -> None:
    ref = await built(api)
    state = await api.get(PREVIEW)
    assert (state["preview"], state["preview_url"]) == ("running", "https://8080-sb-1.example")
    assert datetime.fromisoformat(state["expires_at"]) > datetime.now(UTC)
    assert (state["job_id"], state["url"]) == (ref.job, PREVIEW)
    assert state["stream_url"] == f"/v1/jobs/{ref.job}/stream"


async def test_a_preview_that_lasts_long_enough_is_there_already(api: QuietApi) -> None:
    ref = await built(api, lasts=LASTS + timedelta(minutes=1))
    assert (await asked(api, 200))["preview"] == "running"
    assert (await types(api, ref))[-1] == "JobReady"


@pytest.mark.parametrize("state", ["about to end", "expired"])
async def test_a_preview_that_does_not_last_is_given_to_a_worker(api: QuietApi, state: str) -> None:
    then = [PreviewExpired(reason="time-out")] if state == "expired" else []
    ref = await built(api, lasts=LASTS - timedelta(minutes=1), then=then)
    assert (await asked(api, 202))["preview"] == "waking"
    assert await api.store.work.is_in_hand(ref)
    (claim,) = await api.store.work.claim(
        api.store.partition(ref.tenant), "w1", free_slots=4, lease_ms=60_000
    )
    assert claim.ref == ref


async def test_asking_again_and_all_at_once_asks_once(api: QuietApi) -> None:
    ref = await built(api, lasts=timedelta(minutes=1))
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(asked, api, 202)
    assert (await types(api, ref)).count("PreviewRequested") == 1


async def test_a_repeated_request_with_a_key_has_one_effect(
    api: QuietApi, handler: CommandHandler
) -> None:
    ref = await built(api, lasts=timedelta(minutes=1))
    await asked(api, 202, **{"Idempotency-Key": "k1"})
    await handler.handle(ref, ExpirePreview("no sandbox"))
    await asked(api, 200, **{"Idempotency-Key": "k1"})
    assert (await types(api, ref)).count("PreviewRequested") == 1
    await asked(api, 202, **{"Idempotency-Key": "k2"})


async def test_the_stream_goes_on_until_the_preview_answers(
    api: QuietApi, handler: CommandHandler
) -> None:
    ref = await built(api, lasts=timedelta(minutes=1))
    await asked(api, 202)
    seen: list[str] = []
    with anyio.fail_after(20):
        async with api.client.stream("GET", f"/v1/jobs/{ref.job}/stream") as response:
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    seen.append(line.removeprefix("event: "))
                    if seen[-1] == "PreviewRequested":
                        ends_at = datetime.now(UTC) + timedelta(hours=1)
                        await handler.handle(ref, ResumePreview("sb-2", "https://b.x", ends_at))
    assert seen[-3:] == ["JobReady", "PreviewRequested", "PreviewResumed"]
    assert (await api.get(PREVIEW))["preview_url"] == "https://b.x"


async def test_a_preview_is_ended_once(api: QuietApi) -> None:
    ref = await built(api)
    statuses = []
    for _ in range(2):
        response = await api.client.delete(PREVIEW)
        statuses.append(response.status_code)
        assert (response.json()["preview"], response.json()["preview_url"]) == ("expired", None)
    assert statuses == [202, 200]
    assert (await types(api, ref)).count("PreviewExpired") == 1


async def test_a_build_without_an_app_has_no_preview_to_ask_for(api: QuietApi) -> None:
    simulated = JobReady(build_number=1, build_version="build_v0_1")
    await write(api.store, [*all_completed(), simulated])
    await api.fold()
    problem = (await api.client.post(PREVIEW)).json()
    assert (problem["status"], "the build has no app" in problem["detail"]) == (409, True)


async def test_the_preview_of_another_tenant_is_not_there(api: QuietApi) -> None:
    ref = await built(api)
    for method in ("GET", "POST", "DELETE"):
        assert (await api.rival.request(method, PREVIEW)).status_code == 404
        none = await api.client.request(method, "/v1/projects/shop/builds/9/preview")
        assert none.status_code == 404
    assert (await types(api, ref))[-1] == "JobReady"
