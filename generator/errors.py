"""Errors of the generator.

GenerationError
├── RunnerFailed            the runner gave up
│   ├── RunnerBusy          the runner's provider refuses for now
│   ├── RunnerUnavailable   these settings cannot reach a model
│   └── GoalRefused         the model will not do it
├── BadPath                 a file outside the workspace, or one that cannot exist there
├── ManifestInvalid         the app's headrace.toml cannot be used
├── ArtifactMissing         a stored file is gone or damaged
├── ArtifactsUnavailable    the store of files does not answer
├── CheckFailed             the app does not do what it must
├── NeedsReview             repairs did not help, or may not go on
├── BudgetSpent             a limit of the job is reached
├── SecretsUnavailable      the project's secrets cannot be read now
├── SecretsUnreadable       the project's secrets cannot be decrypted here
├── DeadlinePassed          a step took longer than it may
├── WorkersLost             worker after worker ended while it ran this build
└── SandboxError
    ├── SandboxUnavailable  this machine or these settings cannot make sandboxes
    ├── SandboxBusy         the provider refuses for now
    ├── SandboxGone         the sandbox has ended
    ├── SandboxFull         a limit of the sandbox is reached
    └── CommandTimeout      a command did not end in time

A build that fails is an event, not an exception: `GenerationService` turns each of these into
`JobFailed`. Their text is what a person reads, so it says what to do.
"""


class GenerationError(Exception):
    """Base class; `kind` stands in `JobFailed`. `may_pass`: the same step may succeed later."""

    kind = "internal"
    may_pass = False


class RunnerFailed(GenerationError):
    """The runner could not write the app. Try again, or reword the goal."""

    kind = "runner"


class RunnerBusy(RunnerFailed):
    """The runner's provider is at a limit. Wait (`retry_after_s` if it said how long), try again.

    What the run had used by then it has told its listener.
    """

    may_pass = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class RunnerUnavailable(RunnerFailed):
    """No model can be reached with these settings, now or later: the message says what to set."""

    kind = "runner_unavailable"


class GoalRefused(RunnerFailed):
    """The model, or a filter of its provider, refuses this goal. Another wording may help."""

    kind = "refused"


class BadPath(GenerationError):
    """A runner named a file outside the workspace, or a name no file can have."""

    kind = "bad_path"

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(f"file {path!r} refused: {reason}")


class ManifestInvalid(GenerationError):
    """The app's `headrace.toml` is missing, is not TOML, or lacks a command."""

    kind = "manifest"


class ArtifactMissing(GenerationError):
    """A stored file is gone or its digest does not match; the build must be made again.

    `what` it is: a manifest, or a file by its path.
    """

    kind = "artifact"

    def __init__(self, digest: str, what: str, reason: str) -> None:
        self.digest = digest
        self.what = what
        super().__init__(f"{what} cannot be had from the artifacts: {reason} ({digest})")


class ArtifactsUnavailable(GenerationError):
    """The store of files cannot be reached, or refuses. Trying again may help."""

    kind = "artifacts_unavailable"
    may_pass = True

    def __init__(self, reason: str) -> None:
        super().__init__(f"the store of files does not answer: {reason}")


class CheckFailed(GenerationError):
    """The app was built but does not pass: its own tests, its start, or the probe."""

    kind = "check"

    def __init__(self, message: str, *, command: str, exit_code: int | None, output: str) -> None:
        self.command = command
        self.exit_code = exit_code
        self.output = output
        super().__init__(message)


class NeedsReview(GenerationError):
    """Repairs did not help, or may not go on; the text tells what was tried."""

    kind = "needs_review"


class BudgetSpent(GenerationError):
    """The job has used what its limits allow. Ask again with a higher limit, or for less."""

    kind = "budget"


class SecretsUnavailable(GenerationError):
    """Who keeps the secrets does not answer. Trying again may help."""

    kind = "secrets_unavailable"
    may_pass = True

    def __init__(self, reason: str) -> None:
        super().__init__(f"the project's secrets cannot be read: {reason}")


class SecretsUnreadable(GenerationError):
    """A secret cannot be decrypted with the keys of this worker: the message says what to do."""

    kind = "secrets"


class DeadlinePassed(GenerationError):
    """A step, or the whole build, took too long. Trying again may help."""

    kind = "timeout"
    may_pass = True

    def __init__(self, what: str, seconds: float, remedy: str = "try again") -> None:
        self.what = what
        self.seconds = seconds
        super().__init__(f"{what} did not end within {seconds:g} s: {remedy}")


class WorkersLost(GenerationError):
    """The build seems to end its workers. It is given up before it takes more of them."""

    kind = "workers_lost"

    def __init__(self, deliveries: int) -> None:
        self.deliveries = deliveries
        super().__init__(
            f"{deliveries} workers in a row ended while they ran this build and none got further "
            "than those before: it is not tried again by itself. Submitting the goal again, worded "
            "differently, may help"
        )


class SandboxError(GenerationError):
    """Base class of what a sandbox provider raises; anything not named below is worth a retry."""

    kind = "sandbox"
    may_pass = True


class SandboxUnavailable(SandboxError):
    """Sandboxes cannot be made here, now or later: the message names the reason and ways out."""

    kind = "sandbox_unavailable"
    may_pass = False


class SandboxBusy(SandboxError):
    """The provider is at a limit. Wait (`retry_after_s` if it said how long) and try again."""

    kind = "sandbox_busy"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class SandboxGone(SandboxError):
    """The sandbox has ended (timeout, kill, crash). Make a new one from the build's files."""

    kind = "sandbox_gone"
    may_pass = False

    def __init__(self, sandbox_id: str) -> None:
        self.sandbox_id = sandbox_id
        super().__init__(f"sandbox {sandbox_id} has ended")


class SandboxFull(SandboxError):
    """Files do not fit into the sandbox, or another of its limits is reached."""

    kind = "sandbox_full"
    may_pass = False


class CommandTimeout(SandboxError):
    """A command was ended after `timeout_s`; `output` is the tail of what it printed."""

    kind = "timeout"
    may_pass = False

    def __init__(self, command: str, timeout_s: float, output: str) -> None:
        self.command = command
        self.timeout_s = timeout_s
        self.output = output
        super().__init__(f"`{command}` did not end within {timeout_s:g} s")
