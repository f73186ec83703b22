"""The runner that needs no network: a small real app, chosen and worded by the goal alone."""

from dataclasses import dataclass, field
from enum import StrEnum

from generator.app_manifest import MANIFEST
from generator.runner import Listener, RunnerTask
from generator.runners.app_kinds import app_files
from generator.workspace import Workspace
from schemas.commands import Usage


class Broken(StrEnum):
    """In which way an app shall not work, so that what watches over apps can be tested."""

    INSTALL = "install"
    """The install command ends with an error."""
    TESTS = "tests"
    """One of the app's own tests fails."""
    START = "start"
    """The server ends at once with an error."""
    MARKER = "marker"
    """The server says that it is another build."""
    HANG = "hang"
    """The server listens and never answers."""


class TemplateRunner:
    """Writes the same files, byte for byte, whenever the goal is the same.

    A base build and a failure change nothing: files of the base that the app does not have go away.
    """

    name = "template"

    def __init__(self, broken: Broken | str | None = None) -> None:
        self._breakage = None if broken is None else _BREAKAGES[Broken(broken)]

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        files = app_files(task.goal)
        if self._breakage is not None:
            files = self._breakage.applied_to(files)
        for path in workspace.files.keys() - files.keys():
            await workspace.delete(path)
        for path, text in files.items():
            await workspace.write(path, text)
        return Usage()


@dataclass(frozen=True, slots=True)
class _Breakage:
    """Commands of `headrace.toml` to replace, and files to add."""

    commands: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def applied_to(self, files: dict[str, str]) -> dict[str, str]:
        lines = files[MANIFEST].splitlines()
        manifest = [self._replaced(line) for line in lines]
        return {**files, **self.files, MANIFEST: "\n".join(manifest) + "\n"}

    def _replaced(self, line: str) -> str:
        name = line.partition(" = ")[0]
        return f"{name} = '''{self.commands[name]}'''" if name in self.commands else line


_BREAKAGES = {
    Broken.INSTALL: _Breakage(
        commands={"install": "echo 'broken on purpose: nothing can be installed' >&2; exit 1"}
    ),
    Broken.TESTS: _Breakage(
        files={
            "tests/test_broken.py": (
                "import unittest\n\n\n"
                "class BrokenTest(unittest.TestCase):\n"
                "    def test_this_app_is_broken_on_purpose(self) -> None:\n"
                '        self.fail("broken on purpose")\n'
            )
        }
    ),
    Broken.START: _Breakage(
        commands={"start": "echo 'broken on purpose: the server ends at once' >&2; exit 1"}
    ),
    Broken.MARKER: _Breakage(
        commands={"start": "HEADRACE_MARKER=broken-on-purpose exec sh start.sh"}
    ),
    Broken.HANG: _Breakage(
        commands={"start": "exec python3 hang.py"},
        files={
            "hang.py": (
                '"""Broken on purpose: listens, and never answers."""\n\n'
                "import os\n"
                "import socket\n"
                "import sys\n"
                "import threading\n\n"
                'port = int(os.environ.get("PORT") or "8080")\n'
                'with socket.create_server(("", port)):\n'
                '    sys.stderr.write(f"Listening on port {port}, and no more than that\\n")\n'
                "    threading.Event().wait()\n"
            )
        },
    ),
}
