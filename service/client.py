"""The API as the CLI uses it."""

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import anyio
import httpx

from service.errors import ApiError

REQUEST_S = 10.0
QUIET_S = 60.0
"""A stream that is silent for so long (it pings every 15 s) is dead."""

START = "0-0"
"""The entry of a job's stream that every other one is behind."""

RECONNECTS = 20
_RECONNECT_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a job's stream: an event (`data` is a CloudEvent) or a line of progress."""

    id: str
    name: str
    data: dict[str, Any]


class Client:
    """Speaks to one Headrace with one key. An async context manager."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(REQUEST_S, read=QUIET_S),
            trust_env=False,
            verify=not url.startswith("http:"),  # loading certificates takes 40 ms
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def submit(
        self,
        goal: str,
        *,
        project: str,
        tier: str | None = None,
        limits: Mapping[str, Any] | None = None,
        base: int | str | None = None,
        in_place: bool = False,
    ) -> dict[str, Any]:
        """Queue a build, from the files of build `base` (or `latest`) if there is one.

        Raises `ApiError` with the API's own words when it is refused.
        """
        body: dict[str, Any] = {"goal": goal, "project_id": project}
        if tier is not None:
            body["tier"] = tier
        if limits:
            body["limits"] = limits
        if base is not None:
            body["base_build"] = base
        if in_place:
            body["in_place"] = True
        return await self._ask("POST", "/v1/jobs", content=json.dumps(body))

    async def job(self, job_id: str) -> dict[str, Any]:
        """One job."""
        return await self._ask("GET", f"/v1/jobs/{job_id}")

    async def jobs(self, **filters: str | int | None) -> dict[str, Any]:
        """A page of jobs."""
        params = {name: value for name, value in filters.items() if value is not None}
        return await self._ask("GET", "/v1/jobs", params=params)

    async def usage(self, tier: str | None) -> dict[str, Any]:
        """Today's use and limits."""
        return await self._ask("GET", "/v1/usage", params={"tier": tier} if tier else {})

    async def builds(self, project: str, *, before: int | None, limit: int) -> dict[str, Any]:
        """A page of a project's builds."""
        params = {"limit": limit, **({} if before is None else {"before": before})}
        return await self._ask("GET", f"/v1/projects/{project}/builds", params=params)

    async def build(self, project: str, number: int) -> dict[str, Any]:
        """One build."""
        return await self._ask("GET", f"/v1/projects/{project}/builds/{number}")

    async def files(self, project: str, number: int) -> dict[str, Any]:
        """The files of a build."""
        return await self._ask("GET", f"/v1/projects/{project}/builds/{number}/files")

    async def diff(self, project: str, number: int, against: int | None) -> dict[str, Any]:
        """What a build has otherwise than another."""
        params = {} if against is None else {"against": against}
        return await self._ask("GET", f"/v1/projects/{project}/builds/{number}/diff", params=params)

    async def restore(self, project: str, number: int, tier: str | None) -> dict[str, Any]:
        """Queue a build with exactly the files of that one."""
        path = f"/v1/projects/{project}/builds/{number}/restore"
        return await self._ask("POST", path, params={"tier": tier} if tier else {})

    async def archive(self, project: str, number: int, form: str) -> AsyncGenerator[bytes, None]:
        """All files of a build, packed, in pieces. Raises `ApiError`, also when it breaks off."""
        path = f"/v1/projects/{project}/builds/{number}/archive"
        try:
            async with self._http.stream("GET", path, params={"format": form}) as response:
                if response.is_error:
                    await response.aread()
                    raise _api_error(response)
                async for piece in response.aiter_bytes():
                    yield piece
        except httpx.TransportError as error:
            raise ApiError(0, f"the download broke off: {error}") from error

    async def preview(self, method: str, project: str, number: int) -> dict[str, Any]:
        """A build's preview: GET tells of it, POST asks for it, DELETE ends it."""
        return await self._ask(method, f"/v1/projects/{project}/builds/{number}/preview")

    async def secrets(self, project: str) -> dict[str, Any]:
        """The names of a project's secrets."""
        return await self._ask("GET", f"/v1/projects/{project}/secrets")

    async def set_secret(self, project: str, name: str, value: str) -> None:
        """Set a secret of a project."""
        path = f"/v1/projects/{project}/secrets/{name}"
        await self._ask("PUT", path, content=json.dumps({"value": value}))

    async def remove_secret(self, project: str, name: str) -> None:
        """Remove a secret of a project."""
        await self._ask("DELETE", f"/v1/projects/{project}/secrets/{name}")

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask for a job to be stopped."""
        return await self._ask("POST", f"/v1/jobs/{job_id}/cancel")

    async def logs(
        self, job_id: str, **filters: str | int | list[str] | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The lines of a job's log; before them where to go on live: the stream's entry, or None.

        Raises `ApiError`.
        """
        params = {name: value for name, value in filters.items() if value is not None}
        try:
            async with self._http.stream("GET", f"/v1/jobs/{job_id}/logs", params=params) as answer:
                if answer.is_error:
                    await answer.aread()
                    raise _api_error(answer)
                yield {"entry": answer.headers.get("Headrace-Entry")}
                async for line in _lines(answer):
                    yield json.loads(line)
        except httpx.TransportError as error:
            raise ApiError(0, f"the API at {self._http.base_url} does not answer") from error

    async def follow(self, job_id: str, *, after: str = START) -> AsyncGenerator[Entry, None]:
        """Every entry of a job's stream to its end, each once, over as many connections as needed.

        `after`: the entry to begin behind.

        Raises `ApiError` when the job is not there, or the API stays away for twenty tries.
        """
        last, failures = after, 0
        while True:
            try:
                async with self._http.stream(
                    "GET", f"/v1/jobs/{job_id}/stream", headers={"Last-Event-ID": last}
                ) as response:
                    if response.status_code == 204:
                        return
                    if response.status_code == 503:
                        raise httpx.RemoteProtocolError("the API is not ready")
                    if response.status_code != 200:
                        await response.aread()
                        raise _api_error(response)
                    before = last
                    async for entry in _entries(response):
                        failures, last = 0, entry.id
                        yield entry
                    if last == before:
                        raise httpx.RemoteProtocolError("the stream ended without a word")
            except httpx.TransportError as error:
                failures += 1
                if failures > RECONNECTS:
                    raise ApiError(0, f"the API does not answer any more: {error}") from error
                await anyio.sleep(_RECONNECT_PAUSE_S)

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(
                method, path, headers={"Content-Type": "application/json"}, **request
            )
        except httpx.TransportError as error:
            raise ApiError(0, f"the API at {self._http.base_url} does not answer") from error
        if response.is_error:
            raise _api_error(response)
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer


async def _entries(response: httpx.Response) -> AsyncGenerator[Entry, None]:
    """The entries of an event stream (WHATWG HTML, server-sent events)."""
    fields: dict[str, str] = {}
    async for line in _lines(response):
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Entry(fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"]))
            fields = {}


async def _lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Lines as our API ends them. httpx would also end one at U+2028, which JSON may hold."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode()


def _api_error(response: httpx.Response) -> ApiError:
    try:
        problem = response.json()
        title = problem.get("detail") or problem["title"]
    except (ValueError, KeyError):
        title = f"the API answered {response.status_code}"
    return ApiError(response.status_code, title)
