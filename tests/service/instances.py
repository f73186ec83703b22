"""Running instances of Headrace in the test's own process, spoken to over HTTP."""

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import uvicorn
from fastapi import FastAPI

from service.embedded import Servers, embedded_servers
from service.instance import Instance
from service.settings import RunnerKind, Settings
from service.wiring import Log, make_sandbox_runtime, running
from tests.service.homes import furnish

PATIENCE_S = 60.0
"""For what must happen in the end; a test that waits so long has failed."""


@dataclass(frozen=True, slots=True)
class Running:
    """A whole instance: API, worker and projector on servers of its own."""

    settings: Settings
    servers: Servers
    instance: Instance
    log: Log


@asynccontextmanager
async def running_instance(home: Path, runner: RunnerKind) -> AsyncIterator[Running]:
    """Once the block ends its servers have, and the sandboxes of its builds."""
    settings = Settings(home=home, runner=runner, partitions=2, drain_s=0)
    await furnish(home)
    with embedded_servers(home) as servers:
        async with running(settings, servers, port=0) as (instance, log):
            try:
                yield Running(settings, servers, instance, log)
            finally:
                runtime = make_sandbox_runtime(settings)
                for info in await runtime.list({}):
                    await runtime.kill(info.sandbox_id)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The URL under which an app is served on loopback while the block runs."""
    config = uvicorn.Config(app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True


def visitor(url: str, key: str | None = None) -> httpx.AsyncClient:
    """An HTTP client, with that key if there is one."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=PATIENCE_S,
        trust_env=False,
        verify=False,  # it is loopback; to load certificates takes 40 ms
    )


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an event stream."""

    id: str
    event: str
    data: Any


class Messages:
    """Cuts an event stream into messages (WHATWG HTML, server-sent events)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[Message]:
        *blocks, self._rest = (self._rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
            if b"data" in fields:
                data = json.loads(fields[b"data"])
                yield Message(fields[b"id"].decode(), fields[b"event"].decode(), data)


async def messages_of(response: httpx.Response) -> AsyncIterator[Message]:
    """The messages of a streamed response as they come."""
    messages = Messages()
    async for chunk in response.aiter_bytes():
        for message in messages.feed(chunk):
            yield message


async def whole_stream(
    client: httpx.AsyncClient, job: str, *, after: str | None = None
) -> list[Message]:
    """Everything that a job's stream gives until it closes."""
    headers = {"Last-Event-ID": after} if after else {}
    with anyio.fail_after(PATIENCE_S):
        async with client.stream("GET", f"/v1/jobs/{job}/stream", headers=headers) as response:
            assert response.status_code == 200
            return [message async for message in messages_of(response)]
