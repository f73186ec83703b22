"""What the generator asks of whoever writes the code.

Implementations stand in `runners/`: `template` (offline, deterministic). One contract suite runs
over all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from generator.workspace import Workspace


@dataclass(frozen=True, slots=True)
class RunnerTask:
    """What to write: the goal, and on an iteration or repair what is there and what went wrong."""

    job: str
    goal: str
    round: int = 1
    base_files: Mapping[str, bytes] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run of the runner cost. Tokens as the provider counted them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


class Runner(Protocol):
    """Writes an app's files into a workspace."""

    @property
    def name(self) -> str:
        """Short name that stands in events: `template`, `llm`."""
        ...

    async def run(self, task: RunnerTask, workspace: Workspace) -> Usage:
        """Write the app for `task` into `workspace`, which holds `task.base_files` already.

        The app serves HTTP on port 8080 (or `$PORT`), answers `GET /healthz` with the JSON object
        `{"status": "ok", "job": $HEADRACE_JOB, "build": $HEADRACE_MARKER}`, and declares its
        commands in `headrace.toml`. Raises `RunnerFailed` with a message for people.
        """
        ...
