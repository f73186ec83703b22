"""One build under way: the job as its worker knows it, its parts, and its voice in the log."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio import to_thread
from obstore.exceptions import BaseError as ObstoreError

from eventstore import (
    Claim,
    CommandHandler,
    EventStoreError,
    Handled,
    PostgresUnavailable,
    ProgressLine,
    RedisUnavailable,
    patiently,
    read_progress,
)
from generator.artifacts import ArtifactStore
from generator.budget import DayLeft, added, day_is_passed, overspent
from generator.deadlines import Deadlines, Patience, deadline
from generator.drafts import NO_DRAFT, STORE_ERRORS, Draft, Drafts
from generator.errors import BudgetSpent, DeadlinePassed, GenerationError, SandboxUnavailable
from generator.rate import Rate
from generator.redaction import KEYS_ONLY, Redactor
from generator.runner import Runner
from generator.sandbox import Sandbox, SandboxRuntime, SandboxRuntimeFactory
from generator.secrets import Secrets
from generator.transcript import LogLine, Transcript, log_lines
from generator.workspace import Workspace, remove_workspaces
from schemas import Command, Job, Phase
from schemas.commands import NO_USAGE, Usage
from schemas.events import Fact

log = structlog.get_logger()

LOG_PATIENCE_S = 60.0
KEEP_LOG_S = 10.0


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
    patience: Patience
    sandbox_rate: Rate | None = None
    day_left: DayLeft | None = None
    redactor: Redactor = KEYS_ONLY
    """What all that leaves this worker goes through."""
    secrets: Secrets | None = None
    app_secrets: Mapping[str, str] | None = field(default=None, repr=False)
    """The project's secrets by name, once they were read."""
    sandbox: Sandbox | None = None
    """The sandbox that this worker works in."""
    has_strays: bool = False
    """Whether the provider may have a sandbox of this job that the log does not know."""
    draft: Draft = NO_DRAFT
    """What an earlier attempt at the code of this round has left."""
    usage: Usage = NO_USAGE
    """What was used in the current phase, by earlier attempts too, and no event has told yet."""
    has_more: anyio.Event = field(default_factory=anyio.Event)
    """Set while there is more than the last draft has."""
    is_cancelling: bool = False
    """Whether a cancel was requested, so that nobody will go on with this build."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """How the runner of this phase worked."""
    transcript: Transcript = field(init=False, repr=False)
    """Takes all that is said during this build."""
    _carried: Usage = NO_USAGE
    _has_workspace: bool = False
    _may_be_named: bool = False
    """Whether the log may say READY with this attempt's workspace, although no answer said so."""
    _drafts: Drafts | None = field(default=None, repr=False)
    _runtime: SandboxRuntime | None = field(default=None, repr=False)
    _files: dict[str, Mapping[str, bytes]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.transcript = Transcript(
            self._show_log,
            attempt=self.claim.attempt,
            phase=lambda: self.job.status.value,
            redactor=lambda: self.redactor,
            clock=self.handler.clock,
        )

    def end_transcript(self) -> None:
        """Nothing more is said in this build."""
        self.transcript.close()
        # It holds the build: together they would stay until the collector looks for such rings,
        # which it does with every job in hand.
        del self.transcript

    @property
    def marker(self) -> str:
        """What this build's app must answer with: no other build's app can know it."""
        return hashlib.sha256(f"{self.job.job}/{self.job.round}".encode()).hexdigest()[:16]

    @property
    def app_facts(self) -> dict[str, str]:
        """What an app is told about itself."""
        return {"HEADRACE_JOB": self.job.job, "HEADRACE_MARKER": self.marker}

    def know_secrets(self, secrets: Mapping[str, str]) -> None:
        """Keep what the app may know. No command of it has run in this attempt before.

        From here on their values leave the worker nowhere.
        """
        self.app_secrets = dict(secrets)
        self.redactor = self.redactor.knowing(secrets.values())

    def runtime(self) -> SandboxRuntime:
        """The provider of sandboxes, made when it is first needed."""
        if self.sandbox_runtime_factory is None:
            raise SandboxUnavailable("this worker was started without sandboxes")
        if self._runtime is None:
            self._runtime = self.sandbox_runtime_factory()
        return self._runtime

    async def leave_sandboxes(self) -> None:
        """Give back what this worker holds of sandboxes; the build's own lives on."""
        with anyio.CancelScope(shield=True):
            try:
                if self.sandbox is not None:
                    await self.sandbox.close()
            finally:
                if self._runtime is not None:
                    await self._runtime.close()

    # --- the log ---------------------------------------------------------------------------------

    async def tell(self, *commands: Command) -> Handled:
        """Carry out commands on the job, as its owner: all of them, or none, without secrets.

        Waits for a Redis that is away: what a phase made, and what was paid for it, is not thrown
        away for a restart.
        """
        handled = await self.handler.handle(
            self.claim.ref,
            *self.redactor.within(commands),
            job=self.job,
            claim=self.claim,
            patience_s=LOG_PATIENCE_S,
        )
        self.job = handled.job
        return handled

    async def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Show a line of progress. Raises `Fenced`; a Redis that is away costs the line only."""
        data = self.redactor.within(data)
        try:
            await self.handler.store.progress(self.claim, kind, data, time=self.handler.clock())
        except RedisUnavailable as error:
            log.warning("progress_lost", job=self.job.job, error=str(error))

    async def note_files(self, sizes: Mapping[str, int]) -> None:
        """Show that files were written (path to size in bytes); their lines share a trip."""
        self.has_more.set()
        try:
            async with anyio.create_task_group() as tasks:
                for path, size_bytes in sizes.items():
                    tasks.start_soon(self.note, "file", {"path": path, "size_bytes": size_bytes})
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def said(self, text: str) -> None:
        """Show what the model says, put together to lines."""
        await self.transcript.take("model", text)

    async def noted(self, facts: Mapping[str, Fact]) -> None:
        """Keep what the runner says of how it worked."""
        self.facts = dict(facts)

    async def keep_log(self, last_words: str | None = None) -> str | None:
        """Keep all that was said in this build; what the event that ends the job calls `log`.

        Behind it `last_words`: why it ended.

        None when nothing was said, or it cannot be kept: a log must not keep its job from ending.
        """
        if self.transcript.is_empty and self.claim.attempt == 1 and not last_words:
            return None
        try:
            with deadline(KEEP_LOG_S, "keeping the log"):
                await self.transcript.flush()
                if last_words:
                    await self.transcript.say("note", last_words)
                    await self.transcript.flush()
                # Of an attempt whose worker is gone there is what it has shown.
                earlier = await self._earlier_lines() if self.claim.attempt > 1 else ()
                content = self.transcript.whole(earlier)
                if not content:
                    return None
                return await self.artifacts.put_blob(content, job=self.job.job)
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
        return [
            replace(line, text=self.redactor.text(line.text))  # its worker may have known less
            for line in log_lines(said)
            if line.attempt < self.claim.attempt
        ]

    async def _show_log(self, said: Mapping[str, Any]) -> bool:
        store = self.handler.store
        return await store.progress(self.claim, "log", said, time=self.handler.clock())

    # --- what is used ----------------------------------------------------------------------------

    def begin_run(self) -> None:
        """What was used so far stays; a run tells of its own use from zero on."""
        self._carried = self.usage

    async def used(self, usage: Usage) -> None:
        """Keep what the run has used so far. Raises `BudgetSpent` when that is too much."""
        self.usage = added(self._carried, usage)
        self.has_more.set()
        self.check_budget()
        await self._check_day()

    async def _check_day(self) -> None:
        """Raises `BudgetSpent` when the tenant's jobs have used more today than they may.

        A Redis that is away costs the look only: the next one sees it all.
        """
        if self.day_left is None or self.usage == NO_USAGE:
            return
        try:
            left = await self.day_left(self.job, self.usage)
        except (RedisUnavailable, PostgresUnavailable) as error:
            log.warning("day_not_looked_at", job=self.job.job, error=str(error))
            return
        if what := day_is_passed(left):
            raise day_spent(self.job, what)

    def check_budget(self) -> None:
        """Raises `BudgetSpent` when the job has used more than its limits allow."""
        if passed := overspent(self.job, self.usage):
            raise BudgetSpent(
                f"the job was stopped: {passed}. Ask again with a higher limit, or for less at once"
            )

    # --- drafts ----------------------------------------------------------------------------------

    @property
    def drafts(self) -> Drafts:
        """Where this job's drafts are kept."""
        if self._drafts is None:
            self._drafts = self.artifacts.drafts(self.job.job)
        return self._drafts

    async def keep_draft(self, draft: Draft) -> None:
        """Keep what the runner has finished. A store that is away costs the draft only."""
        try:
            with deadline(self.deadlines.call_s, "keeping the draft"):
                await self.drafts.keep(draft, round_=self.job.round, attempt=self.claim.attempt)
        except (*STORE_ERRORS, DeadlinePassed) as error:
            log.warning("draft_not_kept", job=self.job.job, error=str(error))

    async def take_over_draft(self) -> None:
        """Find what an earlier attempt at the code of this round has left, if one began it."""
        if self.runner is None or self.claim.attempt == 1 or self.job.next_phase is not Phase.CODE:
            return
        try:
            with deadline(self.deadlines.call_s, "reading the draft"):
                self.draft = await self.drafts.newest(
                    round_=self.job.round, before=self.claim.attempt
                )
        except (*STORE_ERRORS, DeadlinePassed) as error:
            log.warning("draft_not_read", job=self.job.job, error=str(error))
        self.usage = self.draft.usage

    async def remove_drafts(self) -> None:
        """Remove what was kept for others to go on with: it is further on, or has ended."""
        if self.runner is None:
            return
        try:
            with anyio.move_on_after(self.deadlines.call_s, shield=True):
                await self.drafts.remove()
        except STORE_ERRORS as error:
            log.warning("drafts_not_removed", job=self.job.job, error=str(error))

    # --- files -----------------------------------------------------------------------------------

    @property
    def workspace_path(self) -> Path:
        """Where this attempt has the app's files on this machine.

        A folder of its own: a worker that was taken over from, and does not know it yet, writes
        where nobody reads.
        """
        return self.workspace_root / self.job.job / str(self.claim.attempt)

    def workspace(self) -> Workspace:
        """This attempt's workspace; its writes are shown as progress, and hold no known secret."""
        self._has_workspace = True

        async def note(sizes: Mapping[str, int]) -> None:
            for path in workspace.redacted & sizes.keys():
                await self.transcript.say("note", f"a secret was taken out of {path}")
            await self.note_files(sizes)

        workspace = Workspace(
            self.workspace_path,
            on_written=note,
            redact=lambda text: self.redactor.without_values(text),
        )
        return workspace

    async def lay_out_files(self) -> None:
        """See that the app's files lie in the workspace, also if an earlier attempt wrote them.

        READY is about to name it: from here on it stays unless the log says otherwise.
        """
        self._may_be_named = True
        if not self._has_workspace:
            workspace = self.workspace()
            await workspace.clear()
            await workspace.load(await self.files())

    async def remove_workspaces(self) -> None:
        """Remove what is of no use any more: all but the files of a READY build, which stay.

        Of a job that goes on elsewhere that is this attempt's own: what is finished of it is in the
        artifact store.
        """
        if self.runner is None or (self._may_be_named and not self.job.is_terminal):
            return
        job, own = self.job, self.workspace_path

        def is_of_no_use(workspace: Path) -> bool:
            return str(workspace) != job.workspace_path if job.is_terminal else workspace == own

        with anyio.move_on_after(self.deadlines.call_s, shield=True):
            await to_thread.run_sync(
                remove_workspaces, own.parent, is_of_no_use, abandon_on_cancel=True
            )

    async def store_files(self, files: Mapping[str, bytes]) -> str:
        """Keep the app's files; the digest of their manifest."""
        with deadline(self.deadlines.upload_s, "storing the files"):
            manifest = await self.artifacts.put(files, job=self.job.job)
        self._files[manifest] = files
        return manifest

    async def files_of(self, manifest: str) -> Mapping[str, bytes]:
        """The files of a manifest, from the artifact store if another worker wrote them."""
        if manifest not in self._files:
            with deadline(self.deadlines.upload_s, "loading the files"):
                self._files[manifest] = await self.artifacts.get(manifest)
        return self._files[manifest]

    async def files(self) -> Mapping[str, bytes]:
        """The app's files as its code phase left them."""
        return await self.files_of(self.job.manifest) if self.job.manifest else {}

    async def base_files(self) -> Mapping[str, bytes]:
        """What this round's code goes on from: the round before, else the base build, else none."""
        manifest = self.job.manifest if self.job.round > 1 else self.job.base_manifest
        return await self.files_of(manifest) if manifest else {}


def day_spent(job: Job, what: str) -> BudgetSpent:
    """The error for a job whose tenant's day has no more of it."""
    return BudgetSpent(
        f"the {what} of tenant {job.tenant} for today are used up: submit it again after midnight "
        "UTC, or raise the quota"
    )
