"""What every runner must do, over each of them."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from generator.app_manifest import app_commands
from generator.probe import probe
from generator.runner import Runner, RunnerTask
from generator.runners.template import TemplateRunner
from tests.generator.llm_runs import MODELS, Run, runner
from tests.llm_server import LLMServer
from tests.llm_server.builder import builder

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["template", *MODELS])
def any_runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    if request.param == "template":
        yield TemplateRunner()
        return
    server: LLMServer = request.getfixturevalue("llm_server")
    server.model = builder
    yield runner(server, request.param)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "app")


def passes(command: str, root: Path) -> bool:
    done = subprocess.run(["/bin/sh", "-c", command], cwd=root, capture_output=True, timeout=60)
    return done.returncode == 0


@contextmanager
def started(root: Path, **env: str) -> Iterator[str]:
    """Where the app of `root` answers, or soon will."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = app_commands({"headrace.toml": (root / "headrace.toml").read_bytes()}).start
    server = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        cwd=root,
        env={**os.environ, "PORT": port, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


async def test_an_app_declares_its_commands_and_passes_its_own_tests(
    any_runner: Runner, run: Run
) -> None:
    await run.of(any_runner, RunnerTask("job-1", "a todo list for two people"))
    commands = app_commands(run.workspace.files)
    assert commands.install is None or passes(commands.install, run.root)
    assert passes(commands.test, run.root)


async def test_an_app_answers_with_its_builds_marker_and_a_page(
    any_runner: Runner, run: Run
) -> None:
    await run.of(any_runner)
    with started(run.root, HEADRACE_JOB="job-1", HEADRACE_MARKER="feed42") as url:
        probed = await probe(url, "feed42", timeout_s=20)
    assert probed.failure is None


async def test_every_file_lies_on_disk_and_is_told_of_once(any_runner: Runner, run: Run) -> None:
    await run.of(any_runner)
    assert sorted(run.written) == sorted(run.workspace.files)
    for path, content in run.workspace.files.items():
        assert (run.root / path).read_bytes() == content


async def test_what_is_told_last_is_what_the_whole_run_used(any_runner: Runner, run: Run) -> None:
    usage = await run.of(any_runner)
    assert usage == run.used


async def test_a_name_stands_for_the_runner_in_events(any_runner: Runner) -> None:
    assert any_runner.name.isidentifier()
