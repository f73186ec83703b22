"""Sandboxes of this machine for tests."""

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from generator.sandboxes.local import LocalRuntime, isolation
from generator.sandboxes.local.sandbox import LocalSandbox
from tests.generator.local.probes import SMALL


@pytest.fixture(scope="session")
def isolation_is_possible() -> None:
    """Asked of the kernel directly: a failure of our own must not look like a poor machine."""
    bwrap = isolation.find_bwrap()
    probe = [str(bwrap), "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "true"]
    result = subprocess.run(probe, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"this machine cannot isolate: {result.stderr}")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="hr-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "a folder with spaces" / ("and a long name " * 10)


@pytest.fixture
async def runtime(
    state_dir: Path, run_dir: Path, isolation_is_possible: None
) -> AsyncIterator[LocalRuntime]:
    made = LocalRuntime(state_dir, run_dir, SMALL)
    yield made
    for info in await made.list({}):
        await made.kill(info.sandbox_id)


@pytest.fixture
async def sandbox(runtime: LocalRuntime) -> LocalSandbox:
    return await runtime.create(metadata={"job": "j1"}, timeout_s=60)
