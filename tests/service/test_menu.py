"""The menu of commands: what it says of them is true, and choosing one imports no other's needs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from service.cli import app
from service.commands.menu import Listed
from service.settings import ROOT
from tests.service.command_line import CommandLine

HEAVY = ("alembic", "asyncpg", "eventstore", "fastapi", "generator", "obstore", "projector")
DRIVERS = ("redis", "sqlalchemy", "structlog")

ASKING = ("--help", "log --help", "env", "jobs", "logs job", "builds show 1", "preview 1", "usage")
IMPORTED = """
import sys
from service.cli import app
for command in sys.argv[1:]:
    try:
        app(command.split(), prog_name="headrace")
    except SystemExit as ended:
        print("ended", ended.code)
print("imported", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def listed(group: Any, *above: str) -> Iterator[tuple[str, Listed]]:
    """Every line of the menu and of those in it, with the words that choose it."""
    for name, command in group.commands.items():
        if isinstance(command, Listed):
            yield " ".join([*above, name]), command
        else:
            yield from listed(command, *above, name)


LINES = dict(listed(get_command(app)))


def first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


@pytest.mark.parametrize("words", LINES)
def test_the_menu_says_of_a_command_what_it_says_of_itself(words: str) -> None:
    chosen = LINES[words].make_context(words, [], resilient_parsing=True).command
    assert LINES[words].help == first_paragraph(chosen.help)


def test_what_only_asks_an_instance_imports_neither_the_log_nor_a_driver(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *ASKING],
        env=CommandLine(tmp_path).environment({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
    )
    *said, imported = done.stdout.splitlines()
    ended = [line for line in said if line.startswith("ended ")]
    # Help is given; nobody is there to be asked.
    assert ended == ["ended 0"] * 2 + ["ended 1"] * (len(ASKING) - 2), done.stderr
    assert not {*HEAVY, *DRIVERS} & set(imported.split())
