"""What the generator asks of whoever writes the code.

Implementations stand in `runners/`: `template` (offline, deterministic) and `llm` (a model of a
provider). One contract suite runs over all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from generator.workspace import Workspace
from schemas.commands import Usage
from schemas.events import Fact


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the round before did not pass: a command of the app, its exit code (None: it did not
    end) and the relevant tail of what it printed.
    """

    message: str
    command: str
    exit_code: int | None
    output: str


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the run may still use; None: no limit. Tokens are input and output together."""

    tokens: int | None = None
    cost_usd: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RunnerTask:
    """What to write: the goal, and on an iteration or repair what is there and what went wrong.

    The workspace holds `base_files` already: those of the base build (then `goal` says what to
    change), or of the round before (then `failure` says what to mend). It also holds the files
    named in `drafted`, which an earlier attempt at this same task had finished when its worker
    ended: they are paid for.
    """

    job: str
    goal: str
    round: int = 1
    base_files: Mapping[str, bytes] = field(default_factory=dict)
    failure: Failure | None = None
    drafted: frozenset[str] = frozenset()
    allowance: Allowance = Allowance()


class Listener(Protocol):
    """Who a runner talks to while it works."""

    async def said(self, text: str) -> None:
        """Show what the model says, as it comes; pieces are put together before they are shown."""
        ...

    async def used(self, usage: Usage) -> None:
        """Keep what this run has used so far, all of it: it counts also if the run does not end."""
        ...

    async def noted(self, facts: Mapping[str, Fact]) -> None:
        """Keep what else is to be known of how this run worked: it stands in the evidence."""
        ...


class Runner(Protocol):
    """Writes an app's files into a workspace.

    Each run has a thread and an event loop of its own: keep no connection from one to the next.
    """

    @property
    def name(self) -> str:
        """Short name that stands in events: `template`, `llm`."""
        ...

    async def run(self, task: RunnerTask, workspace: Workspace, listener: Listener) -> Usage:
        """Write the app for `task` into `workspace`; what the whole run used.

        The app serves HTTP on port 8080 (or `$PORT`), answers `GET /healthz` with the JSON object
        `{"status": "ok", "job": $HEADRACE_JOB, "build": $HEADRACE_MARKER}`, and declares its
        commands in `headrace.toml`. Raises `RunnerFailed` with a message for people, and
        `RunnerBusy` where the same run may succeed later: it then goes on from what is finished.
        """
        ...
