"""What our client sends to E2B and the loopback server answers, byte for byte.

Client and server of the other tests both stand on the SDK's own message code, and could share a
mistake. Here one side is always written by hand, from the protocols themselves: HTTP/1.1, the
streams of Connect (https://connectrpc.com/docs/protocol), multipart (RFC 7578).
"""

import base64
import json
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import SocketStream

from generator.sandboxes.e2b import E2BRuntime
from tests.e2b_server import E2BServer

pytestmark = pytest.mark.anyio

END_OF_STREAM = 2
"""The flag of the last message of a Connect stream."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def frame(flags: int, message: object) -> bytes:
    """A message of a Connect stream: one byte of flags, four of length, JSON."""
    data = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(data)) + data


def frames(body: bytes) -> list[tuple[int, Any]]:
    """The messages of a Connect stream, with their flags."""
    found = []
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        assert len(body) >= 5 + length, "a message was cut"
        found.append((flags, json.loads(body[5 : 5 + length])))
        body = body[5 + length :]
    return found


# --- HTTP/1.1 by hand ----------------------------------------------------------------------------


async def read_message(stream: SocketStream) -> tuple[str, dict[str, str], bytes]:
    """First line, headers and body of one HTTP/1.1 message, framed by length or in chunks."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, data = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    headers = {name.lower(): value.strip() for name, value in pairs}
    if headers.get("transfer-encoding") == "chunked":
        return first, headers, await _chunks(stream, data)
    length = int(headers.get("content-length", 0))
    while len(data) < length:
        data += await stream.receive()
    return first, headers, data


async def _chunks(stream: SocketStream, data: bytes) -> bytes:
    body = b""
    while True:
        while b"\r\n" not in data:
            data += await stream.receive()
        size_text, _, data = data.partition(b"\r\n")
        size = int(size_text, 16)
        while len(data) < size + 2:
            data += await stream.receive()
        body, data = body + data[:size], data[size + 2 :]
        if size == 0:
            return body


async def send(server: E2BServer, head: list[str], body: bytes) -> Answer:
    """What the loopback server answers to these very bytes."""
    where = urlsplit(server.url)
    lines = [*head, "Host: loopback", "Connection: close", f"Content-Length: {len(body)}"]
    assert where.hostname
    assert where.port
    with anyio.fail_after(20):
        async with await anyio.connect_tcp(where.hostname, where.port) as stream:
            await stream.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            first, headers, content = await read_message(stream)
    return Answer(int(first.split()[1]), headers, content)


@asynccontextmanager
async def listening(answer: Callable[[Request], bytes]) -> AsyncIterator[tuple[str, list[Request]]]:
    """A server by hand: it answers with the bytes that `answer` gives, and keeps the requests."""
    seen: list[Request] = []

    async def serve(stream: SocketStream) -> None:
        async with stream:
            try:
                while True:
                    first, headers, body = await read_message(stream)
                    method, target, _ = first.split(" ")
                    seen.append(Request(method, target, headers, body))
                    await stream.send(answer(seen[-1]))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django's
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield f"http://127.0.0.1:{port}", seen
            tasks.cancel_scope.cancel()


