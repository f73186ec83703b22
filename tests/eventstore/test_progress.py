"""Progress: shown live, never a fact, and only from the owner of the job."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from eventstore import Claim, CommandHandler, EventStore, Fenced
from eventstore import store as store_module
from schemas import JobRef
from schemas.commands import RequestBuild, RequestCancel, StartJob

pytestmark = pytest.mark.both_servers

TENANT = "acme"
LEASE_MS = 60_000
NOW = datetime(2026, 3, 1, tzinfo=UTC)


async def claimed(handler: CommandHandler) -> Claim:
    ref = JobRef(TENANT, str(uuid4()))
    await handler.handle(ref, RequestBuild(TENANT, "ann", "shop", "a list"))
    (claim,) = await handler.store.work.claim(
        handler.store.partition(TENANT), "w1", free_slots=1, lease_ms=LEASE_MS
    )
    return claim


async def entry_ids(store: EventStore, claim: Claim) -> list[str]:
    entries = await store.redis.xrange(store.keys(TENANT).job(claim.ref.job)) or []
    return [entry[0].decode() for entry in entries]  # type: ignore[union-attr]


async def test_a_line_stands_behind_the_newest_event_and_makes_no_version(
    handler: CommandHandler,
) -> None:
    claim = await claimed(handler)
    await handler.store.progress(claim, "log", {"text": "one"}, time=NOW)
    await handler.store.progress(claim, "log", {"text": "two"}, time=NOW)
    await handler.handle(claim.ref, StartJob("w1", 1), claim=claim)
    await handler.store.progress(claim, "log", {"text": "three"}, time=NOW)
    assert await entry_ids(handler.store, claim) == ["1-0", "1-1", "1-2", "2-0", "2-1"]
    assert (await handler.load(claim.ref)).version == 2


async def test_a_superseded_worker_cannot_write_a_progress_line(handler: CommandHandler) -> None:
    old = await claimed(handler)
    store = handler.store
    await store.work.release(old)
    await store.work.claim(store.partition(TENANT), "w2", free_slots=1, lease_ms=0)
    with pytest.raises(Fenced) as caught:
        await store.progress(old, "log", {"text": "ghost"}, time=NOW)
    assert caught.value.owner == "w2"
    assert await entry_ids(store, old) == ["1-0"]


async def test_a_cancel_request_in_between_does_not_silence_the_worker(
    handler: CommandHandler,
) -> None:
    claim = await claimed(handler)
    await handler.handle(claim.ref, StartJob("w1", 1), claim=claim)
    await handler.handle(claim.ref, RequestCancel(by="ann"))
    assert await handler.store.progress(claim, "log", {"text": "still here"}, time=NOW)
    assert (await entry_ids(handler.store, claim))[-1] == "3-1"


async def test_after_the_cap_one_line_says_that_the_rest_is_left_out(
    handler: CommandHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PROGRESS_CAP_LINES", 3)
    claim = await claimed(handler)
    kept = [
        await handler.store.progress(claim, "log", {"text": str(number)}, time=NOW)
        for number in range(6)
    ]
    assert kept == [True, True, True, True, False, False]
    entries = await handler.store.redis.xrange(handler.store.keys(TENANT).job(claim.ref.job))
    kinds = [fields.get(b"kind") for _, fields in (entries or [])[1:]]  # type: ignore[union-attr]
    assert kinds == [b"log", b"log", b"log", b"capped"]


async def test_a_job_that_has_ended_takes_no_lines(handler: CommandHandler) -> None:
    claim = await claimed(handler)
    await handler.handle(claim.ref, RequestCancel(by="ann"))
    with pytest.raises(Fenced):
        await handler.store.progress(claim, "log", {"text": "late"}, time=NOW)
