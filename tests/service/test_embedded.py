"""The embedded servers: where they run, how they end, and that they keep what they are given."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import redis

from service.embedded import (
    SOCKET_PATH_BYTES,
    Servers,
    bundled_valkey,
    embedded_servers,
    exclusive,
    socket_folder,
)
from service.errors import AlreadyRunning, EmbeddedServerFailed
from service.settings import ROOT
from tests.service.processes import (
    PROC,
    children_of,
    command_of,
    frozen,
    opened_by,
    processes_of,
    wait_for_end,
    with_descendants,
)

# Says where its servers are, then holds them until its standard input ends.
HOLDER = """
import sys
from pathlib import Path
from service.embedded import embedded_servers
with embedded_servers(Path(sys.argv[1])) as servers:
    print(servers.redis_url, servers.database_url, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Holder:
    """Another process that is to run the servers of a home."""

    process: subprocess.Popen[str]

    def servers(self) -> Servers:
        """Once it says that they run."""
        assert self.process.stdout is not None
        return Servers(*self.process.stdout.readline().split())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def holder(home: Path) -> Iterator[Holder]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            yield Holder(process)
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Shared:
    """Servers of another process that no test may harm."""

    home: Path
    pid: int
    servers: Servers


def key(servers: Servers, name: str, value: str | None = None) -> bytes | None:
    """What a Redis key holds, after it was set if there is something to set."""
    with redis.Redis.from_url(servers.redis_url) as client:
        if value is not None:
            client.set(name, value)
        found: bytes | None = client.get(name)
        return found


def sql(servers: Servers, statement: str) -> object:
    """The first value a statement gives, None without one."""

    async def ask() -> object:
        connection = await asyncpg.connect(servers.database_url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def fill(servers: Servers) -> None:
    key(servers, "kept", "yes")
    sql(servers, "CREATE TABLE kept (answer text)")
    sql(servers, "INSERT INTO kept VALUES ('yes')")


def is_filled(servers: Servers) -> bool:
    return key(servers, "kept") == b"yes" and sql(servers, "SELECT answer FROM kept") == "yes"


def sockets_of(pid: int) -> set[str]:
    """The inodes of the sockets that a process has open."""
    return {name.strip("socket:[]") for name in opened_by(pid) if name.startswith("socket:")}


def inodes_of(*kinds: str) -> set[str]:
    """The inodes of all sockets of these kinds on this machine (proc_net(5))."""
    tables = [PROC / "net" / kind for kind in kinds]
    lines = [line for table in tables if table.exists() for line in table.read_text().splitlines()]
    return {line.split()[6 if "unix" in kinds else 9] for line in lines[1:] if "inode" not in line}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    home = tmp_path_factory.mktemp("homes") / "a folder of mine & yours"
    with holder(home) as held:
        yield Shared(home, held.process.pid, held.servers())


def test_servers_run_in_a_folder_with_spaces(shared: Shared) -> None:
    fill(shared.servers)
    assert is_filled(shared.servers)


def test_the_servers_have_the_settings_that_keep_every_acknowledged_write(shared: Shared) -> None:
    with redis.Redis.from_url(shared.servers.redis_url, decode_responses=True) as client:
        found = client.config_get("appendonly", "appendfsync", "maxmemory-policy")
    assert found == {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
    }
    names = ("fsync", "synchronous_commit", "full_page_writes")
    assert {name: sql(shared.servers, f"SHOW {name}") for name in names} == dict.fromkeys(
        names, "on"
    )


def test_no_server_opens_a_tcp_port(shared: Shared) -> None:
    pids = with_descendants(shared.pid)
    assert len(pids) > 3
    opened = set[str]().union(*map(sockets_of, pids))
    assert opened & inodes_of("unix")
    assert not opened & inodes_of("tcp", "tcp6", "udp", "udp6")


def test_a_second_process_on_the_same_home_is_told_which_one_has_it(shared: Shared) -> None:
    with pytest.raises(AlreadyRunning) as caught, embedded_servers(shared.home):
        pass
    assert caught.value.pid == str(shared.pid)
    assert str(shared.pid) in str(caught.value)
    assert key(shared.servers, "unharmed", "yes") == b"yes"


def test_servers_run_below_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    home = tmp_path / ("long-" * 20) / ("längér " * 20) / "home"
    assert len(os.fsencode(home)) > 200 > SOCKET_PATH_BYTES
    try:
        with embedded_servers(home) as servers:
            fill(servers)
            assert is_filled(servers)
            assert socket_folder(home).stat().st_mode & 0o077 == 0
        assert (home / "valkey" / "appendonlydir").is_dir()
        assert (home / "postgres" / "cluster" / "PG_VERSION").is_file()
    finally:
        shutil.rmtree(socket_folder(home))


def test_another_redis_server_runs_in_the_place_of_the_bundled_one(tmp_path: Path) -> None:
    other = tmp_path / "another-redis-server"
    other.symlink_to(bundled_valkey())
    with embedded_servers(tmp_path / "home", redis_server=other) as servers:
        assert key(servers, "kept", "yes") == b"yes"
        commands = processes_of(tmp_path / "home").values()
        assert any(command.startswith(str(other)) for command in commands)
        assert not any(command.startswith(str(bundled_valkey())) for command in commands)


def test_servers_started_again_still_have_what_they_were_given(tmp_path: Path) -> None:
    with embedded_servers(tmp_path) as servers:
        fill(servers)
    assert processes_of(tmp_path) == {}
    with embedded_servers(tmp_path) as servers:
        assert is_filled(servers)


def test_the_servers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as held:
        held.servers()
        pids = children_of(held.process.pid)
        commands = " ".join(map(command_of, pids))
        assert "valkey" in commands
        assert "postgres" in commands
        held.kill()
        wait_for_end(pids)


def test_data_that_a_server_of_a_killed_process_still_has_are_left_alone_until_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(tmp_path) as held:
        fill(held.servers())
        with frozen(*children_of(held.process.pid)):
            held.kill()
            monkeypatch.setattr("service.embedded.STOP_S", 0.1)
            with (
                pytest.raises(EmbeddedServerFailed, match="does not end"),
                embedded_servers(tmp_path),
            ):
                pass
            monkeypatch.undo()
        with embedded_servers(tmp_path) as servers:
            assert is_filled(servers)


def test_a_half_finished_initdb_is_begun_anew(tmp_path: Path) -> None:
    half = tmp_path / "postgres" / "cluster.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    (half / "base").mkdir()
    with embedded_servers(tmp_path) as servers:
        assert sql(servers, "SELECT current_database()") == "headrace"
    assert not half.exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("postgres/cluster/PG_VERSION", "could not access the server configuration file"),
        ("valkey/appendonlydir/appendonly.aof.manifest", "AOF manifest file"),
    ],
)
def test_a_server_that_fails_on_its_data_is_reported_with_its_own_last_words(
    tmp_path: Path, file: str, said: str
) -> None:
    (tmp_path / file).parent.mkdir(mode=0o700, parents=True)
    (tmp_path / file).write_text("not what belongs here")
    with pytest.raises(EmbeddedServerFailed) as caught, embedded_servers(tmp_path):
        pass
    assert said in caught.value.log_tail
    assert said in str(caught.value)
    assert "REDIS_URL" in str(caught.value)
    assert processes_of(tmp_path) == {}
    with exclusive(tmp_path):
        pass  # the home is free again
