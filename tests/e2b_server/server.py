"""The loopback server, in a thread of its own."""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, Self, TypedDict
from uuid import uuid4

import uvicorn

from tests.e2b_server.control import PAGE_SIZE, ControlPlane
from tests.e2b_server.edge import Edge
from tests.e2b_server.faults import Answer, Cut, Faults, Hold
from tests.e2b_server.sandbox import Sandbox

PREVIEW_URL = "http://127.0.0.1:{sandbox_id:.5}"
"""Leads to a preview: an id starts with the five digits of its sandbox's loopback port."""


KEEP_ALIVE_S = 600
"""How long an idle connection is kept, as before E2B's. One that is closed in the moment of its
next request is a network error, and the SDK keeps its connections from test to test."""


class Settings(TypedDict):
    """What leads an `E2BRuntime` here."""

    api_url: str
    sandbox_url: str
    preview_url: str


class E2BServer:
    """`with E2BServer() as server:` serves on a free loopback port; all its sandboxes end with it.

    `E2BRuntime(server.api_key, **server.settings)` uses it.
    """

    def __init__(self, api_key: str | None = None) -> None:
        self.api_key = api_key or f"e2b_{uuid4().hex}"
        self.url = ""
        self._control: ControlPlane
        self._faults: Faults
        self._loop: asyncio.AbstractEventLoop
        self._uvicorn: uvicorn.Server
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="e2b")

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._faults.clear()
        self._uvicorn.should_exit = True
        self._thread.join()

    @property
    def settings(self) -> Settings:
        return {"api_url": self.url, "sandbox_url": self.url, "preview_url": PREVIEW_URL}

    @property
    def living(self) -> dict[str, Sandbox]:
        """The sandboxes that have not ended, by id."""
        return dict(self._control.living)

    def reset(self) -> None:
        """End every sandbox, forget every fault not met."""
        self._faults.clear()
        self._control.page_size = PAGE_SIZE
        for sandbox_id in self.living:
            self._in_loop(self._control.end(sandbox_id))

    def list_in_pages_of(self, size: int) -> None:
        self._control.page_size = size

    def fail_next(
        self,
        path_prefix: str,
        status: int,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        late: bool = False,
    ) -> None:
        """The next request there gets this answer; with `late` only after it had its effect."""
        if body is None:
            body = b'{"code": %d, "message": "a fault by order"}' % status
        self._faults.order(path_prefix, Answer(status, body, headers or {}, late))

    def cut_next(self, path_prefix: str, before: bytes) -> None:
        """The next answer there breaks off before the piece that contains `before`."""
        self._faults.order(path_prefix, Cut(before))

    def hold_next(self, path_prefix: str) -> Hold:
        """The next request there waits for `release()`."""
        hold = Hold()
        self._faults.order(path_prefix, hold)
        return hold

    def _in_loop(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._control = ControlPlane(self.api_key, frozenset({"base"}))
        self._faults = Faults(Edge(self._control))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            config = uvicorn.Config(
                self._faults,
                lifespan="off",
                log_level="critical",
                timeout_graceful_shutdown=1,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
            self._uvicorn = uvicorn.Server(config)
            serving = asyncio.create_task(self._uvicorn.serve([listener]))
            self._ready.set()
            try:
                await serving
            finally:
                await self._control.close()
