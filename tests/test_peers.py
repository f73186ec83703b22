"""Peers beside a benchmark: programs with an environment of their own."""

import json
import shlex
from pathlib import Path

import pytest
from anyio import to_thread
from redis.asyncio import Redis

from benchmarks import BENCHMARKS, Target, peers
from benchmarks.peers import TASKIQ, Peers
from benchmarks.rows import ROUNDS, silent
from service.embedded import Servers
from service.errors import ServiceError
from tests.service.command_line import InThisProcess, logging_of_its_own

pytestmark = pytest.mark.anyio

SERVERS = Servers("unix:///run/valkey.sock", "postgresql:///headrace")


def python_that(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a program in place of the peers' Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setattr(peers, "_installed", lambda say: program)


async def test_a_peer_is_told_where_and_how_many_and_its_last_line_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    said = f'printf %s "$3" >{shlex.quote(str(told))}; echo a remark; echo \'{{"per_s": 12.5}}\''
    python_that(said, tmp_path, monkeypatch)
    assert await Peers(SERVERS, silent).rate(TASKIQ, jobs=7, steps=3) == 12.5
    assert json.loads(told.read_text()) == {
        "redis_url": SERVERS.redis_url,
        "database_url": SERVERS.database_url,
        "at_once": 32,
        "jobs": 7,
        "steps": 3,
    }


async def test_a_peer_that_fails_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_that("echo before >&2; echo no such module >&2; exit 1", tmp_path, monkeypatch)
    with pytest.raises(ServiceError, match="saying: no such module"):
        await Peers(SERVERS, silent).rate(TASKIQ, jobs=7)


@pytest.mark.parametrize(
    ("name", "metric", "rebuild"),
    [("project", "live_eventsourcing", False), ("replay", "rebuild_eventsourcing", True)],
)
async def test_what_is_folded_stands_beside_a_projection_of_others(
    name: str,
    metric: str,
    rebuild: bool,
    redis: Redis,
    servers: Servers,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = tmp_path / "told"
    said = f'echo "$3" >>{shlex.quote(str(told))}; echo \'{{"per_s": 12.5}}\''
    python_that(said, tmp_path, monkeypatch)
    target = Target(servers.redis_url, database_url, with_peers=True)
    with logging_of_its_own():
        rows = await to_thread.run_sync(lambda: BENCHMARKS[name](target, silent, events=600))
    found = {row.metric: row for row in rows}
    assert found[metric].beside_value == 12.5
    assert found[metric].value == found[metric.removesuffix("_eventsourcing")].value
    asked = [json.loads(line) for line in told.read_text().splitlines()]
    assert [(one["events"], one["rebuild"]) for one in asked] == [(600, rebuild)] * ROUNDS


def test_peers_are_for_what_they_do_too(tmp_path: Path) -> None:
    done = InThisProcess(tmp_path).run("bench", "log", "--peers")
    assert done.returncode == 1
    assert "--peers is for jobs, project, replay" in done.stderr
