"""What contains the sandboxes of a user who is not root and may make no cgroups."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.generator.local.probes import IMPORTS, SMALL

ROOT = Path(__file__).parents[3]
USER = 54321
BOMB = "n=0; while setsid --fork sleep 1000 >/dev/null 2>&1; do n=$((n+1)); done; echo $n"
FILES = """
made = 0
try:
    for made in range(100_000):
        open(f"/tmp/{made}", "x").close()
except OSError:
    print(made)
"""
CODE = f"""{IMPORTS}
import json, os, shutil, tempfile
from generator.sandboxes.local import Limits
async def main():
    home = Path(tempfile.mkdtemp(prefix="hr-"))
    runtime = LocalRuntime(home / "s", home / "r", Limits(**{asdict(SMALL)!r}))
    sandbox = await runtime.create(metadata={{}}, timeout_s=60)
    async def said(command):
        return (await sandbox.run(command, timeout_s=20)).output.strip()
    found = {{
        "user": os.getuid(),
        "counted": (await runtime.holding(sandbox)).counted,
        "filtered": (await runtime.holding(sandbox)).filtered,
        "files": int(await said({f"python3 -S -c {FILES!r}"!r}.replace(chr(92) + "n", chr(10)))),
        "disk": await said("head -c 100000000 /dev/zero >big; stat -c %s big; rm big"),
        "memory": (await sandbox.run("python3 -S -c 'bytes(900 << 20)'", timeout_s=20)).exit_code,
        "inner": await said("id -u; grep CapEff /proc/self/status"),
        "processes": int(await said({BOMB!r})),
    }}
    await runtime.kill(sandbox.sandbox_id)
    found["left"] = os.listdir(home / "s") + os.listdir(home / "r")
    shutil.rmtree(home)
    print(json.dumps(found))
anyio.run(main)
"""


def as_user() -> list[str]:
    """What runs a command as an ordinary user: nothing for one, and for root another user.

    That one may be unable to reach Python below a private folder, so there that is shown anew.
    """
    if os.geteuid() != 0:
        return []
    shown = [Path(sys.base_prefix).resolve(), ROOT]
    script = "set -e; " + "".join(f"exec {3 + n}<'{path}'; " for n, path in enumerate(shown))
    for private in {closed for path in shown if (closed := outermost_closed(path))}:
        script += f"mount -t tmpfs -o mode=755 cover '{private}'; "
    for n, path in enumerate(shown):
        script += f"mkdir -p '{path}'; mount -c --bind /proc/self/fd/{3 + n} '{path}'; "
    user = f"setpriv --reuid={USER} --regid={USER} --clear-groups"
    script += f'exec {user} "$@" 3<&- 4<&-'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]


def outermost_closed(path: Path) -> Path | None:
    """The outermost folder above `path` that others may not enter."""
    above = reversed([path, *path.parents])
    return next((folder for folder in above if not folder.stat().st_mode & 0o001), None)


@pytest.fixture(scope="module")
def found(isolation_is_possible: None) -> dict[str, Any]:
    try:
        reached = subprocess.run([*as_user(), sys.executable, "-c", ""], capture_output=True)
    except FileNotFoundError as missing:
        pytest.skip(f"cannot become another user here: {missing}")
    if reached.returncode != 0:
        pytest.skip(f"cannot become another user here: {reached.stderr.decode()}")
    done = subprocess.run(
        [*as_user(), sys.executable, "-B", "-c", CODE],
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_limits_hold_for_an_ordinary_user_without_cgroups(found: dict[str, Any]) -> None:
    assert found["user"] != 0
    assert 10 < found["processes"] < SMALL.processes
    assert found["memory"] == 1  # MemoryError: each process has a limit of its own
    assert SMALL.files - 100 < found["files"] < SMALL.files
    assert int(found["disk"].split()[-1]) <= SMALL.disk_bytes


def test_a_sandbox_of_an_ordinary_user_is_as_closed_as_one_of_root(found: dict[str, Any]) -> None:
    assert found["filtered"] is True
    assert found["inner"].split() == ["65534", "CapEff:", "0" * 16]
    assert found["left"] == []
