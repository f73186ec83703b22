"""The way out of a sandbox: only the hosts that were named, at addresses that were checked."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from generator.sandbox import Stream
from generator.sandboxes.local import LocalRuntime, launch
from generator.sandboxes.local.egress import MAX_AT_ONCE, MAX_CONNECTIONS, Egress, is_public
from generator.sandboxes.local.sandbox import LocalSandbox
from tests.generator.local.probes import SMALL, python

pytestmark = pytest.mark.anyio


@dataclass
class Host:
    """A server on loopback that keeps what it is told, and answers each connection once."""

    port: int = 0
    heard: list[bytes] = field(default_factory=list)
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@asynccontextmanager
async def serving(host: Host) -> AsyncIterator[Host]:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host.heard.append(await reader.read(65536))
        writer.write(host.answer)
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    yield host
    server.close()


@dataclass
class Door:
    """An egress to one host, named `files.test`, and what it tells."""

    egress: Egress
    lines: list[str]

    async def ask(self, request: bytes) -> bytes:
        ours, theirs = socket.socketpair()
        assert self.egress.serve(theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        with anyio.fail_after(10):
            writer.write(request)
            answer = await reader.read()
        writer.close()
        return answer


def door_to(
    host: Host, *, addresses: tuple[str, ...] = ("127.0.0.1",), max_bytes: int = 100_000
) -> Door:
    async def resolve(name: str, port: int) -> list[str]:
        assert name == "files.test"
        return list(addresses)

    lines: list[str] = []
    egress = Egress(
        ["files.test"],
        lines.append,
        resolve=resolve,
        allows=lambda address: address == "127.0.0.1",
        ports=(host.port,),
        max_bytes=max_bytes,
    )
    return Door(egress, lines)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with serving(Host()) as made:
        yield made


async def test_a_host_that_was_named_is_reached_through_a_tunnel(host: Host) -> None:
    door = door_to(host)
    request = f"CONNECT files.test:{host.port} HTTP/1.1\r\nHost: files.test\r\n\r\n\x16\x03\x01"
    answer = await door.ask(request.encode())
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\n" + host.answer
    assert host.heard == [b"\x16\x03\x01"]
    door.egress.close()
    assert door.lines == [
        f"files.test:{host.port}",
        f"1 connections, {len(host.answer) + 3} bytes",
    ]


async def test_a_plain_request_is_passed_on_for_that_host_and_for_one_answer(host: Host) -> None:
    door = door_to(host)
    request = (
        f"GET http://Files.test.:{host.port}/a?b=c HTTP/1.1\r\nHost: other.test\r\n"
        "Proxy-Authorization: Basic eA==\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n"
    )
    assert await door.ask(request.encode()) == host.answer
    assert host.heard == [
        b"GET /a?b=c HTTP/1.1\r\nHost: files.test\r\nConnection: close\r\nAccept: */*\r\n\r\n"
    ]


@pytest.mark.parametrize(
    ("request_line", "reason"),
    [
        ("CONNECT evil.test:{port} HTTP/1.1", "not in HEADRACE_INSTALL_HOSTS"),
        ("CONNECT files.test.evil.test:{port} HTTP/1.1", "not in HEADRACE_INSTALL_HOSTS"),
        ("CONNECT xfiles.test:{port} HTTP/1.1", "not in HEADRACE_INSTALL_HOSTS"),
        ("CONNECT 127.0.0.1:{port} HTTP/1.1", "not in HEADRACE_INSTALL_HOSTS"),
        ("CONNECT files.test:22 HTTP/1.1", "only ports"),
        ("CONNECT files.test HTTP/1.1", "neither"),
        ("CONNECT [::1]:{port} HTTP/1.1", "neither"),
        ("CONNECT me@files.test:{port} HTTP/1.1", "neither"),
        ("GET http://files.test@evil.test:{port}/ HTTP/1.1", "neither"),
        ("GET http://evil.test#@files.test:{port}/ HTTP/1.1", "neither"),
        ("GET http://evil.test:{port}/http://files.test/ HTTP/1.1", "not in"),
        ("GET https://files.test:{port}/ HTTP/1.1", "neither"),
        ("GET ftp://files.test:{port}/ HTTP/1.1", "neither"),
        ("GET /local HTTP/1.1", "neither"),
        ("GET http://files.test:{port}/ HTTP/1.1\r\nA: b\nHost: evil.test", "malformed"),
        ("GET http://files.test:{port}/ HTTP/1.1\r\n folded: field", "malformed"),
        ("GET http://files.test:{port}/\thttp HTTP/1.1", "neither"),
        ("PRI * HTTP/2.0", "HTTP/1.1"),
        ("\x16\x03\x01", "no request"),
        ("GET http://files.test:{port}/ HTTP/1.1\r\nA: " + "a" * 100_000, "too long"),
    ],
)
async def test_every_other_request_is_refused_and_says_why(
    host: Host, request_line: str, reason: str
) -> None:
    door = door_to(host)
    answer = await door.ask(request_line.replace("{port}", str(host.port)).encode() + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert host.heard == []
    (line,) = door.lines
    assert reason in line
    assert reason.encode() in answer


@pytest.mark.parametrize(
    "addresses", [("10.0.0.1",), ("127.0.0.1", "10.0.0.1"), ()], ids=["private", "mixed", "none"]
)
async def test_a_name_that_leads_to_an_address_of_no_public_kind_is_refused(
    host: Host, addresses: tuple[str, ...]
) -> None:
    door = door_to(host, addresses=addresses)
    answer = await door.ask(f"CONNECT files.test:{host.port} HTTP/1.1\r\n\r\n".encode())
    assert b"not a public one" in answer
    assert host.heard == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00::1"),
        *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
        *("2002:7f00:1::", "2002:a00:1::", "2001:0:53aa:64c:0:0:80ff:fffe", "2001:db8::1"),
    ],
)
def test_an_address_of_this_machine_or_its_networks_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "151.101.0.223", "2606:4700::6810:1", "64:ff9b::101:101"]
)
def test_an_address_in_the_internet_is_public(address: str) -> None:
    assert is_public(address)


async def test_an_install_carries_no_more_than_it_may(host: Host) -> None:
    host.answer = bytes(300_000)
    door = door_to(host, max_bytes=100_000)
    answer = await door.ask(f"CONNECT files.test:{host.port} HTTP/1.1\r\n\r\nx".encode())
    assert len(answer) < 150_000
    assert any("as much as it may" in line for line in door.lines)


async def test_connections_are_counted_at_once_and_altogether(host: Host) -> None:
    door = door_to(host)
    silent = [socket.socketpair() for _ in range(MAX_AT_ONCE + 1)]
    assert all(door.egress.serve(theirs) for _, theirs in silent)
    assert silent[-1][0].recv(1) == b""
    for number in range(MAX_CONNECTIONS - len(silent) - 1):
        ours, theirs = socket.socketpair()
        ours.close()
        assert door.egress.serve(theirs), number
    last = socket.socketpair()
    assert not door.egress.serve(last[1])
    door.egress.close()
    for ours, _ in silent:
        ours.close()
    last[0].close()


# Through a whole sandbox


@pytest.fixture
async def installer(
    state_dir: Path,
    run_dir: Path,
    isolation_is_possible: None,
    host: Host,
) -> AsyncIterator[LocalSandbox]:
    """One whose supervisor takes `files.test` for the host on loopback, and that for public."""
    boot = launch.BOOT.replace(
        "main()\n",
        f"""
