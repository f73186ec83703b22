"""Settings that cannot be used are named, with what to do, before anything is started."""

from pathlib import Path

import pytest

from service.errors import SettingsInvalid
from service.settings import RunnerKind, SandboxKind, Settings
from tests.service.command_line import in_this_process_on


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HEADRACE_PORT": "70000"}, "HEADRACE_PORT"),
        ({"HEADRACE_SANDBOX": "docker"}, "HEADRACE_SANDBOX"),
        ({"HEADRACE_SANDBOX": "e2b"}, "E2B_API_KEY is not set"),
        ({"HEADRACE_RUNNER": "llm"}, "HEADRACE_MODEL is not set"),
        ({"OPENAI_API_KEY": "sk-x"}, "HEADRACE_MODEL is not set"),
        ({"HEADRACE_MODEL": "openai:gpt-5"}, "OPENAI_API_KEY is not set"),
        ({"HEADRACE_MODEL": "gpt-5"}, "HEADRACE_MODEL: 'gpt-5' is not provider:model"),
        (
            {
                "HEADRACE_MODEL": "anthropic:x",
                "ANTHROPIC_API_KEY": "k",
                "HEADRACE_FALLBACK_MODELS": "acme:y",
            },
            "HEADRACE_FALLBACK_MODELS: 'acme:y'",
        ),
        (
            {
                "HEADRACE_MODEL": "openai:x",
                "OPENAI_API_KEY": "k",
                "HEADRACE_FALLBACK_MODELS": "anthropic:y",
            },
            "ANTHROPIC_API_KEY is not set, which anthropic:y needs",
        ),
        ({"OPENAI_BASE_URL": "localhost:11434"}, "OPENAI_BASE_URL must begin with"),
        ({"HEADRACE_MODEL_PRICES": '{"openai:x": {"in": 1}}'}, "HEADRACE_MODEL_PRICES"),
        ({"HEADRACE_INSTALL_HOSTS": "files.test,10.0.0.1"}, "HEADRACE_INSTALL_HOSTS.*'10.0.0.1'"),
        ({"HEADRACE_INSTALL_HOSTS": "*.test"}, "no host name"),
        ({"REDIS_URL": "redis://x"}, "go together"),
        ({"REDIS_URL": "redis://x", "DATABASE_URL": "bar"}, "DATABASE_URL must begin with"),
        ({"REDIS_URL": "x", "DATABASE_URL": "postgres://x"}, "REDIS_URL must begin with"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=message):
        Settings.read()


def test_installs_reach_no_host_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.read().install_hosts == ()
    monkeypatch.setenv("HEADRACE_INSTALL_HOSTS", "Files.test, other.test,")
    assert Settings.read().install_hosts == ("files.test", "other.test")


def test_a_key_for_e2b_moves_the_sandbox_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.read().sandbox_kind is SandboxKind.LOCAL
    monkeypatch.setenv("E2B_API_KEY", "e2b_x")
    settings = Settings.read()
    assert settings.sandbox_kind is SandboxKind.E2B
    assert "e2b_x" not in repr(settings)


def test_a_key_for_a_model_turns_the_runner_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.read().runner_kind is RunnerKind.TEMPLATE
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-x")
    monkeypatch.setenv("HEADRACE_MODEL", "anthropic:claude-sonnet-5-5")
    monkeypatch.setenv("HEADRACE_FALLBACK_MODELS", "anthropic:claude-haiku-4-5, anthropic:b")
    monkeypatch.setenv("HEADRACE_MODEL_PRICES", '{"anthropic:b": {"input": 1, "output": 2.5}}')
    settings = Settings.read()
    assert settings.runner_kind is RunnerKind.LLM
    assert settings.models == (
        "anthropic:claude-sonnet-5-5",
        "anthropic:claude-haiku-4-5",
        "anthropic:b",
    )
    assert settings.model_prices["anthropic:b"].output == 2.5
    assert "sk-ant-x" not in repr(settings)
    monkeypatch.setenv("HEADRACE_RUNNER", "template")
    assert Settings.read().runner_kind is RunnerKind.TEMPLATE


@pytest.mark.parametrize(
    "variables",
    [{"HEADRACE_HOME": "/proc/x"}, {"HEADRACE_ARTIFACTS": "foo"}, {"DATABASE_URL": "bar"}],
)
def test_a_demo_that_cannot_start_says_why_in_a_sentence_and_prints_its_document(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    with in_this_process_on(tmp_path, **variables) as headrace:
        done = headrace.run("demo", "a list", "--once", "--json")
    assert done.returncode == 1
    assert '"status": "error"' in done.stdout
    assert next(iter(variables)) in done.stderr
    assert "Traceback" not in done.stderr
