"""The menu of commands: what it says of them is true, and choosing one imports no other's needs."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.main import get_command

from service.cli import app
from service.commands.menu import Listed
from service.settings import ROOT
from tests.service.command_line import CommandLine

HEAVY = ("alembic", "asyncpg", "eventstore", "fastapi", "generator", "obstore", "projector")
DRIVERS = ("redis", "sqlalchemy", "structlog")

ASKING = (
    *("--help", "log --help", "env --help", "submit --help", "logs --help", "preview --help"),
    *("jobs", "builds"),
)
ANSWER = b'{"jobs": [], "builds": []}'
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


class Empty(BaseHTTPRequestHandler):
    """An instance that nobody has asked for anything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)


def imported_by(*commands: str, home: Path, **environment: str) -> tuple[list[str], set[str]]:
    """What these commands say in one process, line by line, and the packages that it has then."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *commands],
        env=CommandLine(home).environment({"PYTHONPATH": str(ROOT), **environment}),
        capture_output=True,
        text=True,
    )
    *said, imported = done.stdout.splitlines()
    return said, set(imported.split())


def test_what_only_asks_an_instance_imports_neither_the_log_nor_a_driver(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        reached = {"HEADRACE_URL": url, "HEADRACE_KEY": "x"}
        said, imported = imported_by(*ASKING, home=tmp_path, **reached)
        server.shutdown()
    assert [line for line in said if line.startswith("ended ")] == ["ended 0"] * len(ASKING)
    assert "No builds yet." in said
    assert not {*HEAVY, *DRIVERS} & imported


def test_a_command_that_ends_with_a_sentence_imports_no_driver_to_say_it(tmp_path: Path) -> None:
    said, imported = imported_by("jobs", home=tmp_path)
    assert said == ["ended 1"]
    assert not {"alembic", "asyncpg", "fastapi", "obstore", *DRIVERS} & imported


def test_parts_that_serve_no_pages_load_no_web_framework() -> None:
    code = "import service.wiring, service.commands.log, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "projector.projector" in loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn"}
