"""Settings that cannot be used are named, with what to do, before anything is started."""

import subprocess
from pathlib import Path

import pytest

from service.errors import SettingsInvalid
from service.settings import ROOT, SandboxKind, Settings


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HEADRACE_PORT": "70000"}, "HEADRACE_PORT"),
        ({"HEADRACE_SANDBOX": "docker"}, "HEADRACE_SANDBOX"),
        ({"HEADRACE_SANDBOX": "e2b"}, "E2B_API_KEY is not set"),
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


def test_a_key_for_e2b_moves_the_sandbox_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.read().sandbox_kind is SandboxKind.LOCAL
    monkeypatch.setenv("E2B_API_KEY", "e2b_x")
    settings = Settings.read()
    assert settings.sandbox_kind is SandboxKind.E2B
    assert "e2b_x" not in repr(settings)


@pytest.mark.parametrize(
    "variables",
    [{"HEADRACE_HOME": "/proc/x"}, {"HEADRACE_ARTIFACTS": "foo"}, {"DATABASE_URL": "bar"}],
)
def test_a_demo_that_cannot_start_says_why_in_a_sentence_and_prints_its_document(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    done = subprocess.run(
        [ROOT / "headrace", "demo", "a list", "--once", "--json"],
        env={"PATH": "/usr/bin:/bin", "HEADRACE_HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert '"status": "error"' in done.stdout
    assert next(iter(variables)) in done.stderr
    assert "Traceback" not in done.stderr
