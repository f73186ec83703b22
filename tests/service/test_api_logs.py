"""A job's log over HTTP, with no worker about: each test says what is said itself."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import Claim, CommandHandler, Hub
from generator.transcript import Transcript
from schemas import JobRef
from schemas.commands import FailJob, StartJob
from service.client import Client
from tests.histories import TENANT
from tests.service.quiet_api import QuietApi, quiet_api

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(handler: CommandHandler, hub: Hub, engine: AsyncEngine) -> AsyncIterator[QuietApi]:
    async with quiet_api(handler, hub, engine) as made:
        yield made


class Said:
    """A job under way in which things are said."""

    def __init__(self, handler: CommandHandler, claim: Claim) -> None:
        self.handler = handler
        self.claim = claim
        self.phase = "deps"
        self.transcript = Transcript(self._show, phase=lambda: self.phase, clock=self.handler.clock)

    @property
    def path(self) -> str:
        return f"/v1/jobs/{self.claim.ref.job}/logs"

    async def say(self) -> None:
        """Six lines of two phases and three streams."""
        await self.transcript.say("command", "install")
        await self.transcript.take("stdout", "one\ntwo\n")
        await self.transcript.flush()
        self.phase = "checks"
        await self.transcript.take("stderr", "three\nfour\n")
        await self.transcript.take("stdout", "ünf")
        await self.transcript.flush()

    async def end(self, log: str | None) -> None:
        await self.handler.handle(self.claim.ref, FailJob("x", "y", "dbg", log), claim=self.claim)

    async def _show(self, said: Mapping[str, Any]) -> bool:
        return await self.handler.store.progress(self.claim, "log", said, time=self.handler.clock())


@pytest.fixture
async def said(api: QuietApi, handler: CommandHandler) -> Said:
    accepted = await api.client.post("/v1/jobs", json={"goal": "a list"})
    assert accepted.status_code == 202
    store = handler.store
    (claim,) = await store.work.claim(store.partition(TENANT), "w1", free_slots=1, lease_ms=60_000)
    await handler.handle(claim.ref, StartJob("w1", 1), claim=claim)
    one = Said(handler, claim)
    await one.say()
    return one


async def texts(api: QuietApi, path: str, **params: Any) -> list[str]:
    response = await api.client.get(path, params=params)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line)["text"] for line in response.text.splitlines()]


ALL = ["install", "one", "two", "three", "four", "ünf"]


async def test_while_a_job_runs_its_log_is_what_was_shown_so_far(api: QuietApi, said: Said) -> None:
    response = await api.client.get(said.path)
    assert response.headers["Headrace-Log"] == "shown"
    first = json.loads(response.text.splitlines()[0])
    assert first.pop("time").endswith("Z")
    assert first == {"attempt": 1, "phase": "deps", "stream": "command", "text": "install"}
    assert await texts(api, said.path) == ALL


async def test_a_log_is_asked_for_by_phase_by_stream_and_by_its_end(
    api: QuietApi, said: Said
) -> None:
    assert await texts(api, said.path, phase="checks") == ["three", "four", "ünf"]
    assert await texts(api, said.path, stream="stdout") == ["one", "two", "ünf"]
    assert await texts(api, said.path, stream=["stderr", "command"]) == ["install", "three", "four"]
    assert await texts(api, said.path, tail=2) == ["four", "ünf"]
    assert await texts(api, said.path, tail=1, phase="deps") == ["two"]
    assert await texts(api, said.path, tail=0) == []
    await api.refused(said.path, phase="party")
    await api.refused(said.path, stream="party")
    await api.refused(said.path, tail=-1)


async def test_a_log_can_be_had_as_plain_text(api: QuietApi, said: Said) -> None:
    response = await api.client.get(said.path, headers={"Accept": "text/plain"})
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.text == "$ install\none\ntwo\nthree\nfour\nünf\n"


async def test_whoever_goes_on_live_misses_nothing_and_sees_nothing_twice(
    api: QuietApi, said: Said
) -> None:
    response = await api.client.get(said.path)
    await said.transcript.say("stdout", "six")
    await said.transcript.flush()
    await said.end(None)
    async with Client(
        str(api.client.base_url), api.client.headers["Authorization"].removeprefix("Bearer ")
    ) as client:
        after = response.headers["Headrace-Entry"]
        job = said.claim.ref.job
        seen = [entry async for entry in client.follow(job, after=after)]
    assert [one.data["data"].get("text") for one in seen if one.name == "progress"] == ["six"]
    assert seen[-1].name == "JobFailed"


async def test_after_the_end_the_whole_log_is_there_although_the_stream_has_expired(
    api: QuietApi, said: Said
) -> None:
    await said.end(await api.artifacts.put_blob(said.transcript.whole()))
    await api.fold()
    await api.store.redis.delete(api.store.keys(TENANT).job(said.claim.ref.job))
    response = await api.client.get(said.path)
    assert response.headers["Headrace-Log"] == "whole"
    assert await texts(api, said.path) == ALL
    assert await texts(api, said.path, phase="checks", tail=1) == ["ünf"]


async def test_of_an_ended_job_whose_log_was_not_kept_there_is_what_was_shown(
    api: QuietApi, said: Said
) -> None:
    await said.end(None)
    assert await texts(api, said.path) == ALL


async def test_a_log_that_is_gone_is_told_so(api: QuietApi, said: Said) -> None:
    await said.end("0" * 64)
    assert "erased" in (await api.refused(said.path, 410))["title"]


async def test_the_log_of_anothers_job_looks_like_none_at_all(api: QuietApi, said: Said) -> None:
    answers = [
        await api.rival.get(said.path),
        await api.client.get(f"/v1/jobs/{JobRef(TENANT, 'none').job}/logs"),
    ]
    assert [one.status_code for one in answers] == [404, 404]
