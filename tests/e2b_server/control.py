"""E2B's control plane: makes, finds and ends sandboxes."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2b_server.files import failure
from tests.e2b_server.sandbox import Sandbox

ENVD_VERSION = "0.6.4"
DEFAULT_TIMEOUT_S = 300
MAX_TIMEOUT_S = 24 * 3600
PAGE_SIZE = 100


class ControlPlane:
    """The sandboxes of one account with one API key."""

    def __init__(self, api_key: str, templates: frozenset[str]) -> None:
        self.living: dict[str, Sandbox] = {}
        self.page_size = PAGE_SIZE
        self._api_key = api_key
        self._templates = templates
        self._by_key: dict[str, asyncio.Task[Sandbox]] = {}
        self._ending: set[asyncio.Task[bool]] = set()
        self._root = Path(tempfile.mkdtemp(prefix="e2b-"))

    @property
    def routes(self) -> list[Route]:
        one = "/sandboxes/{sandbox_id}"
        return [
            Route("/v2/sandboxes", self.create, methods=["POST"]),
            Route("/v2/sandboxes", self.list, methods=["GET"]),
            Route("/v2/sandboxes/{sandbox_id}/connect", self.connect, methods=["POST"]),
            Route(one, self.info, methods=["GET"]),
            Route(one, self.kill, methods=["DELETE"]),
            Route(f"{one}/timeout", self.set_timeout, methods=["POST"]),
            Route(f"{one}/pause", self.pause, methods=["POST"]),
        ]

    def refuses(self, request: Request) -> bool:
        return request.headers.get("x-api-key") != self._api_key

    async def create(self, request: Request) -> Response:
        body = await request.json()
        if body["templateID"] not in self._templates:
            return failure(404, f"template '{body['templateID']}' not found")
        if body.get("timeout", DEFAULT_TIMEOUT_S) > MAX_TIMEOUT_S:
            return failure(400, "Timeout cannot be greater than 24 hours")
        key = request.headers.get("idempotency-key", uuid4().hex)
        if key not in self._by_key:
            self._by_key[key] = asyncio.create_task(self._created(body))
        # A client that has gone, or asks again, finds the sandbox that its key began.
        sandbox = await asyncio.shield(self._by_key[key])
        return JSONResponse(_connection(sandbox), 201)

    async def list(self, request: Request) -> Response:
        query = request.query_params
        # Keys and values come percent-encoded inside the percent-encoded query.
        pairs = parse_qsl(query.get("metadata", ""))
        wanted = {unquote(key): unquote(value) for key, value in pairs}.items()
        found = [one for one in self.living.values() if wanted <= one.metadata.items()]
        states = query.get("state", "running,paused").split(",")
        found = [one for one in found if one.state in states]
        start = int(query.get("nextToken", 0))
        end = start + int(query.get("limit", self.page_size))
        headers = {"X-Next-Token": str(end)} if end < len(found) else {}
        return JSONResponse([_details(one) for one in found[start:end]], headers=headers)

    async def connect(self, request: Request) -> Response:
        sandbox = self.living.get(request.path_params["sandbox_id"])
        if sandbox is None:
            return _not_found(request)
        left_s = (await request.json()).get("timeout", DEFAULT_TIMEOUT_S)
        # E2B extends a running sandbox and never shortens it; one that is paused it wakes.
        if sandbox.is_paused or left_s > sandbox.left_s:
            sandbox.set_timeout(left_s)
        sandbox.resume()
        return JSONResponse(_connection(sandbox))

    async def info(self, request: Request) -> Response:
        sandbox = self.living.get(request.path_params["sandbox_id"])
        return JSONResponse(_details(sandbox)) if sandbox else _not_found(request)

    async def kill(self, request: Request) -> Response:
        killed = await self.end(request.path_params["sandbox_id"])
        return Response(status_code=204) if killed else _not_found(request)

    async def set_timeout(self, request: Request) -> Response:
        sandbox = self.living.get(request.path_params["sandbox_id"])
        if sandbox is None:
            return _not_found(request)
        sandbox.set_timeout((await request.json())["timeout"])
        return Response(status_code=204)

    async def pause(self, request: Request) -> Response:
        sandbox = self.living.get(request.path_params["sandbox_id"])
        if sandbox is None:
            return _not_found(request)
        if sandbox.is_paused:
            return failure(409, f"sandbox {sandbox.sandbox_id} is already paused")
        sandbox.pause()
        return Response(status_code=204)

    async def end(self, sandbox_id: str) -> bool:
        sandbox = self.living.pop(sandbox_id, None)
        if sandbox is not None:
            await sandbox.end()
        return sandbox is not None

    async def close(self) -> None:
        """End every sandbox, also one that is being made."""
        await asyncio.gather(*self._by_key.values(), return_exceptions=True)
        await asyncio.gather(*(self.end(sandbox_id) for sandbox_id in list(self.living)))
        await asyncio.gather(*self._ending)
        self._root.rmdir()

    async def _created(self, body: dict[str, Any]) -> Sandbox:
        sandbox = Sandbox(
            self._root / uuid4().hex[:8],
            template_id=body["templateID"],
            metadata=body.get("metadata") or {},
            env=body.get("envVars") or {},
            on_timeout=self._time_is_over,
        )
        try:
            await sandbox.start(body.get("timeout", DEFAULT_TIMEOUT_S))
        except BaseException:
            await sandbox.end()
            raise
        self.living[sandbox.sandbox_id] = sandbox
        return sandbox

    def _time_is_over(self, sandbox: Sandbox) -> None:
        self._ending.add(task := asyncio.create_task(self.end(sandbox.sandbox_id)))
        task.add_done_callback(self._ending.discard)


def _connection(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "templateID": sandbox.template_id,
        "sandboxID": sandbox.sandbox_id,
        "clientID": "loopback",
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": sandbox.access_token,
        "trafficAccessToken": None,
        "domain": None,
    }


def _details(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "templateID": sandbox.template_id,
        "sandboxID": sandbox.sandbox_id,
        "clientID": "loopback",
        "startedAt": sandbox.started_at.isoformat(),
        "endAt": sandbox.ends_at.isoformat(),
        "envdVersion": ENVD_VERSION,
        "cpuCount": 2,
        "memoryMB": 512,
        "diskSizeMB": 1024,
        "state": sandbox.state,
        "metadata": sandbox.metadata,
    }


def _not_found(request: Request) -> Response:
    return failure(404, f"sandbox {request.path_params['sandbox_id']} doesn't exist")
