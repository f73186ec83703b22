"""Runners and sandboxes that do as a test says, in memory; contracts are for the real."""

import shlex
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio

from generator.errors import SandboxError, SandboxGone
from generator.runner import Listener, RunnerTask
from generator.sandbox import CommandResult, OnOutput, Sandbox, SandboxInfo
from generator.workspace import Workspace
from schemas.commands import Usage
from schemas.events import Fact

MANIFEST = """
[commands]
install = "install"
test = "test"
start = "start"
"""
PATIENCE_S = 20.0


class Signal:
    """An event that any thread may set: a runner runs in one of its own."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        """Raises `AssertionError` when it is not set in the end."""
        waiting = partial(self._event.wait, PATIENCE_S)
        assert await anyio.to_thread.run_sync(waiting, abandon_on_cancel=True)


def plain_app(task: RunnerTask) -> Mapping[str, str]:
    """The same app in every round."""
    return {"headrace.toml": MANIFEST, "app.py": f"# {task.goal}\n"}


def mended_app(task: RunnerTask) -> Mapping[str, str]:
    """Another app in every round."""
    return {"headrace.toml": MANIFEST, "app.py": f"# {task.goal}, round {task.round}\n"}


@dataclass
class ScriptedRunner:
    """Writes `app`, after doing what `before` says; it may hang, or block, behind `hang_after`."""

    name: str = "scripted"
    app: Callable[[RunnerTask], Mapping[str, str]] = plain_app
    deletes: tuple[str, ...] = ()
    before: Callable[[], object] | None = None
    hang: bool = False
    block: bool = False
    hang_after: int = 0
    """How many files it writes before it hangs or blocks."""
    usage: Usage = field(default_factory=lambda: Usage(10, 20, 0.5))
    used_by_then: Usage | None = None
    """What it tells to have used before it hangs."""
    raises: list[Exception] = field(default_factory=list)
    """What its first runs end with."""
    started: Signal = field(default_factory=Signal)
    hanging: Signal = field(default_factory=Signal)
    let_go: threading.Event = field(default_factory=threading.Event)
    """Ends the blocking, so that no thread outlives its test."""
    tasks: list[RunnerTask] = field(default_factory=list)
    found: list[dict[str, bytes]] = field(default_factory=list)
    """What each run found in its workspace."""

    @property
    def runs(self) -> int:
        return len(self.tasks)

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        self.tasks.append(task)
        self.found.append(dict(workspace.files))
        self.started.set()
        if self.before:
            self.before()
        await listener.noted({"models": "pen-and-paper", "files": 7})
        for path in self.deletes:
            if path in workspace.files:
                await workspace.delete(path)
        for number, (path, content) in enumerate(self.app(task).items()):
            await self._maybe_hang(number, listener)
            if path not in task.drafted:
                await workspace.write(path, content)
        if self.raises:
            raise self.raises.pop(0)
        return self.usage

    async def _maybe_hang(self, written: int, listener: Listener) -> None:
        if written != self.hang_after or not (self.hang or self.block):
            return
        if self.used_by_then is not None:
            await listener.used(self.used_by_then)
        self.hanging.set()
        while self.block and not self.let_go.is_set():
            time.sleep(0.01)  # noqa: ASYNC251 - this is the blocking
        if self.hang:
            await anyio.sleep_forever()


class Silent:
    """Listens to a runner, and keeps nothing."""

    async def said(self, text: str) -> None:
        pass

    async def used(self, usage: Usage) -> None:
        pass

    async def noted(self, facts: Mapping[str, Fact]) -> None:
        pass


ExitCode = int | Callable[["ScriptedSandbox"], int]


@dataclass
class ScriptedRuntime:
    """Sandboxes in memory. Commands end as `exit_codes` says, or hang."""

    preview: str = "http://127.0.0.1:1"
    exit_codes: Mapping[str, ExitCode] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What commands print while they run, piece by piece."""
    hang_on: str | None = None
    server_says: str = ""
    hanging: anyio.Event = field(default_factory=anyio.Event)
    go_on: anyio.Event = field(default_factory=anyio.Event)
    """Ends the hanging."""
    refusals: list[Exception] = field(default_factory=list)
    """What the first creations end with."""
    dies_on: list[str] = field(default_factory=list)
    """Commands under which the sandbox ends, each once."""
    breaks_off: list[str] = field(default_factory=list)
    """Commands of which nobody hears the end, each once."""
    provider: str = "scripted"
    marker: str = ""
    """What the app that was started last answers with."""
    living: dict[str, "ScriptedSandbox"] = field(default_factory=dict)
    made: list["ScriptedSandbox"] = field(default_factory=list)
    paused: set[str] = field(default_factory=set)
    woken: list[str] = field(default_factory=list)
    kill_fails: bool = False
    cannot_be_made: Exception | None = None
    """What is plain before any sandbox is made."""
    prepared: int = 0
    closed: int = 0

    async def prepare(self) -> None:
        if self.cannot_be_made is not None:
            raise self.cannot_be_made
        self.prepared += 1

    async def close(self) -> None:
        self.closed += 1

    async def create(self, *, metadata: Mapping[str, str], timeout_s: int) -> Sandbox:
        if self.refusals:
            raise self.refusals.pop(0)
        return self.make(metadata, timeout_s)

    def make(self, metadata: Mapping[str, str], timeout_s: int = 3600) -> "ScriptedSandbox":
        sandbox = ScriptedSandbox(f"sb-{len(self.made) + 1}", self, dict(metadata), timeout_s)
        self.made.append(sandbox)
        self.living[sandbox.sandbox_id] = sandbox
        return sandbox

    async def connect(self, sandbox_id: str) -> Sandbox:
        if sandbox_id not in self.living:
            raise SandboxGone(sandbox_id)
        return self.living[sandbox_id]

    @property
    def can_pause(self) -> bool:
        return True

    async def pause(self, sandbox_id: str) -> None:
        if sandbox_id not in self.living:
            raise SandboxGone(sandbox_id)
        self.paused.add(sandbox_id)

    async def wake(self, sandbox_id: str, *, timeout_s: int) -> datetime:
        if sandbox_id not in self.living:
            raise SandboxGone(sandbox_id)
        self.paused.discard(sandbox_id)
        self.woken.append(sandbox_id)
        return datetime.now(UTC) + timedelta(seconds=timeout_s)

    async def kill(self, sandbox_id: str) -> bool:
        if self.kill_fails:
            raise SandboxError("the provider does not confirm it")
        self.paused.discard(sandbox_id)
        return self.living.pop(sandbox_id, None) is not None

    async def list(self, metadata: Mapping[str, str]) -> list[SandboxInfo]:
        return [
            SandboxInfo(
                sandbox.sandbox_id,
                sandbox.metadata,
                started_at=sandbox.started_at,
                ends_at=sandbox.started_at + timedelta(seconds=sandbox.timeout_s),
                is_paused=sandbox.sandbox_id in self.paused,
            )
            for sandbox in self.living.values()
            if metadata.items() <= sandbox.metadata.items()
        ]


