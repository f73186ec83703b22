"""What a process knows to be secret, and that neither its commands nor its API say it."""

import httpx
import pytest
from fastapi import FastAPI

from eventstore import PostgresUnavailable
from generator import Redactor
from service import problems
from service.__main__ import main
from service.commands.terminal import err, friendly
from service.errors import ServiceError
from service.known_secrets import redactor_of, redactor_of_this_process
from service.settings import Settings

KEYS = {
    "ANTHROPIC_API_KEY": "anthropic-very-own",
    "OPENAI_API_KEY": "openai-very-own",
    "E2B_API_KEY": "e-two-b-very-own",
    "HEADRACE_KEY": "headrace-very-own",
    "REDIS_URL": "redis://user:redis-very-own@host/0",
    "DATABASE_URL": "postgresql://user:data%2Fvery-own@host/db",
}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEADRACE_MODEL", "anthropic:any")


@pytest.mark.parametrize(
    "secret",
    [
        "anthropic-very-own",
        "openai-very-own",
        "e-two-b-very-own",
        "headrace-very-own",
        "redis-very-own",
        "data%2Fvery-own",
        "data/very-own",
    ],
)
def test_every_key_and_password_of_the_settings_is_known(secret: str) -> None:
    assert redactor_of(Settings.read()).text(f"<{secret}>") == "<[redacted]>"


def test_a_password_that_everybody_can_guess_from_its_user_is_none() -> None:
    settings = Settings.model_construct(database_url="postgresql://postgres:postgres@host/db")
    assert redactor_of(settings).text("postgres 18") == "postgres 18"


def test_settings_that_cannot_be_used_still_leave_what_looks_like_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADRACE_PORT", "none")
    assert redactor_of_this_process().text("sk-abcdefghijklmnopqrst") == "[redacted]"


def test_what_a_command_says_of_a_failure_has_no_secret() -> None:
    with (
        err.capture() as said,
        pytest.raises(Exception),  # noqa: B017, PT011 - typer's way to end
        friendly(),
    ):
        raise ServiceError("host refuses redis-very-own")
    assert "refuses [redacted]" in said.get()


def test_a_traceback_that_nobody_has_foreseen_has_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(prog_name: str) -> None:
        raise RuntimeError(f"{prog_name}: bad openai-very-own")

    monkeypatch.setattr("service.__main__.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "RuntimeError: headrace: bad [redacted]" in capsys.readouterr().err


@pytest.mark.anyio
async def test_what_the_api_says_of_a_failure_has_no_secret() -> None:
    app = FastAPI()
    problems.install(app, Redactor(["redis-very-own"]))

    @app.get("/")
    async def fail() -> None:
        raise PostgresUnavailable("host refuses redis-very-own")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        answer = await client.get("/")
    assert answer.status_code == 503
    assert "very-own" not in answer.text
    assert "[redacted]" in answer.text
