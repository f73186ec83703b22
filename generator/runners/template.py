"""The runner that needs no network: a small real app, chosen and worded by the goal alone.

It also makes a handful of changes to the apps that it wrote (`changes.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from generator.app_manifest import MANIFEST
from generator.runner import Listener, RunnerTask
from generator.runners.app_kinds import app_files, app_kinds
from generator.runners.evolution import evolved
from generator.workspace import Workspace
from schemas.commands import Usage


class Broken(StrEnum):
    """In which way an app shall not work, so that what watches over apps can be tested."""

    INSTALL = "install"
    """The install command ends with an error."""
    TESTS = "tests"
    """One of the app's own tests fails."""
    TESTS_ONCE = "tests-once"
    """The same, until the runner is told of it: to see a repair."""
    START = "start"
    """The server ends at once with an error."""
    START_ONCE = "start-once"
    """The same, until the runner is told of it."""
    MARKER = "marker"
    """The server says that it is another build."""
    HANG = "hang"
    """The server listens and never answers."""


class TemplateRunner:
    """Writes the same files, byte for byte, whenever base and goal are the same.

    Of a failure it learns nothing: the files stay as they are, unless they were broken on purpose
    only `once`. Raises `RunnerFailed` for a change that it does not understand.
    """

    name = "template"

    def __init__(self, broken: Broken | str | None = None) -> None:
        self._broken = None if broken is None else Broken(broken)
        self._breakage = None if self._broken is None else _BREAKAGES[self._broken]

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        files = self._files(task)
        there = workspace.files
        for path in sorted(there.keys() - files.keys()):
            await workspace.delete(path)
        changed = {path: data for path, data in files.items() if there.get(path) != data}
        await workspace.write_all({path: data.decode() for path, data in changed.items()})
        return Usage()

    def _files(self, task: RunnerTask) -> dict[str, bytes]:
        """All that the workspace shall hold."""
        files = dict(task.base_files)
        if task.failure is not None:
            is_mended = self._breakage is not None and self._broken in _ONCE
            return self._breakage.taken_from(files) if self._breakage and is_mended else files
        written = evolved(files, task.goal) if files else app_files(task.goal)
        files |= {path: text.encode() for path, text in written.items()}
        return self._breakage.applied_to(files) if self._breakage else files


@dataclass(frozen=True, slots=True)
class _Breakage:
    """Commands of `headrace.toml` to replace, and files to add."""

    commands: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def applied_to(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The files with it."""
        manifest = [self._replaced(line) for line in files[MANIFEST].decode().splitlines()]
        added = {path: text.encode() for path, text in self.files.items()}
        return {**files, **added, MANIFEST: _joined(manifest)}

    def taken_from(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The files as they would be without it."""
        whole = next(iter(app_kinds().values())).files[MANIFEST].splitlines()
        commands = {line.partition(" = ")[0]: line for line in whole}
        manifest = [
            commands[name] if (name := line.partition(" = ")[0]) in self.commands else line
            for line in files[MANIFEST].decode().splitlines()
        ]
        kept = {path: content for path, content in files.items() if path not in self.files}
        return {**kept, MANIFEST: _joined(manifest)}

    def _replaced(self, line: str) -> str:
        name = line.partition(" = ")[0]
        return f"{name} = '''{self.commands[name]}'''" if name in self.commands else line


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


_ONCE = (Broken.TESTS_ONCE, Broken.START_ONCE)
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
_BREAKAGES |= {
    Broken.TESTS_ONCE: _BREAKAGES[Broken.TESTS],
    Broken.START_ONCE: _BREAKAGES[Broken.START],
}
