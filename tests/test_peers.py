"""Peers beside a benchmark: programs with an environment of their own."""

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.peers import TASKIQ, Peers
from benchmarks.rows import silent
from service.embedded import Servers
from service.errors import ServiceError
from tests.service.command_line import InThisProcess

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


def test_peers_are_for_jobs_alone(tmp_path: Path) -> None:
    done = InThisProcess(tmp_path).run("bench", "log", "--peers")
    assert done.returncode == 1
    assert "--peers is for jobs" in done.stderr
