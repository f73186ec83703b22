"""Asks a started app over HTTP, through the address a visitor uses, whether it is this build's.

The app was written by nobody who is trusted. Of its answer only so much is read, for only so long;
nothing is unpacked, no redirect followed and no cookie kept.
"""

import json
import time
from dataclasses import dataclass

import anyio
import httpx

MAX_ANSWER_BYTES = 64 * 1024
_TRY_S = 5.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
# A connection each, so that no answer can run into the next.
_HEADERS = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "headrace-probe"}


@dataclass(frozen=True, slots=True)
class Probed:
    """What the probe saw. `failure` is None when the app answered with the marker and a page."""

    url: str
    status: int | None
    marker: str | None
    tries: int
    duration_ms: int
    failure: str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What one try saw."""

    status: int | None
    marker: str | None
    failure: str | None


async def probe(preview_url: str, marker: str, *, timeout_s: float) -> Probed:
    """Ask `/healthz` until it answers with `marker`, then `/` for a page, within `timeout_s`.

    Redirects are not followed: the app must answer itself, and must not send the probe elsewhere.
    """
    url, started, tries = f"{preview_url}/healthz", time.monotonic(), 0
    seen = Seen(None, None, "no answer came")
    pause_s = _FIRST_PAUSE_S
    # trust_env: a proxy of this machine's environment is no visitor's path. verify: loading the
    # certificates stops the loop for 40 ms, and plain HTTP needs none.
    async with httpx.AsyncHTTPTransport(
        trust_env=False, verify=not preview_url.startswith("http:")
    ) as transport:
        with anyio.move_on_after(timeout_s):
            while seen.failure is not None:
                tries += 1
                seen = await ask(transport, preview_url, marker)
                if seen.failure is not None:
                    await anyio.sleep(pause_s)
                    pause_s = min(pause_s * 1.2, _LONGEST_PAUSE_S)
    duration_ms = round((time.monotonic() - started) * 1000)
    return Probed(url, seen.status, seen.marker, tries, duration_ms, seen.failure)


async def ask(transport: httpx.AsyncHTTPTransport, preview_url: str, marker: str) -> Seen:
    """One try. Takes bounded time and memory, whatever is answered."""
    status: int | None = None
    found: str | None = None
    try:
        status, body = await _get(transport, f"{preview_url}/healthz")
        found = _marker(body)
        failure = _judge(status, found, marker)
        if failure is None:
            status, page = await _get(transport, f"{preview_url}/")
            failure = None if status == 200 and page else f"/ answered {status}"
    except TimeoutError:
        failure = f"{preview_url}/healthz does not answer within {_TRY_S:g} s"
    except httpx.HTTPError as error:
        failure = f"{preview_url}/healthz does not answer ({type(error).__name__})"
    return Seen(status, found, failure)


async def _get(transport: httpx.AsyncHTTPTransport, url: str) -> tuple[int, bytes]:
    """Status and the beginning of the body as it came. Raises `TimeoutError`, `httpx.HTTPError`."""
    # Of a client only the transport: no redirects, no cookies, and h11 limits the headers.
    request = httpx.Request("GET", url, headers=_HEADERS)
    with anyio.fail_after(_TRY_S):  # altogether, however slowly it drips
        response = await transport.handle_async_request(request)
        try:
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    break
            return response.status_code, body[:MAX_ANSWER_BYTES]
        finally:
            await response.aclose()


def _marker(body: bytes) -> str | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    marker = answer.get("build") if isinstance(answer, dict) else None
    return marker[:64] if isinstance(marker, str) else None


def _judge(status: int, found: str | None, wanted: str) -> str | None:
    if status != 200:
        return f"/healthz answered {status}"
    if found is None:
        return "/healthz carries no build marker"
    if found != wanted:
        return f"/healthz carries another build's marker ({found[:16]})"
    return None
