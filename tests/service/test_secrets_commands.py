"""`./headrace secrets …` as a person types it."""

import base64
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner, Result

from eventstore import CommandHandler, Hub
from service.cli import app
from service.embedded import Servers
from service.project_secrets import MAX_VALUE_BYTES, ProjectSecrets
from service.secret_keys import SecretKeys, SecretRef, parse_keys
from tests.histories import TENANT
from tests.service.command_line import in_this_process_on
from tests.service.quiet_api import SECRETS_KEY, QuietApi, quiet_api

pytestmark = pytest.mark.anyio

SECRET = "hunter2-4711"
NEW_KEY = base64.b64encode(b"n" * 32).decode()


@pytest.fixture
async def api(
    handler: CommandHandler, hub: Hub, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[QuietApi]:
    """An API, and an environment that leads there."""
    async with quiet_api(handler, hub, engine) as made:
        monkeypatch.setenv("HEADRACE_URL", str(made.client.base_url))
        key = made.client.headers["Authorization"].removeprefix("Bearer ")
        monkeypatch.setenv("HEADRACE_KEY", key)
        yield made


async def headrace(*arguments: str, fed: str | bytes | None = None, exit_code: int = 0) -> Result:
    call = partial(CliRunner().invoke, app, ["secrets", *arguments], input=fed)
    result = await to_thread.run_sync(call)
    assert result.exit_code == exit_code, result.output
    assert SECRET not in result.output
    return result


async def values(api: QuietApi) -> dict[str, str]:
    keys = SecretKeys(parse_keys(SECRETS_KEY))
    return dict(await ProjectSecrets(api.engine, keys).of_project(TENANT, "shop"))


async def test_a_value_comes_from_standard_input_and_is_listed_by_its_name_alone(
    api: QuietApi,
) -> None:
    said = await headrace("set", "shop", "TOKEN", fed=f"{SECRET}\n")
    assert "Set TOKEN of project shop" in said.output
    assert await values(api) == {"TOKEN": SECRET}
    assert "TOKEN" in (await headrace("list", "shop")).output
    (listed,) = json.loads((await headrace("list", "shop", "--json")).output)
    assert sorted(listed) == ["created_at", "name", "updated_at"]
    assert "Removed TOKEN" in (await headrace("unset", "shop", "TOKEN")).output
    assert "Project shop has no secrets" in (await headrace("list", "shop")).output
    absent = await headrace("unset", "shop", "TOKEN", exit_code=2)
    assert "there is no secret TOKEN of project shop" in absent.output


@pytest.mark.parametrize(
    ("fed", "value"),
    [
        ("a\nb\n", "a\nb"),
        ("a\n\n", "a\n"),
        ("windows\r\n", "windows"),
        ("no end", "no end"),
        (" spaces \n", " spaces "),
        ("", ""),
        ("x" * MAX_VALUE_BYTES + "\r\n", "x" * MAX_VALUE_BYTES),
    ],
)
async def test_one_line_end_at_the_end_is_no_part_of_the_value(
    api: QuietApi, fed: str, value: str
) -> None:
    await headrace("set", "shop", "TOKEN", fed=fed)
    assert await values(api) == {"TOKEN": value}


@pytest.mark.parametrize(
    ("arguments", "fed", "says"),
    [
        (("shop", "token"), SECRET, "'token' cannot be a secret's name: a name has A-Z"),
        (("shop", "PATH"), SECRET, "take another"),
        (("Shop", "TOKEN"), SECRET, "'Shop' is no project"),
        (("a/b", "TOKEN"), SECRET, "is no project"),
        (("shop", "TOKEN"), b"\xff" + SECRET.encode(), "no text in UTF-8"),
        (("shop", "TOKEN"), SECRET * 3000, f"at most {MAX_VALUE_BYTES} bytes fit"),
    ],
)
async def test_what_cannot_be_set_is_refused_with_the_reason(
    api: QuietApi, arguments: tuple[str, ...], fed: str | bytes, says: str
) -> None:
    said = await headrace("set", *arguments, fed=fed, exit_code=1)
    assert says in said.output
    assert await values(api) == {}


async def test_what_the_api_refuses_is_told_in_its_words_with_exit_code_2(api: QuietApi) -> None:
    said = await headrace("set", "shop", "TOKEN", fed=f"{SECRET}\0", exit_code=2)
    assert "value: it has a NUL" in said.output


async def test_a_value_is_never_an_argument(api: QuietApi) -> None:
    call = partial(CliRunner().invoke, app, ["secrets", "set", "shop", "TOKEN", SECRET])
    result = await to_thread.run_sync(call)
    assert result.exit_code == 2
    assert await values(api) == {}


async def test_a_rotation_says_how_many_it_encrypted_and_which_it_could_not(
    api: QuietApi, servers: Servers, database_url: str, tmp_path: Path
) -> None:
    for name in ("A", "B"):
        await headrace("set", "shop", name, fed=SECRET)
    lost = ProjectSecrets(api.engine, SecretKeys(parse_keys(base64.b64encode(b"l" * 32).decode())))
    await lost.put(SecretRef("globex", "blog", "LOST"), SECRET)
    own = {
        "REDIS_URL": servers.redis_url,
        "DATABASE_URL": database_url,
        "HEADRACE_HOME": str(tmp_path),
    }

    async def rotate(*options: str, keys: str | None, exit_code: int) -> Result:
        env = {**own, "HEADRACE_SECRETS_KEY": keys}
        call = partial(CliRunner().invoke, app, ["secrets", "rotate", *options], env=env)
        result = await to_thread.run_sync(call)
        assert result.exit_code == exit_code, result.output
        return result

    said = await rotate(keys=f"{NEW_KEY},{SECRETS_KEY}", exit_code=1)
    assert "Encrypted 2 secrets anew." in said.stdout
    assert "1 secret could not be" in said.stderr
    assert "tenant globex: secret LOST of project blog" in said.stderr
    await lost.remove(SecretRef("globex", "blog", "LOST"))
    again = await rotate("--json", keys=NEW_KEY, exit_code=0)
    assert json.loads(again.stdout) == {"rotated": 0, "unreadable": 0}
    nothing = await rotate(keys=None, exit_code=1)
    assert "HEADRACE_SECRETS_KEY is not set" in nothing.output
    malformed = await rotate(keys="hunter2", exit_code=1)
    assert "HEADRACE_SECRETS_KEY: key 1 of 1" in malformed.output


def test_the_doctor_finds_a_secret_whose_key_was_lost(tmp_path: Path) -> None:
    with in_this_process_on(tmp_path, HEADRACE_RUNNER="none") as shell:
        assert found(shell.json("doctor"))["says"] == "none are kept"
        assert not (tmp_path / "secrets.key").exists()
        with shell.started("up") as up:
            up.line_with("Headrace is up")
            shell.run("secrets", "set", "shop", "TOKEN", fed=SECRET)
            up.end(15)
        assert (tmp_path / "secrets.key").stat().st_mode & 0o777 == 0o600
        assert found(shell.json("doctor"))["says"].startswith("1 secret can be decrypted, key ")

        both = shell.run("doctor", "--json", HEADRACE_SECRETS_KEY=NEW_KEY)
        assert both.returncode == 0
        finding = found(json.loads(both.stdout))
        assert (finding["level"], finding["remedy"]) == ("warning", "./headrace secrets rotate")

        (tmp_path / "secrets.key").rename(tmp_path / "elsewhere")
        lost = shell.run("doctor", "--json")
        assert lost.returncode == 1
        finding = found(json.loads(lost.stdout))
        assert "1 of 1 secret cannot be decrypted: key" in finding["says"]
        assert "HEADRACE_SECRETS_KEY" in finding["remedy"]
        assert not (tmp_path / "secrets.key").exists()


def found(document: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    """What the doctor's document says of secrets."""
    (finding,) = [one for one in document["findings"] if one["check"] == "secrets"]
    return finding
