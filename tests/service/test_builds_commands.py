"""`./headrace builds …` and `submit --base` as a person types them, in the test's own process."""

import json
import os
import tarfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner, Result

from eventstore import CommandHandler, Hub
from service.cli import app
from tests.histories import all_completed, queued, ready
from tests.projector.writing import write
from tests.service.quiet_api import QuietApi, quiet_api

pytestmark = pytest.mark.anyio

FIRST = {"app.py": b"print(1)\n", "logo.png": b"\0"}
SECOND = {"app.py": b"print(2)\n", "logo.png": b"\0\0"}


@pytest.fixture
async def api(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[QuietApi]:
    """Two builds of `shop`, and an environment that leads there."""
    async with quiet_api(handler, hub, engine) as made:
        monkeypatch.setenv("HEADRACE_URL", str(made.client.base_url))
        key = made.client.headers["Authorization"].removeprefix("Bearer ")
        monkeypatch.setenv("HEADRACE_KEY", key)
        for number, files in enumerate((FIRST, SECOND), start=1):
            history = [*all_completed(), ready(number, manifest=await made.artifacts.put(files))]
            base = {"base_build": 1 if number == 2 else None}
            history[0] = queued(f"a shop, try {number}").model_copy(update=base)
            await write(made.store, history)
        await made.fold()
        yield made


async def headrace(*arguments: str, exit_code: int = 0) -> Result:
    result = await to_thread.run_sync(partial(CliRunner().invoke, app, arguments))
    assert result.exit_code == exit_code, result.output
    return result


async def test_builds_are_listed_with_what_they_came_from(api: QuietApi) -> None:
    newest, oldest = (await headrace("builds", "-p", "shop")).output.splitlines()[1:]
    assert newest.split()[:2] == ["build_v0_2", "1"]
    assert newest.rstrip().endswith("a shop, try 2")
    assert oldest.startswith("build_v0_1")
    listed = json.loads((await headrace("builds", "-p", "shop", "--json")).output)
    assert [build["number"] for build in listed] == [2, 1]
    shown = (await headrace("builds", "show", "2", "-p", "shop")).output
    for line in ("Goal     a shop, try 2", "From     build 1", "Files    2, 11 bytes"):
        assert line in shown
    assert "app.py" in (await headrace("builds", "files", "1", "-p", "shop")).output
    refused = await headrace("builds", "show", "9", "-p", "shop", exit_code=2)
    assert "there is no build 9 of project shop" in refused.output


async def test_a_diff_is_a_patch_on_stdout_and_the_rest_is_said_beside_it(api: QuietApi) -> None:
    result = await headrace("builds", "diff", "1", "2", "-p", "shop")
    assert result.stdout.splitlines() == [
        "diff --git a/app.py b/app.py",
        "--- a/app.py",
        "+++ b/app.py",
        "@@ -1 +1 @@",
        "-print(1)",
        "+print(2)",
    ]
    assert "logo.png: changed, not shown" in result.stderr
    back = await headrace("builds", "diff", "2", "1", "-p", "shop")
    assert back.stdout.splitlines()[-1] == "+print(1)"
    parent = await headrace("builds", "diff", "2", "-p", "shop")
    assert parent.stdout == result.stdout


async def test_a_download_is_whole_or_not_there(api: QuietApi, tmp_path: Path) -> None:
    target = tmp_path / "shop.tar.gz"
    await headrace("builds", "download", "2", "-p", "shop", "-o", str(target))
    with tarfile.open(target) as whole:
        assert whole.getnames() == ["shop-build_v0_2/app.py", "shop-build_v0_2/logo.png"]
    for number, name, why in (
        ("9", "none.zip", "there is no build 9"),
        ("1", "none.rar", "name it .zip or .tar.gz"),
        ("1", "no/such/folder/none.zip", "cannot be written"),
    ):
        path = str(tmp_path / name)
        exit_code = 2 if number == "9" else 1
        result = await headrace(
            "builds", "download", number, "-p", "shop", "-o", path, exit_code=exit_code
        )
        assert why in result.output
    assert os.listdir(tmp_path) == ["shop.tar.gz"]


async def test_a_build_is_restored_and_gone_on_from(api: QuietApi) -> None:
    for arguments, base, is_restored in (
        (("builds", "restore", "1", "-p", "shop"), 1, True),
        (("submit", "make it blue", "-p", "shop", "--base", "1"), 1, False),
        (("submit", "make it blue", "-p", "shop", "--base", "latest"), 2, False),
    ):
        accepted = json.loads((await headrace(*arguments, "--json")).output)
        job = await api.get(f"/v1/jobs/{accepted['job_id']}")
        assert (job["base_build"], job["restore"]) == (base, is_restored)
    for base_text in ("0", "first", "-1", "²"):
        result = await headrace("submit", "bluer", f"--base={base_text}", exit_code=1)
        assert "give the number of a build, or `latest`" in result.output


async def test_taking_over_a_preview_without_naming_its_build_is_refused(api: QuietApi) -> None:
    refused = await headrace("submit", "make it blue", "-p", "shop", "--in-place", exit_code=2)
    assert "in_place needs a base_build" in refused.output
