"""The probe asks apps that nobody trusts: it reads little of an answer and is led nowhere."""

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from generator import probe as probing
from generator.probe import MAX_ANSWER_BYTES, Seen, ask

pytestmark = pytest.mark.anyio

MARKER = "0123456789abcdef"
HEALTHY = b'{"build": "%s"}' % MARKER.encode()
MOST_MEMORY = 8 * 1024 * 1024

Write = Callable[[bytes], Awaitable[None]]
Answer = Callable[[str, Write], Awaitable[None]]


@asynccontextmanager
async def app(answer: Answer) -> AsyncIterator[str]:
    """A server that writes what `answer` says to each request's path."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head)
            await answer(head.split(b" ")[1].decode(), write)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    heads: list[bytes] = []
    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for head in heads:
        assert b"accept-encoding: identity" in head.lower()


def fixed(data: bytes) -> Answer:
    async def answer(path: str, write: Write) -> None:
        await write(data)

    return answer


def ok(body: bytes, *fields: str) -> bytes:
    head = "".join(f"{field}\r\n" for field in ("HTTP/1.1 200 OK", *fields))
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def seen(answer: Answer) -> Seen:
    """What one try sees. It has no more than so much memory for it."""
    async with (
        app(answer) as url,
        httpx.AsyncHTTPTransport(trust_env=False, verify=False) as transport,
    ):
        tracemalloc.start()
        try:
            found = await ask(transport, url, MARKER)
            assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        finally:
            tracemalloc.stop()
    return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever never ends is given up soon."""
    monkeypatch.setattr(probing, "_TRY_S", 0.2)


async def test_an_app_that_says_its_marker_and_serves_a_page_is_found() -> None:
    found = await seen(fixed(ok(HEALTHY)))
    assert (found.failure, found.status, found.marker) == (None, 200, MARKER)


async def test_an_answer_that_goes_on_for_ever_is_read_to_a_limit() -> None:
    async def answer(path: str, write: Write) -> None:
        await write(b"HTTP/1.1 200 OK\r\n\r\n" + (HEALTHY if path == "/healthz" else b""))
        for _ in range(10_000 if path == "/" else 0):
            await write(bytes(MAX_ANSWER_BYTES))

    found = await seen(answer)
    assert found.failure is None


async def test_a_marker_behind_the_limit_does_not_count() -> None:
    found = await seen(fixed(ok(b" " * MAX_ANSWER_BYTES + HEALTHY)))
    assert found.failure == "/healthz carries no build marker"


async def test_nothing_is_unpacked() -> None:
    bomb = gzip.compress(HEALTHY[:-1] + b" " * 50_000_000 + b"}")
    assert len(bomb) < MAX_ANSWER_BYTES
    found = await seen(fixed(ok(bomb, "Content-Encoding: gzip")))
    assert found.failure == "/healthz carries no build marker"


async def test_json_nested_beyond_all_measure_is_no_marker() -> None:
    for body in (b"[" * 60_000, b'{"build":' * 6_000, b"9" * 60_000, b"\xff" * 100):
        found = await seen(fixed(ok(body)))
        assert found.failure == "/healthz carries no build marker"


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
async def test_no_redirect_is_followed(status: str) -> None:
    visited = []

    async def elsewhere(path: str, write: Write) -> None:
        visited.append(path)

    async with app(elsewhere) as other:
        answer = f"HTTP/1.1 {status} Go\r\nLocation: {other}/\r\nContent-Length: 0\r\n\r\n"
        found = await seen(fixed(answer.encode()))
    assert (found.failure, visited) == (f"/healthz answered {status}", [])


async def test_an_answer_that_drips_ends_in_time(impatient: None) -> None:
    async def answer(path: str, write: Write) -> None:
        await write(b"HTTP/1.1 200 OK\r\nA: ")
        while True:
            await write(b"a")
            await asyncio.sleep(0.01)

    found = await seen(answer)
    assert found.failure is not None
    assert "within 0.2 s" in found.failure


async def test_an_answer_that_never_comes_ends_in_time(impatient: None) -> None:
    async def answer(path: str, write: Write) -> None:
        await asyncio.sleep(10)

    found = await seen(answer)
    assert found.failure is not None


@pytest.mark.parametrize(
    "flood",
    [b"X-%d: a\r\n" % 1 * 100_000, b"X: " + b"a" * 1_000_000, b"Set-Cookie: a=b; x\r\n" * 50_000],
    ids=["many", "long", "cookies"],
)
async def test_a_flood_of_headers_is_refused(flood: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + flood
    found = await seen(fixed(head + b"\r\n\r\n" + HEALTHY))
    assert found.failure is not None
    assert "does not answer" in found.failure


async def test_a_flood_of_interim_answers_ends_in_time(impatient: None) -> None:
    async def answer(path: str, write: Write) -> None:
        while True:
            await write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    found = await seen(answer)
    assert found.failure is not None
    assert "within 0.2 s" in found.failure


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 1000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    ],
    ids=[
        *("nothing", "zeros", "another protocol", "another version", "a negative length"),
        *("an impossible chunk", "an upgrade", "less than announced"),
    ],
)
async def test_what_is_no_answer_is_a_failure(answer: bytes) -> None:
    found = await seen(fixed(answer))
    assert found.failure is not None
