"""A job's event stream, and cancelling, with no worker about: each test walks its job itself."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
import httpx
import pytest
from obstore.store import MemoryStore
from sqlalchemy.ext.asyncio import AsyncEngine

from eventstore import Claim, CommandHandler, Hub, connect_redis
from generator import ArtifactStore
from schemas import JobRef, Phase
from schemas.commands import CompletePhase, ConfirmCancel, FinishBuild, StartJob, StartPhase
from service.api import Parts, create_api
from service.client import Client
from service.embedded import Servers
from service.keys import KeyRing, new_key
from service.project_secrets import ProjectSecrets
from service.quotas import Quotas
from service.secret_keys import SecretKeys
from service.tiers import Tiers
from tests.service.instances import (
    PATIENCE_S,
    Message,
    messages_of,
    served,
    visitor,
    whole_stream,
)

pytestmark = pytest.mark.anyio

TENANT = "acme"
WHOLE = ["1-0", "2-0", "3-0", "3-1", "3-2", "4-0", "5-0", "6-0", "7-0", "7-1"] + [
    f"{version}-0" for version in range(8, 12)
]


@dataclass(frozen=True, slots=True)
class Quiet:
    """An API without a worker behind it, and what it takes to be the worker oneself."""

    url: str
    key: str
    client: httpx.AsyncClient
    handler: CommandHandler

    async def submit(self) -> JobRef:
        accepted = await self.client.post("/v1/jobs", json={"goal": "a list"})
        return JobRef(TENANT, accepted.json()["job_id"])

    async def claim(self) -> Claim:
        store = self.handler.store
        (claim,) = await store.work.claim(
            store.partition(TENANT), "w1", free_slots=1, lease_ms=60_000
        )
        await self.handler.handle(claim.ref, StartJob("w1", claim.attempt), claim=claim)
        return claim

    async def note(self, claim: Claim, text: str) -> None:
        await self.handler.store.progress(claim, "log", {"text": text}, time=datetime.now(UTC))

    async def walk(self, claim: Claim) -> None:
        """From STARTING to READY, with three lines of progress on the way."""
        for phase in Phase:
            await self.handler.handle(claim.ref, StartPhase(phase), claim=claim)
            if phase is Phase.SCAFFOLD:
                await self.note(claim, "one")
                await self.note(claim, "two")
            if phase is Phase.DEPS:
                await self.note(claim, "three")
            await self.handler.handle(claim.ref, CompletePhase(phase, duration_ms=1), claim=claim)
        number = 1 + await self.handler.store.last_build_number(TENANT, claim.project)
        await self.handler.handle(claim.ref, FinishBuild(build_number=number), claim=claim)

    async def finished(self) -> JobRef:
        ref = await self.submit()
        await self.walk(await self.claim())
        return ref


@pytest.fixture
async def quiet(
    servers: Servers, handler: CommandHandler, engine: AsyncEngine
) -> AsyncIterator[Quiet]:
    keys, key = KeyRing(engine), new_key()
    await keys.add(key, tenant=TENANT, name="test")
    bells = connect_redis(servers.redis_url)
    hub = Hub(handler.store, bells)
    artifacts = ArtifactStore(MemoryStore())
    quotas, secrets = Quotas(handler.store, engine, Tiers()), ProjectSecrets(engine, SecretKeys())
    parts = Parts(handler, hub, engine, keys, artifacts, quotas, secrets)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        async with (
            served(create_api(parts)) as url,
            visitor(url, key) as client,
        ):
            yield Quiet(url, key, client, handler)
        tasks.cancel_scope.cancel()
    await bells.aclose()


@dataclass(slots=True)
class Follower:
    """Reads a job's stream in a task of its own."""

    client: httpx.AsyncClient
    job: str
    messages: list[Message] = field(default_factory=list)
    has_begun: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        async with self.client.stream("GET", f"/v1/jobs/{self.job}/stream") as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            async for message in messages_of(response):
                self.messages.append(message)
                self.has_begun.set()

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]


# --- following ------------------------------------------------------------------------------------


async def test_followers_see_every_entry_in_order_while_it_happens_and_then_their_stream_closes(
    quiet: Quiet,
) -> None:
    ref = await quiet.submit()
    early, late = Follower(quiet.client, ref.job), Follower(quiet.client, ref.job)
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(early.run)
            await early.has_begun.wait()
            claim = await quiet.claim()
            tasks.start_soon(late.run)
            await late.has_begun.wait()
            await quiet.walk(claim)
    assert early.ids == late.ids == WHOLE
    assert early.messages == late.messages
    assert [m.event for m in early.messages if m.id.endswith("-0")][::10] == [
        "JobQueued",
        "JobReady",
    ]


