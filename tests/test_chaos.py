"""The chaos of `bench chaos`, for a moment; and that what it looks for at its end is found."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio.to_thread
import pytest
from rich.console import Console

from benchmarks import bench_chaos
from benchmarks.chaos import Found
from benchmarks.remains import processes, sandbox_cgroups, sandbox_folders, sandbox_sockets
from generator.sandboxes.local import LocalRuntime
from service.embedded import socket_folder
from tests.generator.local.conftest import isolation_is_possible
from tests.service.command_line import logging_of_its_own

__all__ = ["isolation_is_possible"]

pytestmark = pytest.mark.anyio


async def test_a_moment_of_chaos_leaves_every_job_ended_and_nothing_behind(
    isolation_is_possible: None,
) -> None:
    with logging_of_its_own():
        found = await anyio.to_thread.run_sync(lambda: bench_chaos(minutes=0.1, seed=7))
    assert found.is_clean, dict(found.wrong)
    assert found.done.total() >= 1
    assert found.ended.total() >= 4
    assert {name for name in found.wrong if "left over" in name} == {
        "sandboxes left over",
        "processes left over",
        "cgroups left over",
        "folders of sandboxes left over",
        "sockets of sandboxes left over",
    }


async def test_all_of_a_sandbox_is_found_while_it_lives_and_nothing_after(
    tmp_path: Path, isolation_is_possible: None
) -> None:
    runtime = LocalRuntime(tmp_path / "sandboxes", socket_folder(tmp_path) / "sandboxes")
    sandbox = await runtime.create(metadata={}, timeout_s=60)
    ids = {sandbox.sandbox_id}
    # Supervisor, bubblewrap, and process 1 inside, which bubblewrap begins.
    assert len(processes(tmp_path, ids)) >= 3
    assert [folder.name for folder in sandbox_folders(tmp_path)] == [sandbox.sandbox_id]
    assert [socket.stem for socket in sandbox_sockets(tmp_path)] == [sandbox.sandbox_id]
    counted = (await runtime.holding(sandbox)).counted
    assert bool(sandbox_cgroups(ids)) == bool(counted)
    await sandbox.close()
    await runtime.kill(sandbox.sandbox_id)
    assert processes(tmp_path, ids) == []
    assert sandbox_folders(tmp_path) == sandbox_sockets(tmp_path) == sandbox_cgroups(ids) == []


@contextmanager
def sleeping(*words: str, **options: object) -> Iterator[int]:
    command = [sys.executable, "-c", "input()", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, **options) as process:  # type: ignore[call-overload]
        yield process.pid
        process.kill()


def test_a_process_belongs_to_a_home_by_its_words_its_folder_or_what_it_has_open(
    tmp_path: Path,
) -> None:
    (tmp_path / "home").mkdir()
    home = tmp_path / "home"
    with (
        (home / "out.log").open("w") as log,
        sleeping(str(home)) as named,
        sleeping(cwd=home) as inside,
        sleeping(stdout=log) as writing,
        sleeping(env={"HEADRACE_HOME": str(home)}) as told,
        sleeping("sb-0123") as boxed,
        sleeping(str(tmp_path)) as other,
    ):
        assert set(processes(home, {"sb-0123"})) == {named, inside, writing, told, boxed}
        assert other not in processes(home, ())


def test_what_was_left_over_is_shown_and_makes_it_fail() -> None:
    found = Found()
    found.wrong["cgroups left over"] = 0
    assert found.is_clean
    found.wrong["processes left over"] = 2
    assert not found.is_clean
    console = Console(record=True, width=80)
    found.show(console)
    (line,) = [one for one in console.export_text().splitlines() if "processes left" in one]
    assert line.split() == ["wrong", "processes", "left", "over", "2"]
