"""A run of the LLM runner against the loopback server, and what it showed on its way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from generator.runner import Runner, RunnerTask
from generator.runners.llm import PROVIDERS, Access, Bounds, LLMRunner, Price
from generator.workspace import Workspace
from schemas.commands import NO_USAGE, Usage
from schemas.events import Fact
from tests.llm_server import Call, LLMServer, Turn

MODELS = ("anthropic:claude-haiku-4-5", "openai:gpt-5-mini", "openai-chat:gpt-5-mini")
"""Of every protocol one."""

MANIFEST = '[commands]\ntest = "python3 -m unittest"\nstart = "python3 app.py"\n'
PATIENT = Bounds(pause_s=0.0)


def write(path: str, content: str = "x = 1\n") -> Call:
    return Call("write_file", {"path": path, "content": content})


WHOLE_APP = (write("headrace.toml", MANIFEST), write("app.py"))
DONE = Turn((Call("done", {"summary": "all written"}),))


def access(server: LLMServer, *, key: str | None = None) -> dict[str, Access]:
    """The providers' places, taken by the loopback server."""
    key = key or server.api_key
    urls = {"ANTHROPIC_API_KEY": server.url, "OPENAI_API_KEY": f"{server.url}/v1"}
    return {variable: Access(key, urls[variable]) for variable in PROVIDERS.values()}


def runner(
    server: LLMServer,
    *models: str,
    bounds: Bounds = PATIENT,
    prices: Mapping[str, Price] | None = None,
    key: str | None = None,
) -> LLMRunner:
    return LLMRunner(models or MODELS[:1], access(server, key=key), prices=prices, bounds=bounds)


@dataclass
class Run:
    """A workspace in which a runner works, with all that it tells."""

    root: Path
    said: list[str] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    wrote: dict[str, anyio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workspace = Workspace(self.root, on_written=self._on_written)

    async def _on_written(self, sizes: Mapping[str, int]) -> None:
        for path in sizes:
            self.written.append(path)
            if path in self.wrote:
                self.wrote[path].set()

    async def of(self, runner: Runner, task: RunnerTask | None = None) -> Usage:
        """Run it, in the workspace that the task asks for."""
        task = task or RunnerTask(job="job-1", goal="a list of books")
        await self.workspace.clear()
        await self.workspace.load(task.base_files)
        return await runner.run(task, self.workspace, _Listening(self))

    @property
    def used(self) -> Usage:
        return self.usages[-1] if self.usages else NO_USAGE


@dataclass(frozen=True)
class _Listening:
    """Writes down what a runner tells."""

    run: Run

    async def said(self, text: str) -> None:
        self.run.said.append(text)

    async def used(self, usage: Usage) -> None:
        self.run.usages.append(usage)

    async def noted(self, facts: Mapping[str, Fact]) -> None:
        self.run.facts = dict(facts)
