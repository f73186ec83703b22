"""Whatever an app tries, it stays in its sandbox, and the next build is as if it had not been.

`HEADRACE_SANDBOXES=1000 ./headrace test tests/generator/local/test_escapes.py` is the long variant.
"""

import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import anyio
import pytest

from generator.errors import CommandTimeout
from generator.probe import probe
from generator.sandbox import OUTPUT_TAIL_BYTES, PREVIEW_PORT
from generator.sandboxes.local import LocalRuntime, registry
from generator.sandboxes.local.sandbox import LocalSandbox
from tests.generator.local.attempts import ATTEMPTS, PRELUDE, Attempt
from tests.generator.local.probes import (
    SMALL,
    all_ended,
    browser,
    info_of,
    names_in,
    output,
    processes_of,
    python,
    remains,
    serve,
)

pytestmark = pytest.mark.anyio

WEB = f"""
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answer = ANSWER
        self.send_response(STATUS)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *_):
        pass
server = HTTPServer(("127.0.0.1", {PREVIEW_PORT}), Handler)
print("listening", flush=True)
server.serve_forever()
"""


def web(answer: bytes, status: int = 200, **headers: str) -> str:
    return f"ANSWER, STATUS, HEADERS = {answer!r}, {status}, {headers!r}\n{WEB}"


def app_of(marker: str) -> str:
    return web(b'{"build": "%s"}' % marker.encode())


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    made = Path(mkdtemp(prefix="hr-"))
    yield made
    rmtree(made)


@pytest.fixture(scope="module")
async def sandboxes(home: Path, isolation_is_possible: None) -> AsyncIterator[LocalRuntime]:
    made = LocalRuntime(home / "state", home / "run", SMALL)
    yield made
    for info in await made.list({}):
        await made.kill(info.sandbox_id)


@pytest.fixture(scope="module")
async def neighbour(sandboxes: LocalRuntime) -> LocalSandbox:
    """Another build's sandbox, whose app serves its page all the time."""
    made = await sandboxes.create(metadata={}, timeout_s=300)
    await serve(made, app_of("the-neighbour"))
    return made


@pytest.fixture(scope="module")
async def prison(sandboxes: LocalRuntime, neighbour: LocalSandbox) -> LocalSandbox:
    """The sandbox that most attempts share: none of them may end it."""
    return await sandboxes.create(metadata={}, timeout_s=300)


@pytest.fixture(autouse=True)
async def unaffected(neighbour: LocalSandbox) -> AsyncIterator[None]:
    """After each attempt the neighbour serves as before."""
    yield
    found = await probe(neighbour.preview_url(PREVIEW_PORT), "the-neighbour", timeout_s=10)
    assert found.failure is None


async def swept(prison: LocalSandbox) -> None:
    """End what an attempt has left, which is every process but the agent."""
    await prison.run("kill -9 -1", timeout_s=10)
    assert await output(prison, "cd ..; rm -rf project/* /tmp/*; echo alive") == "alive"


async def test_there_are_at_least_forty_attempts() -> None:
    names = [attempt.name for attempt in ATTEMPTS]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[attempt.name for attempt in ATTEMPTS])
async def test_an_attempt_is_contained(prison: LocalSandbox, attempt: Attempt) -> None:
    assert await python(prison, PRELUDE + attempt.code) == attempt.contained
    assert await output(prison, "echo alive") == "alive"


# To others


async def test_no_socket_of_the_host_or_of_a_neighbour_can_be_reached(
    prison: LocalSandbox, neighbour: LocalSandbox, home: Path
) -> None:
    abstract = f"\0headrace-{secrets.token_hex(8)}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as newer,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as named,
    ):
        unix.bind(abstract)
        unix.listen()
        path = str(home / "redis.sock")
        named.bind(path)
        named.listen()
        preview = int(neighbour.preview_url(PREVIEW_PORT).rpartition(":")[2])
        control = info_of(home / "state", neighbour)["socket"]
        assert os.stat(control)
        tries = f"""
places = [("127.0.0.1", {tcp.getsockname()[1]}), ("::1", {newer.getsockname()[1]}),
          ("127.0.0.1", {preview}), ("127.0.0.1", {PREVIEW_PORT}), ("169.254.169.254", 80),
          ("10.0.2.2", 80), {abstract!r}, {path!r}, {control!r}]
def reach(place):
    kind = socket.AF_UNIX if isinstance(place, str) else (
        socket.AF_INET6 if ":" in place[0] else socket.AF_INET)
    with socket.socket(kind) as sock:
        sock.settimeout(5)
        sock.connect(place)
print(sorted({{attempt(reach, place) for place in places}}))
"""
        reached = await python(prison, PRELUDE + tries)
        assert "DONE" not in reached
        assert set(reached.strip("[]").replace("'", "").split(", ")) <= {
            "ECONNREFUSED",
            "ENETUNREACH",
            "EADDRNOTAVAIL",
            "ENOENT",
        }
        for listener in (tcp, newer, unix, named):
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()
        named.close()
        os.unlink(path)


