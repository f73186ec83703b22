"""Builds under test: on the real log, with scripted runner and sandboxes."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import anyio
import pytest

from eventstore import Claim, CommandHandler, Fenced, Hub, JobEvent, ProgressLine, follow
from generator import (
    KEYS_ONLY,
    ArtifactStore,
    Deadlines,
    GenerationService,
    Patience,
    Rate,
    Redactor,
    Runner,
    Secrets,
)
from generator.budget import DayLeft
from schemas import JobRef, RecordedEvent
from schemas.commands import RequestBuild
from schemas.events import TERMINAL_TYPES, Payload
from tests.generator.doubles import PATIENCE_S, ScriptedRuntime

P = TypeVar("P", bound=Payload)

TENANT = "acme"
LEASE_MS = 60_000
AT_ONCE = Patience(first_s=0.0)


class Builds:
    """Makes jobs and the services that run them, over one log and one artifact store."""

    def __init__(self, handler: CommandHandler, hub: Hub, home: Path) -> None:
        self.handler = handler
        self.hub = hub
        self.home = home
        self.artifacts = ArtifactStore.in_folder(home / "artifacts")

    def service(
        self,
        runner: Runner | None,
        runtime: ScriptedRuntime | None = None,
        *,
        patience: Patience = AT_ONCE,
        sandbox_rate: Rate | None = None,
        day_left: DayLeft | None = None,
        redactor: Redactor = KEYS_ONLY,
        secrets: Secrets | None = None,
        **deadlines: Any,
    ) -> GenerationService:
        return GenerationService(
            self.handler,
            self.hub,
            self.artifacts,
            runner=runner,
            sandbox_runtime_factory=lambda: runtime or ScriptedRuntime(),
            workspace_root=self.home / "workspaces",
            deadlines=Deadlines(**{"probe_s": 5, **deadlines}),
            patience=patience,
            sandbox_rate=sandbox_rate,
            day_left=day_left,
            redactor=redactor,
            secrets=secrets,
        )

    async def queued(self, **request: Any) -> JobRef:
        ref = JobRef(TENANT, str(uuid4()))
        asked = {"tenant": TENANT, "user_id": "ann", "project_id": "shop", "goal": "a list"}
        await self.handler.handle(ref, RequestBuild(**{**asked, **request}))
        return ref

    async def claimed(self, worker: str = "w1", **request: Any) -> Claim:
        """A job as `request` says, claimed."""
        await self.queued(**request)
        return await self.claim(worker)

    async def claim(self, worker: str, *, heard_of: Sequence[str] = ()) -> Claim:
        store = self.handler.store
        (claim,) = await store.work.claim(
            store.partition(TENANT), worker, free_slots=1, lease_ms=LEASE_MS, heard_of=heard_of
        )
        return claim

    async def taken_over(self, claim: Claim, worker: str = "w2") -> Claim:
        """The same job, claimed by another worker."""
        assert await self.handler.store.work.release(claim)
        return await self.claim(worker)

    @asynccontextmanager
    async def interrupted(
        self, service: GenerationService, claim: Claim, when: Callable[[], Any]
    ) -> AsyncIterator[None]:
        """Runs a build until `when` returns, does the block, then stops it without a word."""
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.execute_build, claim)
                await when()
                yield
                tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def superseded(
        self, service: GenerationService, claim: Claim, when: Callable[[], Any]
    ) -> AsyncIterator[Claim]:
        """Runs a build until `when` returns, and does the block with the claim of the next worker.

        The first one finds out that it was taken over from.
        """

        async def find_out() -> None:
            with pytest.raises(Fenced):
                await service.execute_build(claim)

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(find_out)
                await when()
                yield await self.taken_over(claim)

    async def until(self, ref: JobRef, kind: str, **said: Any) -> None:
        """Until the job has such an event."""
        with anyio.fail_after(PATIENCE_S):
            async for entry in follow(self.hub, ref):
                if isinstance(entry, JobEvent) and entry.event.type == kind:
                    told = entry.event.payload.model_dump()
                    if said.items() <= told.items():
                        return

    async def progress(self, ref: JobRef) -> AsyncIterator[ProgressLine]:
        """The progress lines of a job that has ended."""
        async for entry in follow(self.hub, ref):
            if isinstance(entry, ProgressLine):
                yield entry
            elif isinstance(entry, JobEvent) and entry.event.type in TERMINAL_TYPES:
                return

    async def events(self, claim: Claim) -> list[RecordedEvent]:
        return await self.handler.store.read_job(claim.ref)

    async def types(self, claim: Claim) -> list[str]:
        return [event.type for event in await self.events(claim)]

    async def told(self, claim: Claim, kind: type[P]) -> list[P]:
        """What the job's events of a kind say, in order."""
        return [e.payload for e in await self.events(claim) if isinstance(e.payload, kind)]


@asynccontextmanager
async def previews(runtime: ScriptedRuntime) -> AsyncIterator[None]:
    """While the block runs, what is started in the runtime's sandboxes answers as an app would."""
    async with app_answering(lambda: runtime.marker) as url:
        runtime.preview = url
        yield


@asynccontextmanager
async def app_answering(marker: Callable[[], str]) -> AsyncIterator[str]:
    """A small server that answers as a started app would."""

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream):  # whoever asked was cancelled
                await stream.receive()
            body = json.dumps({"status": "ok", "build": marker()}).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            await stream.send(head.encode() + body)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django's
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            yield f"http://127.0.0.1:{port}"
            tasks.cancel_scope.cancel()
