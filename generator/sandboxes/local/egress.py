"""The one way out of a sandbox: to hosts that the user has named, while an install command runs.

An HTTP proxy (RFC 9110, 7.3.2 and 9.3.6) in the supervisor, outside the sandbox. It resolves names
itself and connects to the very address it has checked, so that no answer of a name server leads
into a network of the host. Who else is served at such an address can be reached too: of TLS it sees
no more than that.

Only the standard library: it runs in the supervisor, which imports it when it is first needed.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from .inside.frames import CHUNK_BYTES
from .inside.relay import Peer, bounded, peer

PORTS = (80, 443)
HEAD_S = 10.0
RESOLVE_S = 10.0
CONNECT_S = 10.0
CONNECTION_S = 600.0
MAX_AT_ONCE = 32
MAX_CONNECTIONS = 4000
MAX_BYTES = 2 * 1024**3
"""Both ways together, of one install command."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_CONNECT = re.compile(r"(?P<host>[^:/@\s]+):(?P<port>[0-9]{1,5})")
_ABSOLUTE = re.compile(
    r"http://(?P<host>[^:/@?#\s]+)(:(?P<port>[0-9]{1,5}))?(?P<rest>[/?][^\s#]*)?"
)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[^\r\n\0]*")
_OURS = {b"host", b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization"}

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Refused(Exception):
    """A connection that is not made; the text says why, to the one who installs."""


def is_public(address: str) -> bool:
    """Whether an address leads into the internet, and by no detour to somewhere else."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        within = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            within = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if within:
            return is_public(str(within))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Egress:
    """What one install command may reach. `tell` gets a line for each connection."""

    def __init__(
        self,
        hosts: Collection[str],
        tell: Callable[[str], None],
        *,
        resolve: Resolve = resolve,
        allows: Callable[[str], bool] = is_public,
        ports: Collection[int] = PORTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._tell = tell
        self._resolve = resolve
        self._allows = allows
        self._ports = ports
        self._max_bytes = max_bytes
        self._bytes = 0
        self._made = 0
        self._left = MAX_CONNECTIONS
        self._open: set[asyncio.Task[None]] = set()

    def serve(self, inside: socket.socket) -> bool:
        """Serve one connection from inside; False when there have been too many altogether."""
        self._left -= 1
        if len(self._open) >= MAX_AT_ONCE or self._left < 0:
            inside.close()
            return self._left > 0
        task = asyncio.get_running_loop().create_task(self._serve(inside))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return True

    def close(self) -> None:
        """Cut every connection, and tell what there was. Idempotent."""
        for task in self._open:
            task.cancel()
        if self._made:
            self._tell(f"{self._made} connections, {self._bytes} bytes")
        self._left = self._made = 0

    async def _serve(self, sock: socket.socket) -> None:
        inside = await peer(sock)
        place = "what is no request of a proxy"
        try:
            async with asyncio.timeout(HEAD_S):
                host, port, first = _asked(await _head(inside[0]))
            place = f"{host}:{port}"
            outside = await self._connect(host, port)
            self._made += 1
            self._tell(place)
            try:
                if first:
                    outside[1].write(first)
                else:
                    inside[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                async with asyncio.timeout(CONNECTION_S):
                    await asyncio.gather(
                        self._pour(inside[0], outside[1]), self._pour(outside[0], inside[1])
                    )
            finally:
                outside[1].close()
        except (Refused, TimeoutError) as refusal:
            reason = str(refusal) or "it took too long"
            self._tell(f"{place} refused: {reason}")
            with suppress(OSError):
                inside[1].write(_refusal(reason))
        except OSError:
            pass  # either side hung up
        finally:
            inside[1].close()

    async def _connect(self, host: str, port: int) -> Peer:
        if host not in self._hosts:
            raise Refused("the host is not in HEADRACE_INSTALL_HOSTS")
        if port not in self._ports:
            raise Refused(f"only ports {' and '.join(map(str, self._ports))} can be reached")
        try:
            async with asyncio.timeout(RESOLVE_S):
                addresses = await self._resolve(host, port)
        except OSError as error:
            raise Refused(f"its name cannot be resolved: {error}") from error
        # One that is not public among them is a mistake or an attack; neither is worth a choice.
        if not addresses or not all(map(self._allows, addresses)):
            raise Refused(f"its address is not a public one: {', '.join(addresses[:4])}")
        try:
            async with asyncio.timeout(CONNECT_S):
                for address in addresses[:-1]:
                    with suppress(OSError):
                        return await _stream(address, port)
                return await _stream(addresses[-1], port)
        except OSError as error:
            raise Refused(f"it cannot be reached: {error}") from error

    async def _pour(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK_BYTES):
            self._bytes += len(data)
            if self._bytes > self._max_bytes:
                raise Refused("the install has carried as much as it may")
            sink.write(data)
            await sink.drain()
        sink.write_eof()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refused("its head is too long") from None
    except asyncio.IncompleteReadError:
        raise Refused("it ended in the middle of its head") from None


def _asked(head: bytes) -> tuple[str, int, bytes]:
    """Host, port, and what to say to it first: nothing for CONNECT."""
    line, *fields = head[:-4].split(b"\r\n")
    try:
        method, target, version = line.decode("ascii").split(" ")
    except ValueError:
        raise Refused("it is no request") from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused("it is not HTTP/1.1")
    if not all(map(_FIELD.fullmatch, fields)):
        raise Refused("its fields are malformed")
    found = (_CONNECT if method == "CONNECT" else _ABSOLUTE).fullmatch(target)
    host = found["host"].lower().removesuffix(".") if found else ""
    if not found or not _HOST.fullmatch(host):
        raise Refused("its target is neither host:port nor http://host/…")
    port = int(found["port"] or 80)
    if method == "CONNECT":
        return host, port, b""
    path = found["rest"] or "/"
    path = path if path.startswith("/") else f"/{path}"
    kept = [field for field in fields if field.partition(b":")[0].lower() not in _OURS]
    # One request for each connection, which ends with the answer.
    ours = [f"{method} {path} HTTP/1.1".encode(), f"Host: {host}".encode(), b"Connection: close"]
    return host, port, b"\r\n".join([*ours, *kept]) + b"\r\n\r\n"


async def _stream(address: str, port: int) -> Peer:
    return bounded(*await asyncio.open_connection(address, port, limit=CHUNK_BYTES))


def _refusal(reason: str) -> bytes:
    body = f"headrace: {reason}\n".encode()
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n".encode() + body
