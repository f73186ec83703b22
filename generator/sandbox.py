"""What the generator asks of a place that runs code nobody trusts.

Two implementations stand in `sandboxes/`: `local` (bubblewrap on this machine) and `e2b`
(the E2B cloud). One contract suite, `tests/generator/test_sandbox_contract.py`, runs over both.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

PROJECT_DIR = "/home/user/project"
"""Where the files of an app live inside every sandbox."""

PREVIEW_PORT = 8080
"""The port on which every app serves inside its sandbox."""

OUTPUT_TAIL_BYTES = 64 * 1024
"""How much of a command's output `CommandResult.output` keeps; more is cut from its beginning."""

Stream = Literal["stdout", "stderr"]
OnOutput = Callable[[Stream, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended: its exit code and the tail of its output, both streams interleaved."""

    exit_code: int
    output: str


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """A living sandbox as its provider lists it. One that is paused ends when somebody ends it."""

    sandbox_id: str
    metadata: Mapping[str, str]
    started_at: datetime
    ends_at: datetime
    is_paused: bool = False


class Sandbox(Protocol):
    """One living sandbox. Every method raises `SandboxGone` once the sandbox has ended."""

    @property
    def sandbox_id(self) -> str:
        """The provider's id, `[A-Za-z0-9_-]{1,64}`."""
        ...

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        """Write files by their path relative to `PROJECT_DIR`; parents are made, old content goes.

        A path ending in `.sh` becomes executable. Raises `BadPath` for one that leads elsewhere,
        and `SandboxFull` when they do not fit.
        """
        ...

    async def read_file(self, path: str) -> bytes:
        """The content of one file below `PROJECT_DIR`. Raises `FileNotFoundError`, `BadPath`."""
        ...

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        on_output: OnOutput | None = None,
        installs: bool = False,
    ) -> CommandResult:
        """Run `command` with `/bin/sh -c` in `PROJECT_DIR` until it ends.

        A non-zero exit code is a result, not an error. `on_output` sees the output while it comes,
        in order per stream; what it raises reaches the caller. A child that outlives its command
        is ended, not waited for. Raises `CommandTimeout` after `timeout_s`; the command's whole
        process group has ended then, as it has when the caller is cancelled. A sandbox that ends
        under its command raises `SandboxGone`. One that `installs` may use such network as its
        provider has for that.
        """
        ...

    async def start(
        self, command: str, *, log_path: str, env: Mapping[str, str] | None = None
    ) -> None:
        """Start a server with `/bin/sh -c` in `PROJECT_DIR`; it outlives this process.

        Its output goes to `log_path` (relative to `PROJECT_DIR`), which begins anew, because a
        provider throws away output that nobody is subscribed to. It ends by `end_processes`, or
        with its sandbox.
        """
        ...

    async def end_processes(self) -> None:
        """End every command and server that runs in the sandbox, whoever began it; files stay.

        A command of another client that ends by it gives that client a result, like any that ends.
        """
        ...

    def preview_url(self, port: int) -> str:
        """The address at which a browser reaches `port` of the sandbox, without trailing slash."""
        ...

    async def close(self) -> None:
        """Give back this process's connections; the sandbox lives on."""
        ...


class SandboxRuntime(Protocol):
    """A provider of sandboxes."""

    @property
    def provider(self) -> str:
        """Short name that stands in events: `local`, `e2b`."""
        ...

    @property
    def can_pause(self) -> bool:
        """Whether a sandbox can sleep, costing next to nothing, and be woken as it was."""
        ...

    async def prepare(self) -> None:
        """A sandbox will be asked for soon: begin with what `create` would wait for.

        Only what costs nothing and says of nobody whose it is. Raises `SandboxUnavailable` where it
        is plain that none can be made.
        """
        ...

    async def create(self, *, metadata: Mapping[str, str], timeout_s: int) -> Sandbox:
        """A new, empty sandbox that ends by itself after `timeout_s`, whoever is alive then.

        Metadata keys and values are `[a-z0-9_-]{1,64}`. Raises `SandboxUnavailable` (fix the
        settings or the machine) or `SandboxBusy` (try again later).
        """
        ...

    async def connect(self, sandbox_id: str) -> Sandbox:
        """The living sandbox of that id, its end not moved; one that is paused is woken first.

        Raises `SandboxGone`, also for what cannot be an id.
        """
        ...

    async def pause(self, sandbox_id: str) -> None:
        """Let a sandbox sleep, memory and files as they are, until it is woken or ended.

        Idempotent. Raises `SandboxGone`, and `SandboxUnavailable` where `can_pause` is False.
        """
        ...

    async def wake(self, sandbox_id: str, *, timeout_s: int) -> datetime:
        """Let a sandbox run, also one that is paused, for `timeout_s` from now; when it ends.

        That is sooner where the provider cannot move the end of what runs already. Raises
        `SandboxGone`.
        """
        ...

    async def kill(self, sandbox_id: str) -> bool:
        """End a sandbox and everything in it; False when there was none any more. Idempotent.

        It has ended when this returns. Raises `SandboxError` when the provider does not confirm
        it, asked several times.
        """
        ...

    async def list(self, metadata: Mapping[str, str]) -> list[SandboxInfo]:
        """The sandboxes, living and paused, whose metadata contain all of `metadata`."""
        ...

    async def close(self) -> None:
        """Give back what `prepare` began and no `create` took; sandboxes live on."""
        ...


SandboxRuntimeFactory = Callable[[], SandboxRuntime]
"""Called when a build first needs a sandbox, so that a provider's SDK is imported only then."""