@dataclass
class ScriptedSandbox:
    """One of them."""

    sandbox_id: str
    runtime: ScriptedRuntime
    metadata: dict[str, str]
    timeout_s: int
    files: dict[str, bytes] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    """The commands of the app."""
    installed: list[str] = field(default_factory=list)
    """Those of them that might use a network."""
    environments: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """What each of them found in its environment."""
    emptied: int = 0
    """How often its processes were ended."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def app_files(self) -> dict[str, bytes]:
        return {path: data for path, data in self.files.items() if not path.startswith(".headrace")}

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        self._check_living()
        self.files.update(files)

    async def read_file(self, path: str) -> bytes:
        self._check_living()
        self._break_off(f"read {path}")
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        on_output: OnOutput | None = None,
        installs: bool = False,
    ) -> CommandResult:
        self._check_living()
        if command.startswith("rm -f -- "):
            for path in shlex.split(command.partition(";")[0])[3:]:
                self.files.pop(path, None)
            return CommandResult(0, "")
        if command.startswith("tail "):
            return CommandResult(0, b64encode(self.runtime.server_says.encode()).decode())
        if installs:
            self.installed.append(command)
        self.commands.append(command)
        self.environments.append((command, dict(env or {})))
        await self._die_on(command)
        self._check_living()
        self._break_off(command)
        if command == self.runtime.hang_on:
            self.runtime.hanging.set()
            await self.runtime.go_on.wait()
        if on_output:
            for piece in self.runtime.says.get(command, [f"{command} says hello\n"]):
                await on_output("stdout", piece)
        code = self.runtime.exit_codes.get(command, 0)
        output = self.runtime.outputs.get(command, f"{command} output")
        return CommandResult(code if isinstance(code, int) else code(self), output)

    async def start(
        self, command: str, *, log_path: str, env: Mapping[str, str] | None = None
    ) -> None:
        self._check_living()
        self.commands.append(command)
        self.environments.append((command, dict(env or {})))
        self.runtime.marker = (env or {}).get("HEADRACE_MARKER", "")
        await self._die_on(command)
        self._break_off(command)

    async def end_processes(self) -> None:
        self._check_living()
        self.emptied += 1

    def preview_url(self, port: int) -> str:
        return self.runtime.preview

    async def close(self) -> None:
        return None

    async def _die_on(self, command: str) -> None:
        if command in self.runtime.dies_on:
            self.runtime.dies_on.remove(command)
            self.runtime.marker = ""
            await self.runtime.kill(self.sandbox_id)

    def _break_off(self, command: str) -> None:
        if command in self.runtime.breaks_off:
            self.runtime.breaks_off.remove(command)
            raise SandboxError("the connection broke off")

    def _check_living(self) -> None:
        if self.sandbox_id not in self.runtime.living:
            raise SandboxGone(self.sandbox_id)
