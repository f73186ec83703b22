"""The script at the root: what it says when the machine lacks something, and how it is called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = (
    "sh",
    "dirname",
    "readlink",
    "cksum",
    "tr",
    "cat",
    "rm",
    "flock",
    "tail",
    "pwd",
    "mkdir",
    "cp",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script and its locks in a folder of their own, with nothing installed."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copy(ROOT / "headrace", folder)
    shutil.copytree(ROOT / "locks", folder / "locks")
    return folder


def run(
    checkout: Path, tmp_path: Path, python: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script where `python` is the only Python: a shell script's body."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    stub = tools / "python3"
    stub.write_text(f"#!/bin/sh\n{python}\n")
    stub.chmod(0o755)
    return subprocess.run(
        [checkout / "headrace", "jobs"],
        env={"PATH": str(tools), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_python_that_is_too_old_gets_one_clear_sentence(checkout: Path, tmp_path: Path) -> None:
    done = run(checkout, tmp_path, "exit 1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Python 3.11 or newer is needed" in done.stderr


def test_a_python_without_venv_gets_one_clear_sentence(checkout: Path, tmp_path: Path) -> None:
    done = run(checkout, tmp_path, 'case "$1" in -c) exit 0;; *) echo no ensurepip; exit 1;; esac')
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr.splitlines()[-1]
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("variables", "lock"),
    [
        ({}, "run"),
        ({"HEADRACE_RUNNER": "llm"}, "llm"),
        ({"OPENAI_API_KEY": "sk-x"}, "llm"),
        ({"HEADRACE_MODEL": "openai:x"}, "llm"),
        ({"OPENAI_API_KEY": "sk-x", "HEADRACE_RUNNER": "template"}, "run"),
    ],
)
def test_what_a_model_needs_is_installed_only_when_one_is_asked_for(
    checkout: Path, tmp_path: Path, variables: dict[str, str], lock: str
) -> None:
    python = (
        'case "$1 $2" in "-c "*) exit 0;; "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python";; '
        "*) exit 1;; esac"
    )
    done = run(checkout, tmp_path, python, **variables)
    assert f"installing packages from locks/{lock}.txt" in done.stderr


def test_the_command_line_is_found_from_any_folder_and_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "hr"
    link.symlink_to(ROOT / "headrace")
    done = subprocess.run(
        [link, "--help"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert "Usage: headrace" in done.stdout