def response(body: bytes, *, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


# --- our server, a client by hand ----------------------------------------------------------------


async def headers_of(server: E2BServer) -> tuple[str, list[str]]:
    """A sandbox, and the headers that lead into it."""
    runtime = E2BRuntime(server.api_key, **server.settings)
    sandbox = await runtime.create(metadata={}, timeout_s=60)
    token = server.living[sandbox.sandbox_id].access_token
    return sandbox.sandbox_id, [
        f"E2b-Sandbox-Id: {sandbox.sandbox_id}",
        "E2b-Sandbox-Port: 49983",
        f"X-Access-Token: {token}",
    ]


async def test_the_server_starts_a_process_that_was_asked_for_in_a_frame_by_hand(
    e2b_server: E2BServer,
) -> None:
    _, headers = await headers_of(e2b_server)
    order = {
        "process": {
            "cmd": "/bin/sh",
            "args": ["-c", 'printf "out $WORD"; printf err >&2; exit 3'],
            "envs": {"WORD": "ünï"},
        }
    }
    answer = await send(
        e2b_server,
        [
            "POST /process.Process/Start HTTP/1.1",
            "Content-Type: application/connect+json",
            "Connect-Protocol-Version: 1",
            *headers,
        ],
        frame(0, order),
    )
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/connect+json"
    *messages, last = frames(answer.body)
    assert {flags for flags, _ in messages} == {0}
    assert last == (END_OF_STREAM, {})
    events = [message["event"] for _, message in messages]
    assert isinstance(events[0]["start"]["pid"], int)
    said = {"stdout": b"", "stderr": b""}
    for event in events[1:-1]:
        for name, text in event["data"].items():
            said[name] += base64.b64decode(text)
    assert said == {"stdout": "out ünï".encode(), "stderr": b"err"}
    assert events[-1]["end"]["exitCode"] == 3
    assert events[-1]["end"]["exited"] is True


async def test_the_server_refuses_a_process_in_the_words_of_connect(e2b_server: E2BServer) -> None:
    _, headers = await headers_of(e2b_server)
    answer = await send(
        e2b_server,
        [
            "POST /process.Process/Start HTTP/1.1",
            "Content-Type: application/connect+json",
            *headers,
        ],
        frame(0, {"process": {"cmd": "/no/such/program"}}),
    )
    (last,) = frames(answer.body)
    assert last[0] == END_OF_STREAM
    assert last[1]["error"]["code"] == "invalid_argument"


async def test_the_server_takes_files_in_a_multipart_body_by_hand(e2b_server: E2BServer) -> None:
    sandbox_id, headers = await headers_of(e2b_server)
    contents = {
        "/home/user/project/a.bin": bytes(range(256)) + b"\r\n--not-the-boundary\r\n",
        "/home/user/project/deep/b.txt": "grün".encode(),
    }
    body = b""
    for path, content in contents.items():
        body += b'--XyZ\r\nContent-Disposition: form-data; name="file"; filename="'
        body += path.encode() + b'"\r\nContent-Type: application/octet-stream\r\n\r\n'
        body += content + b"\r\n"
    answer = await send(
        e2b_server,
        [
            "POST /files HTTP/1.1",
            "Content-Type: multipart/form-data; boundary=XyZ",
            *headers,
        ],
        body + b"--XyZ--\r\n",
    )
    assert answer.status == 200
    written = [entry["path"] for entry in json.loads(answer.body)]
    assert written == list(contents)
    runtime = E2BRuntime(e2b_server.api_key, **e2b_server.settings)
    sandbox = await runtime.connect(sandbox_id)
    for path, content in contents.items():
        assert await sandbox.read_file(path.removeprefix("/home/user/project/")) == content


async def test_the_server_makes_a_sandbox_from_plain_json(e2b_server: E2BServer) -> None:
    order = {"templateID": "base", "timeout": 60, "metadata": {"job": "j1"}}
    head = [
        "POST /v2/sandboxes HTTP/1.1",
        "Content-Type: application/json",
        f"X-API-KEY: {e2b_server.api_key}",
        "Idempotency-Key: once",
    ]
    answers = [await send(e2b_server, head, json.dumps(order).encode()) for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 201]
    made = {json.loads(answer.body)["sandboxID"] for answer in answers}
    assert made == set(e2b_server.living)


# --- our client, a server by hand ----------------------------------------------------------------

SANDBOX = {
    "templateID": "base",
    "sandboxID": "sb-by-hand",
    "clientID": "c",
    "envdVersion": "0.6.4",
    "envdAccessToken": "token-by-hand",
}


def by_hand(request: Request) -> bytes:
    """The answers of an E2B that knows one sandbox, in which every command says hello."""
    match request.method, urlsplit(request.target).path:
        case "POST", "/v2/sandboxes":
            return response(json.dumps(SANDBOX).encode(), status="201 Created")
        case "POST", "/files":
            entry = {"name": "a.bin", "type": "file", "path": "/home/user/project/a.bin"}
            return response(json.dumps([entry]).encode())
        case "POST", "/process.Process/Start":
            hello = {"data": {"stdout": base64.b64encode("grüße\n".encode()).decode()}}
            end = {"end": {"exitCode": 4, "exited": True, "status": "exit status 4"}}
            stream = b"".join(
                frame(0, {"event": event}) for event in ({"start": {"pid": 7}}, hello, end)
            )
            return response(stream + frame(END_OF_STREAM, {}), kind="application/connect+json")
    return response(b'{"code": 404, "message": "no such route"}', status="404 Not Found")


async def test_the_client_starts_a_process_as_connect_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    async with listening(by_hand) as (url, seen):
        runtime = E2BRuntime("e2b_by_hand", api_url=url, sandbox_url=url)
        sandbox = await runtime.create(metadata={"job": "j1"}, timeout_s=77)
        result = await sandbox.run("echo grüße", timeout_s=10, env={"WORD": "ünï"})
    assert (result.exit_code, result.output) == (4, "grüße\n")
    create, start = seen[0], next(one for one in seen if one.target.endswith("/Start"))
    assert create.headers["x-api-key"] == "e2b_by_hand"
    assert create.headers["idempotency-key"]
    made = json.loads(create.body)
    assert (made["templateID"], made["timeout"], made["metadata"]) == ("base", 77, {"job": "j1"})
    assert start.method == "POST"
    assert start.headers["content-type"] == "application/connect+json"
    assert start.headers["e2b-sandbox-id"] == "sb-by-hand"
    assert start.headers["x-access-token"] == "token-by-hand"
    ((flags, order),) = frames(start.body)
    assert flags == 0
    assert order["process"]["cmd"] == "/bin/bash"
    assert order["process"]["args"][:2] == ["-l", "-c"]
    assert order["process"]["envs"]["WORD"] == "ünï"


async def test_the_client_uploads_files_as_a_multipart_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    contents = {"a.bin": bytes(range(256)), "deep/grün.txt": b"\r\n--\r\n"}
    async with listening(by_hand) as (url, seen):
        runtime = E2BRuntime("e2b_by_hand", api_url=url, sandbox_url=url)
        sandbox = await runtime.create(metadata={}, timeout_s=60)
        await sandbox.write_files(contents)
    upload = next(one for one in seen if urlsplit(one.target).path == "/files")
    kind, _, parameters = upload.headers["content-type"].partition(";")
    assert kind == "multipart/form-data"
    boundary = parameters.partition("boundary=")[2].encode()
    first, *parts, last = (b"\r\n" + upload.body).split(b"\r\n--" + boundary)
    assert (first, last) == (b"", b"--\r\n")
    received = {}
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        (name,) = re.findall(rb'filename="([^"]*)"', head)
        received[name.decode()] = content
    assert received == {f"/home/user/project/{path}": data for path, data in contents.items()}
