"""Runners and sandboxes that do as a test says, in memory; contracts are for the real."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import anyio

from generator.errors import SandboxGone
from generator.runner import Listener, RunnerTask
from generator.sandbox import CommandResult, OnOutput, SandboxInfo
from generator.workspace import Workspace
from schemas.commands import Usage

MANIFEST = """
[commands]
install = "install"
test = "test"
start = "start"
"""


@dataclass
class ScriptedRunner:
    """Writes a fixed app, after doing what `before` says."""

    name: str = "scripted"
    before: Callable[[], object] | None = None
    hang: bool = False
    started: anyio.Event = field(default_factory=anyio.Event)
    runs: int = 0

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        self.runs += 1
        self.started.set()
        if self.hang:
            await anyio.sleep_forever()
        if self.before:
            self.before()
        await workspace.write("headrace.toml", MANIFEST)
        await workspace.write("app.py", f"# {task.goal}\n")
        return Usage(input_tokens=10, output_tokens=20, cost_usd=0.5)


class Silent:
    """Listens to a runner, and keeps nothing."""

    async def said(self, text: str) -> None:
        pass

    async def used(self, usage: Usage) -> None:
        pass


@dataclass
class ScriptedRuntime:
    """Sandboxes in memory. Commands end as `exit_codes` says, or hang."""

    preview: str = "http://127.0.0.1:1"
    exit_codes: Mapping[str, int] = field(default_factory=dict)
    hang_on: str | None = None
    server_says: str = ""
    hanging: anyio.Event = field(default_factory=anyio.Event)
    provider: str = "scripted"
    living: dict[str, "ScriptedSandbox"] = field(default_factory=dict)
    made: list["ScriptedSandbox"] = field(default_factory=list)

    async def create(self, *, metadata: Mapping[str, str], timeout_s: int) -> "ScriptedSandbox":
        sandbox = ScriptedSandbox(f"sb-{len(self.made) + 1}", self, dict(metadata), timeout_s)
        self.made.append(sandbox)
        self.living[sandbox.sandbox_id] = sandbox
        return sandbox

    async def connect(self, sandbox_id: str) -> "ScriptedSandbox":
        if sandbox_id not in self.living:
            raise SandboxGone(sandbox_id)
        return self.living[sandbox_id]

    async def kill(self, sandbox_id: str) -> bool:
        return self.living.pop(sandbox_id, None) is not None

    async def list(self, metadata: Mapping[str, str]) -> list[SandboxInfo]:
        return []


@dataclass
class ScriptedSandbox:
    """One of them."""

    sandbox_id: str
    runtime: ScriptedRuntime
    metadata: dict[str, str]
    timeout_s: int
    files: dict[str, bytes] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        self.files.update(files)

    async def read_file(self, path: str) -> bytes:
        raise FileNotFoundError(path)

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        on_output: OnOutput | None = None,
    ) -> CommandResult:
        if command.startswith("tail "):
            return CommandResult(0, b64encode(self.runtime.server_says.encode()).decode())
        self.commands.append(command)
        if command == self.runtime.hang_on:
            self.runtime.hanging.set()
            await anyio.sleep_forever()
        if on_output:
            await on_output("stdout", f"{command} says hello\n")
        return CommandResult(self.runtime.exit_codes.get(command, 0), f"{command} output")

    async def start(
        self, command: str, *, log_path: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.commands.append(command)

    def preview_url(self, port: int) -> str:
        return self.runtime.preview

    async def close(self) -> None:
        return None
