"""Sandboxes on this machine, isolated by bubblewrap; where that is impossible, none is made.

    worker ── control socket ── supervisor ── socket pairs ── agent (process 1 inside) ── the app
    browser ── loopback port ──┘

Each sandbox has a supervisor of its own, which outlives the worker and ends the sandbox in time.
It is forked by the worker's nursery, a process that has started Python once for all of them.
"""

import os
import re
import signal
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio
from anyio import to_thread

from generator.errors import SandboxBusy, SandboxError, SandboxGone, SandboxUnavailable
from generator.sandbox import SandboxInfo
from generator.sandboxes.local import isolation, registry
from generator.sandboxes.local.inside.frames import KILL
from generator.sandboxes.local.isolation import Limits
from generator.sandboxes.local.launch import OWN, Launch, Nursery
from generator.sandboxes.local.sandbox import LocalSandbox

ANSWER_S = 15.0
KILL_S = 15.0
MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` has 108 bytes, the last of them zero (unix(7))."""

DEFAULT_LIMITS = Limits()

_SANDBOX_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Holding:
    """What contains a sandbox on this machine, beside its namespaces."""

    filtered: bool
    """Whether its system calls are filtered."""
    counted: tuple[str, ...]
    """What the kernel counts of all its processes together: `memory`, `pids`."""
    install_hosts: tuple[str, ...]
    """What its install commands can reach."""


class LocalRuntime:
    """Makes, finds and ends the sandboxes kept in `state_dir`, from any number of processes.

    `run_dir` holds the control sockets and needs a short path. Both are made on first use, for
    this user alone. `install_hosts` can be reached by commands that install; nothing else can be
    reached by anything. `bwrap` replaces the bubblewrap that would be found.
    """

    def __init__(
        self,
        state_dir: Path,
        run_dir: Path,
        limits: Limits = DEFAULT_LIMITS,
        *,
        install_hosts: Collection[str] = (),
        bwrap: Path | None = None,
        nursery: Nursery = OWN,
    ) -> None:
        self._state_dir = state_dir.absolute()
        self._run_dir = run_dir.absolute()
        self._limits = limits
        self._install_hosts = sorted(install_hosts)
        self._bwrap = bwrap
        self._nursery = nursery
        self._prepared: Launch | None = None
        longest = len(os.fsencode(self._socket_path(_new_id())))
        if longest > MAX_SOCKET_PATH_BYTES:
            raise ValueError(
                f"run_dir {self._run_dir} makes unix socket paths of {longest} bytes, the limit "
                f"is {MAX_SOCKET_PATH_BYTES}: choose a shorter one"
            )

    @property
    def provider(self) -> str:
        return "local"

    @property
    def can_pause(self) -> bool:
        return False

    async def prepare(self) -> None:
        """Start a sandbox that waits for its `create`; with this process it ends before that."""
        if self._prepared is None:
            with suppress(SandboxBusy, OSError), anyio.CancelScope(shield=True):
                self._prepared = await to_thread.run_sync(self._launch)

    async def create(self, *, metadata: Mapping[str, str], timeout_s: int) -> LocalSandbox:
        # Not to be interrupted: what has half begun cannot be ended, what exists can.
        with anyio.CancelScope(shield=True):
            launch, self._prepared = self._prepared, None
            if launch is None:
                launch = await to_thread.run_sync(self._launch)
            sandbox = await self._claimed(launch, metadata, timeout_s)
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.kill(sandbox.sandbox_id)
            raise
        return sandbox

    async def connect(self, sandbox_id: str) -> LocalSandbox:
        info = None
        if _SANDBOX_ID.fullmatch(sandbox_id):
            info = await to_thread.run_sync(registry.living, self._folder(sandbox_id))
        if info is None:
            raise SandboxGone(sandbox_id)
        return _sandbox(info)

    async def pause(self, sandbox_id: str) -> None:
        raise SandboxUnavailable("a local sandbox cannot be paused: it would keep its memory")

    async def wake(self, sandbox_id: str, *, timeout_s: int) -> datetime:
        """It runs, if it is there; its supervisor does not move its end."""
        info = None
        if _SANDBOX_ID.fullmatch(sandbox_id):
            info = await to_thread.run_sync(registry.living, self._folder(sandbox_id))
        if info is None:
            raise SandboxGone(sandbox_id)
        return datetime.fromtimestamp(info["ends_at"], UTC)

    async def kill(self, sandbox_id: str) -> bool:
        if not _SANDBOX_ID.fullmatch(sandbox_id):
            return False
        folder = self._folder(sandbox_id)
        info = await to_thread.run_sync(registry.living, folder)
        if info is not None and not await _ended(info["socket"]):
            await _end_by_force(sandbox_id, folder)
        # Nothing is left now unless the supervisor was killed, by us or by another.
        await self._bury(sandbox_id)
        return info is not None

    async def list(self, metadata: Mapping[str, str]) -> list[SandboxInfo]:
        infos = await to_thread.run_sync(registry.sweep, str(self._state_dir))
        return [
            SandboxInfo(
                sandbox_id=info["sandbox_id"],
                metadata=info["metadata"],
                started_at=datetime.fromtimestamp(info["started_at"], UTC),
                ends_at=datetime.fromtimestamp(info["ends_at"], UTC),
            )
            for info in infos
            if info["metadata"] is not None and metadata.items() <= info["metadata"].items()
        ]

    async def close(self) -> None:
        launch, self._prepared = self._prepared, None
        if launch is not None:
            await launch.give_up()
            await self._bury(launch.sandbox_id)

    async def holding(self, sandbox: LocalSandbox) -> Holding:
        """What contains a living sandbox here, by asking the kernel."""
        info = await to_thread.run_sync(registry.living, self._folder(sandbox.sandbox_id))
        if info is None:
            raise SandboxGone(sandbox.sandbox_id)
        status = await sandbox.run("cat /proc/self/status", timeout_s=ANSWER_S)
        counted = await to_thread.run_sync(registry.counted, info)
        return Holding(
            filtered="Seccomp:\t2" in status.output,
            counted=tuple(counted),
            install_hosts=tuple(self._install_hosts),
        )

    def _launch(self) -> Launch:
        """Start a supervisor."""
        isolation.check_machine()
        bwrap = isolation.find_bwrap(self._bwrap)
        for place in (self._state_dir, self._run_dir):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if place.stat().st_uid != os.geteuid():
                raise SandboxUnavailable(f"{place} belongs to another user: choose another folder")
        registry.sweep(str(self._state_dir))
        sandbox_id = _new_id()
        folder = self._state_dir / sandbox_id
        spec = isolation.spec(
            sandbox_id,
            bwrap=bwrap,
            limits=self._limits,
            install_hosts=self._install_hosts,
            folder=folder,
            socket=Path(self._socket_path(sandbox_id)),
        )
        folder.mkdir(mode=0o700)
        with (folder / "supervisor.log").open("wb") as log:
            return Launch(spec, log, self._nursery)

    async def _claimed(
        self, launch: Launch, metadata: Mapping[str, str], timeout_s: int
    ) -> LocalSandbox:
        answer = await launch.claim(metadata, timeout_s)
        if "preview_port" in answer:
            return _sandbox(answer)
        await self._bury(launch.sandbox_id)
        if "refused" in answer:
            raise isolation.refusal(answer["refused"])
        raise SandboxError(f"no sandbox came up: {answer['failed']}")

    async def _bury(self, sandbox_id: str) -> None:
        folder = self._folder(sandbox_id)
        try:
            await to_thread.run_sync(registry.bury, folder)
        except OSError as error:
            raise SandboxError(f"remains of sandbox {sandbox_id} in {folder}: {error}") from error

    def _folder(self, sandbox_id: str) -> str:
        return str(self._state_dir / sandbox_id)

    def _socket_path(self, sandbox_id: str) -> str:
        return str(self._run_dir / f"{sandbox_id}.sock")


async def _ended(socket_path: str) -> bool:
    """Ask a supervisor for the end; it hangs up when everything is gone. False if it hangs."""
    with anyio.move_on_after(KILL_S):
        try:
            async with await anyio.connect_unix(socket_path) as stream:
                await stream.send(KILL)
                await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
            return True
    return False


async def _end_by_force(sandbox_id: str, folder: str) -> None:
    """End a supervisor that no longer listens; bubblewrap ends with it."""
    info = await to_thread.run_sync(registry.living, folder)
    if info is None:
        return
    process = os.pidfd_open(info["pid"])  # the lock it holds says that the number is its own
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        with anyio.move_on_after(KILL_S):
            await anyio.wait_readable(process)
            return
    finally:
        os.close(process)
    raise SandboxError(f"sandbox {sandbox_id} cannot be ended: look at process {info['pid']}")


def _sandbox(info: registry.Info) -> LocalSandbox:
    return LocalSandbox(
        info["sandbox_id"],
        socket_path=info["socket"],
        preview_port=info["preview_port"],
        may_install=info["may_install"],
    )


def _new_id() -> str:
    return f"{registry.ID_PREFIX}{os.urandom(8).hex()}"