async def test_a_link_out_of_the_workspace_is_written_and_read_inside_only(
    prison: LocalSandbox, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    await prison.run(
        f"ln -s {victim} out; ln -s {tmp_path} folder; ln -s /proc/self/environ environ",
        timeout_s=10,
    )
    await prison.write_files({"out": b"theirs"})
    with pytest.raises(Exception, match="folder"):
        await prison.write_files({"folder/victim": b"theirs"})
    with pytest.raises(FileNotFoundError):
        await prison.read_file("environ")
    assert victim.read_bytes() == b"mine"
    await swept(prison)


# More than its share


async def test_a_fork_bomb_ends_with_its_command(prison: LocalSandbox) -> None:
    with suppress(CommandTimeout):
        await prison.run("b() { b | b & b; }; b", timeout_s=0.5)
    await swept(prison)


async def test_a_fork_bomb_that_leaves_its_group_is_bounded_and_ends_with_its_sandbox(
    sandboxes: LocalRuntime, home: Path
) -> None:
    sandbox = await sandboxes.create(metadata={}, timeout_s=60)
    bomb = "while setsid --fork sleep 1000 >/dev/null 2>&1; do :; done; echo full"
    assert (await sandbox.run(bomb, timeout_s=20)).output == "full\n"
    alive = processes_of(info_of(home / "state", sandbox))
    assert 10 < len(alive) <= SMALL.processes + 2  # bubblewrap and the supervisor
    assert await sandboxes.kill(sandbox.sandbox_id)
    await all_ended(alive)


async def test_all_memory_is_the_sandboxs_own(prison: LocalSandbox) -> None:
    result = await prison.run("python3 -S -c 'b\"x\" * (900 << 20)'", timeout_s=20)
    assert result.exit_code in (1, 137)
    await swept(prison)


async def test_a_flood_of_output_is_cut_to_its_tail(prison: LocalSandbox) -> None:
    with pytest.raises(CommandTimeout) as caught:
        await prison.run("yes flood & yes flood >&2", timeout_s=0.5)
    assert len(caught.value.output.encode()) <= OUTPUT_TAIL_BYTES
    await swept(prison)


async def test_a_log_without_end_fills_the_sandbox_and_not_the_host(prison: LocalSandbox) -> None:
    await prison.start("yes flood", log_path="flood.log")
    with anyio.fail_after(20):
        while int(await output(prison, "stat -c %s flood.log")) < SMALL.disk_bytes // 2:
            pass
    await prison.run("kill -9 -1", timeout_s=10)
    assert int(await output(prison, "stat -c %s flood.log")) <= SMALL.disk_bytes
    await swept(prison)


@pytest.mark.parametrize(
    "command",
    [
        "sleep 1000",
        "trap '' TERM INT HUP; while :; do :; done",
        "exec python3 -S -c 'import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile 1: 0'",
        "kill -STOP $$",
    ],
    ids=["never ending", "ignoring SIGTERM", "blocking all signals", "stopped"],
)
async def test_a_command_that_does_not_end_is_ended(prison: LocalSandbox, command: str) -> None:
    with pytest.raises(CommandTimeout):
        await prison.run(command, timeout_s=0.2)
    await swept(prison)


async def test_a_daemon_ends_with_its_sandbox(sandboxes: LocalRuntime, home: Path) -> None:
    sandbox = await sandboxes.create(metadata={}, timeout_s=60)
    daemon = """
import os
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
open("born", "w").close()
while True:
    time.sleep(1000)
"""
    await sandbox.write_files({"daemon.py": daemon.encode()})
    born = "python3 -S daemon.py >/dev/null 2>&1; until [ -e born ]; do :; done"
    assert (await sandbox.run(born, timeout_s=20)).exit_code == 0
    info = info_of(home / "state", sandbox)
    processes = processes_of(info)
    assert len(processes) >= 4
    assert await sandboxes.kill(sandbox.sandbox_id)
    await all_ended(processes)
    left = remains(home / "state", home / "run", info)
    assert not any(sandbox.sandbox_id in name for name in left)


# To the probe, as an app


async def test_whoever_squats_on_the_port_does_not_pass_for_the_build(
    prison: LocalSandbox,
) -> None:
    await serve(prison, app_of("of-another-build"))
    second = await prison.run(f"python3 -S -m http.server {PREVIEW_PORT}", timeout_s=10)
    assert "Address already in use" in second.output
    found = await probe(prison.preview_url(PREVIEW_PORT), "mine", timeout_s=0.3)
    assert found.failure is not None
    assert "another build's marker" in found.failure
    await swept(prison)


async def test_a_redirect_leads_the_probe_nowhere(
    prison: LocalSandbox, neighbour: LocalSandbox
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as victim:
        port = victim.getsockname()[1]
        for target in (f"http://127.0.0.1:{port}/", neighbour.preview_url(PREVIEW_PORT)):
            await serve(prison, web(b"", 302, Location=target))
            found = await probe(prison.preview_url(PREVIEW_PORT), "the-neighbour", timeout_s=0.3)
            assert found.failure == "/healthz answered 302"
            await swept(prison)
        victim.settimeout(0)
        with pytest.raises(BlockingIOError):
            victim.accept()


async def test_an_app_that_holds_all_connections_shuts_out_only_itself(
    prison: LocalSandbox,
) -> None:
    holder = f"""
import socket, time
server = socket.create_server(("127.0.0.1", {PREVIEW_PORT}))
print("listening", flush=True)
held = []
while True:
    held.append(server.accept())
"""
    await serve(prison, holder)
    async with AsyncExitStack() as visits:
        for _ in range(40):
            await visits.enter_async_context(browser(prison))
        found = await probe(prison.preview_url(PREVIEW_PORT), "mine", timeout_s=0.3)
    assert found.failure is not None
    await swept(prison)


# Afterwards


async def test_after_all_of_it_a_new_sandbox_works_as_ever(
    sandboxes: LocalRuntime, prison: LocalSandbox, home: Path
) -> None:
    made = await sandboxes.create(metadata={}, timeout_s=60)
    await serve(made, app_of("the-next"))
    found = await probe(made.preview_url(PREVIEW_PORT), "the-next", timeout_s=10)
    assert found.failure is None
    infos = [info_of(home / "state", one) for one in (made, prison)]
    assert await sandboxes.kill(made.sandbox_id)
    assert await sandboxes.kill(prison.sandbox_id)
    left = [*names_in(home / "state"), *names_in(home / "run")]
    assert not any(one.sandbox_id in name for one in (made, prison) for name in left)
    assert not [folder for info in infos for folder in cgroups_left(info)]


@pytest.mark.timeout(0 if "HEADRACE_SANDBOXES" in os.environ else 120)
async def test_sandboxes_come_and_go_without_leaving_anything(
    sandboxes: LocalRuntime, home: Path
) -> None:
    rounds = int(os.environ.get("HEADRACE_SANDBOXES", "20"))
    before = {"state": names_in(home / "state"), "run": names_in(home / "run")}
    descriptors = len(os.listdir("/proc/self/fd"))
    infos = []
    limit = anyio.CapacityLimiter(4)

    async def come_and_go() -> None:
        async with limit:
            made = await sandboxes.create(metadata={}, timeout_s=60)
            infos.append(info_of(home / "state", made))
            assert await sandboxes.kill(made.sandbox_id)

    async with anyio.create_task_group() as tasks:
        for _ in range(rounds):
            tasks.start_soon(come_and_go)
    assert len(infos) == rounds
    assert {"state": names_in(home / "state"), "run": names_in(home / "run")} == before
    assert not [folder for info in infos for folder in cgroups_left(info)]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for info in infos:
        with suppress(ProcessLookupError), anyio.fail_after(10):
            supervisor = os.pidfd_open(info["pid"])  # it hangs up just before its end
            await anyio.wait_readable(supervisor)
            os.close(supervisor)


def cgroups_left(info: registry.Info) -> list[str]:
    return [folder for folder in info["cgroups"].values() if Path(folder).exists()]