async def resolve(name, port):
    return ["127.0.0.1"]
from local import egress
egress.Egress.__init__.__kwdefaults__.update(
    resolve=resolve, allows=lambda address: True, ports=({host.port},)
)
main()
""",
    )
    command = [boot if part == launch.BOOT else part for part in launch.NURSERY]
    with closing(launch.Nursery(command)) as nursery:
        made = LocalRuntime(
            state_dir, run_dir, SMALL, install_hosts=["files.test"], nursery=nursery
        )
        sandbox = await made.create(metadata={}, timeout_s=60)
        yield sandbox
        await made.kill(sandbox.sandbox_id)


FETCH = """
import sys, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
except OSError as error:
    print("refused", getattr(error, "code", ""))
"""


async def test_an_install_reaches_a_host_that_was_named_and_no_other(
    installer: LocalSandbox, host: Host
) -> None:
    told = ""

    async def on_output(stream: Stream, text: str) -> None:
        nonlocal told
        told += text

    await installer.write_files({"fetch.py": FETCH.encode()})
    url = f"http://files.test:{host.port}/a"
    result = await installer.run(
        f"python3 -S fetch.py {url}; python3 -S fetch.py http://evil.test/",
        timeout_s=20,
        installs=True,
        on_output=on_output,
    )
    assert sorted(result.output.splitlines()) == sorted(told.splitlines())
    assert sorted(told.splitlines()) == sorted(
        [
            "hello",
            "refused 403",
            f"network: files.test:{host.port}",
            "network: evil.test:80 refused: the host is not in HEADRACE_INSTALL_HOSTS",
            told.splitlines()[-1],
        ]
    )
    assert told.splitlines()[-1].startswith("network: 1 connections, ")


async def test_a_command_that_installs_nothing_reaches_nothing(
    installer: LocalSandbox, host: Host
) -> None:
    shown = await installer.run("env; cat /proc/net/tcp", timeout_s=10)
    assert "PROXY" not in shown.output.upper()
    assert "refused" in await python(
        installer, FETCH.replace("sys.argv[1]", f"'http://files.test:{host.port}/'")
    )
    assert host.heard == []


async def test_what_an_install_leaves_behind_is_cut_off_with_its_end(
    installer: LocalSandbox, host: Host
) -> None:
    leaver = f"""
import os, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["http_proxy"])
held = socket.create_connection((proxy.hostname, proxy.port))
held.sendall(b"CONNECT files.test:{host.port} HTTP/1.1\\r\\n\\r\\n")
held.recv(100)
left, leaving = os.pipe()
if os.fork():
    os.read(left, 1)  # before it has left, it would end with this command
    os._exit(0)
os.setsid()
os.write(leaving, b"x")
with open("left", "w") as said:
    try:
        print("ended" if held.recv(1) == b"" else "heard", file=said)
        socket.create_connection((proxy.hostname, proxy.port), timeout=5)
        print("open", file=said)
    except OSError:
        print("closed", file=said)
"""
    await installer.write_files({"leave.py": leaver.encode()})
    await installer.run("mkfifo left", timeout_s=10)
    await installer.run(
        "python3 -S leave.py >/dev/null 2>&1 </dev/null", timeout_s=20, installs=True
    )
    assert (await installer.run("cat left", timeout_s=20)).output.split()[-1] == "closed"


async def test_hundreds_of_connections_that_ask_nonsense_change_nothing(
    installer: LocalSandbox, host: Host
) -> None:
    flood = """
import os, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["http_proxy"])
for _ in range(300):
    with socket.create_connection((proxy.hostname, proxy.port)) as sock:
        sock.sendall(b"x\\r\\n\\r\\n")
print("sent")
"""
    await installer.write_files({"flood.py": flood.encode()})
    result = await installer.run("python3 -S flood.py", timeout_s=30, installs=True)
    assert "sent" in result.output
    assert (await installer.run("echo alive", timeout_s=10)).output == "alive\n"
    assert host.heard == []