async def test_events_are_cloud_events_and_progress_says_what_it_is(quiet: Quiet) -> None:
    ref = await quiet.finished()
    messages = {message.id: message for message in await whole_stream(quiet.client, ref.job)}
    first, line = messages["1-0"], messages["3-1"]
    assert first.data["specversion"] == "1.0"
    assert first.data["type"] == f"headrace.{first.event}" == "headrace.JobQueued"
    assert (first.data["subject"], first.data["jobversion"]) == (ref.job, 1)
    assert (line.event, line.data["kind"], line.data["data"]) == (
        "progress",
        "log",
        {"text": "one"},
    )


async def test_a_follower_who_comes_after_the_end_gets_the_whole_history(quiet: Quiet) -> None:
    ref = await quiet.finished()
    assert [message.id for message in await whole_stream(quiet.client, ref.job)] == WHOLE


async def test_a_follower_who_comes_back_gets_exactly_what_it_has_not_seen(quiet: Quiet) -> None:
    ref = await quiet.finished()
    for place, last in enumerate(WHOLE[:-1]):
        rest = await whole_stream(quiet.client, ref.job, after=last)
        assert [message.id for message in rest] == WHOLE[place + 1 :]


async def test_a_follower_who_has_seen_the_end_is_told_that_nothing_comes(quiet: Quiet) -> None:
    ref = await quiet.finished()
    path = f"/v1/jobs/{ref.job}/stream"
    response = await quiet.client.get(path, headers={"Last-Event-ID": WHOLE[-1]})
    assert (response.status_code, response.content) == (204, b"")


async def test_an_id_from_a_history_that_was_lost_gets_reset_and_the_history_anew(
    quiet: Quiet,
) -> None:
    ref = await quiet.finished()
    reset, *history = await whole_stream(quiet.client, ref.job, after="99-0")
    assert reset.event == "reset"
    assert [message.id for message in history] == WHOLE


async def test_what_is_no_id_of_the_stream_is_a_bad_request(quiet: Quiet) -> None:
    ref = await quiet.submit()
    path = f"/v1/jobs/{ref.job}/stream"
    for last in ("x", "1", "1-", "-1", "1-0-0", "1.0-0", "9999999999-0", "1-0 2-0", "²-0"):
        headers = {b"Last-Event-ID": last.encode("latin-1")}
        response = await quiet.client.get(path, headers=headers)
        assert (response.status_code, response.json()["status"]) == (400, 400), last
        assert "Last-Event-ID" in response.json()["title"]


async def test_line_ends_of_other_kinds_in_progress_do_not_break_a_follower(quiet: Quiet) -> None:
    text = "one\u2028two\x85three\u2029four"
    ref = await quiet.submit()
    claim = await quiet.claim()
    await quiet.note(claim, text)
    await quiet.walk(claim)
    async with Client(quiet.url, quiet.key) as client:
        entries = [entry async for entry in client.follow(ref.job)]
    assert entries[2].data["data"]["text"] == text
    assert entries[-1].name == "JobReady"


# --- cancel ---------------------------------------------------------------------------------------


async def test_a_job_that_waits_is_cancelled_at_once(quiet: Quiet) -> None:
    ref = await quiet.submit()
    answer = await quiet.client.post(f"/v1/jobs/{ref.job}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    messages = await whole_stream(quiet.client, ref.job)
    assert [message.event for message in messages] == ["JobQueued", "JobCancelled"]
    store = quiet.handler.store
    assert not await store.work.claim(store.partition(TENANT), "w1", free_slots=1, lease_ms=0)


async def test_a_job_that_runs_is_cancelled_when_its_worker_says_so(quiet: Quiet) -> None:
    ref = await quiet.submit()
    claim = await quiet.claim()
    path = f"/v1/jobs/{ref.job}/cancel"
    answers = [(await quiet.client.post(path)).json() for _ in range(2)]
    assert [(answer["status"], answer["version"]) for answer in answers] == [("cancelling", 3)] * 2
    await quiet.handler.handle(ref, ConfirmCancel(), claim=claim)
    messages = await whole_stream(quiet.client, ref.job)
    assert [message.event for message in messages[2:]] == ["CancelRequested", "JobCancelled"]


async def test_cancelling_what_has_ended_is_a_conflict_but_repeating_a_cancel_is_not(
    quiet: Quiet,
) -> None:
    ref = await quiet.submit()
    path, headers = f"/v1/jobs/{ref.job}/cancel", {"Idempotency-Key": "stop-1"}
    first, again, another = [
        await quiet.client.post(path, headers=each) for each in (headers, headers, {})
    ]
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["Headrace-Position"] == first.headers["Headrace-Position"]
    assert (another.status_code, another.json()["status"]) == (409, 409)
    assert "cancelled" in another.json()["detail"]
