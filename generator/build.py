"""One build under way: the job as its worker knows it, its parts, and its voice in the log."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import structlog
from obstore.exceptions import BaseError as ObstoreError

from eventstore import (
    Claim,
    CommandHandler,
    EventStoreError,
    Handled,
    ProgressLine,
    RedisUnavailable,
    patiently,
    read_progress,
)
from generator.artifacts import ArtifactStore
from generator.errors import DeadlinePassed, GenerationError, SandboxUnavailable
from generator.runner import Runner
from generator.sandbox import Sandbox, SandboxRuntime, SandboxRuntimeFactory
from generator.transcript import LogLine, Transcript, log_lines
from generator.workspace import Workspace
from schemas import Command, Job
from schemas.commands import NO_USAGE, Usage

log = structlog.get_logger()

KILL_S = 30.0
LOG_PATIENCE_S = 60.0
KEEP_LOG_S = 10.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each part of a build may take, in seconds."""

    code_s: float = 900
    create_s: float = 120
    upload_s: float = 120
    install_s: float = 600
    tests_s: float = 300
    call_s: float = 30
    """A single small request: start a server, read a log, store a file."""
    probe_s: float = 30
    job_s: float = 3600
    """All phases together."""
    sandbox_s: int = 3600
    """The life of a sandbox, and so of a preview."""


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Raises `DeadlinePassed` when the block takes longer."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise DeadlinePassed(what, seconds) from error


@dataclass(slots=True)
class Build:
    """The hands of `GenerationService`: what the phases share. One task uses it at a time."""

    job: Job
    claim: Claim
    handler: CommandHandler
    artifacts: ArtifactStore
    runner: Runner | None
    sandbox_runtime_factory: SandboxRuntimeFactory | None
    workspace_root: Path
    deadlines: Deadlines
    sandbox: Sandbox | None = None
    usage: Usage = NO_USAGE
    """What the current phase has used, and no event has told yet."""
    maybe_ready: bool = False
    """Whether the log may say READY although its answer has not arrived."""
    transcript: Transcript = field(init=False, repr=False)
    """Takes all that is said during this build."""
    _runtime: SandboxRuntime | None = field(default=None, repr=False)
    _files: Mapping[str, bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.transcript = Transcript(
            self._show_log,
            attempt=self.claim.attempt,
            phase=lambda: self.job.status.value,
            clock=self.handler.clock,
        )

    @property
    def marker(self) -> str:
        """What this build's app must answer with: no other build's app can know it."""
        return hashlib.sha256(f"{self.job.job}/{self.job.round}".encode()).hexdigest()[:16]

    @property
    def app_environment(self) -> dict[str, str]:
        """What an app is told about itself."""
        return {"HEADRACE_JOB": self.job.job, "HEADRACE_MARKER": self.marker}

    def runtime(self) -> SandboxRuntime:
        """The provider of sandboxes, made when it is first needed."""
        if self.sandbox_runtime_factory is None:
            raise SandboxUnavailable("this worker was started without sandboxes")
        if self._runtime is None:
            self._runtime = self.sandbox_runtime_factory()
        return self._runtime

    async def tell(self, *commands: Command) -> Handled:
        """Carry out commands on the job, as its owner: all of them, or none.

        Waits for a Redis that is away: what a phase made, and what was paid for it, is not thrown
        away for a restart.
        """
        handled = await self.handler.handle(
            self.claim.ref, *commands, job=self.job, claim=self.claim, patience_s=LOG_PATIENCE_S
        )
        self.job = handled.job
        return handled

    async def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Show a line of progress. Raises `Fenced`; a Redis that is away costs the line only."""
        try:
            await self.handler.store.progress(self.claim, kind, data, time=self.handler.clock())
        except RedisUnavailable as error:
            log.warning("progress_lost", job=self.job.job, error=str(error))

    async def note_file(self, path: str, size_bytes: int) -> None:
        """Show that a file was written."""
        await self.note("file", {"path": path, "size_bytes": size_bytes})

    async def said(self, text: str) -> None:
        """Show what the model says, put together to lines."""
        await self.transcript.take("model", text)

    async def used(self, usage: Usage) -> None:
        """Keep what the runner of this phase has used so far."""
        self.usage = usage

    async def keep_log(self) -> str | None:
        """Keep all that was said in this build; what the event that ends the job calls `log`.

        None when nothing was said, or it cannot be kept: a log must not keep its job from ending.
        """
        try:
            with deadline(KEEP_LOG_S, "keeping the log"):
                await self.transcript.flush()
                # Of an attempt whose worker is gone there is what it has shown.
                earlier = await self._earlier_lines() if self.claim.attempt > 1 else ()
                content = self.transcript.whole(earlier)
                return await self.artifacts.put_blob(content) if content else None
        except (EventStoreError, GenerationError, ObstoreError, OSError) as error:
            log.warning("log_not_kept", job=self.job.job, exc_info=error)
            return None

    async def _earlier_lines(self) -> list[LogLine]:
        """What earlier attempts have shown."""

        async def read() -> list[ProgressLine]:
            return [one async for one in read_progress(self.handler.store, self.claim.ref)]

        try:
            said = await patiently(read, KEEP_LOG_S / 2)
        except RedisUnavailable as error:
            log.warning("earlier_log_lost", job=self.job.job, error=str(error))
            return []
        return [line for line in log_lines(said) if line.attempt < self.claim.attempt]

    async def _show_log(self, said: Mapping[str, Any]) -> bool:
        store = self.handler.store
        return await store.progress(self.claim, "log", said, time=self.handler.clock())

    @property
    def workspace_path(self) -> Path:
        """Where the app's files lie on this machine; named after the job, not the build number."""
        return self.workspace_root / self.job.job

    def workspace(self) -> Workspace:
        """The job's workspace; its writes are shown as progress."""
        return Workspace(self.workspace_path, on_file=self.note_file)

    async def store_files(self, files: Mapping[str, bytes]) -> str:
        """Keep the app's files; the digest of their manifest."""
        self._files = files
        with deadline(self.deadlines.upload_s, "storing the files"):
            return await self.artifacts.put(files, job=self.job.job)

    async def files(self) -> Mapping[str, bytes]:
        """The app's files, from the artifact store if another worker wrote them."""
        if self._files is None:
            with deadline(self.deadlines.upload_s, "loading the files"):
                self._files = (
                    await self.artifacts.get(self.job.manifest) if self.job.manifest else {}
                )
        return self._files

    async def end_sandbox(self) -> None:
        """End the sandbox of this job, whoever made it. Never raises.

        A provider that does not answer is logged; the sandbox then ends by its own timeout.
        """
        sandbox_id = self.sandbox.sandbox_id if self.sandbox else self.job.sandbox_id
        if sandbox_id is None:
            return
        try:
            with anyio.fail_after(KILL_S, shield=True):
                if self.sandbox:
                    await self.sandbox.close()
                await self.runtime().kill(sandbox_id)
        except Exception:  # whatever a provider raises, the job must still end
            log.exception("sandbox_not_ended", job=self.job.job, sandbox_id=sandbox_id)
        self.sandbox = None
