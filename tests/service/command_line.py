"""`./headrace` on a home of its own: as a person runs it, or the same commands in this process.

A process takes a second to start. What a command does and says is the same without one; how it is
started, is interrupted and ends is not.
"""

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from typer.testing import CliRunner

from service.cli import app
from service.settings import ROOT
from tests.service.processes import kill_all

_OURS = ("HEADRACE_", "E2B_", "ANTHROPIC_", "OPENAI_", "REDIS_URL", "DATABASE_URL")


@dataclass(frozen=True, slots=True)
class Started:
    """A command that runs, and what it has said so far on standard output and error."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def line_with(self, *texts: str) -> str:
        """The next line that holds one of these, once it comes."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if any(text in line for text in texts):
                return line
        raise AssertionError(f"it never said {texts}:\n{''.join(self.lines)}")

    def end(self, signal: int = 0) -> int:
        """Its exit code, once it has ended, by this signal if there is one; all is in `lines`."""
        assert self.process.stdout is not None
        self.process.send_signal(signal)
        self.lines.extend(self.process.stdout)
        return self.process.wait()


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The commands of one home, where everything that they started ends with the test."""

    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """That of this process, without a setting of ours that it may have."""
        others = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        own = {"HEADRACE_HOME": str(self.home), "HEADRACE_PORT": "0"}
        return {**others, **own, **self.variables, **more}

    def run(
        self, *command: str, fed: str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; it finds `fed` on its standard input."""
        return subprocess.run(
            [ROOT / "headrace", *command],
            env=self.environment(variables),
            input=fed,
            capture_output=True,
            text=True,
        )

    def json(self, *command: str) -> Any:
        """The one document that a command prints with `--json`."""
        done = self.run(*command, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def started(self, *command: str, **variables: str) -> Iterator[Started]:
        """A command that goes on while the block runs."""
        with subprocess.Popen(
            [ROOT / "headrace", *command],
            env=self.environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield Started(process)
            finally:
                process.kill()


class InThisProcess(CommandLine):
    """The same, where what is run to its end runs here. For tests in the main thread."""

    def run(
        self, *command: str, fed: str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = self.environment(variables)
        absent = dict.fromkeys(os.environ.keys() - environment.keys())
        with logging_of_its_own():
            done = CliRunner().invoke(app, command, input=fed, env={**absent, **environment})
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)


@contextmanager
def logging_of_its_own() -> Iterator[None]:
    """A command sends log output where it likes; here it goes back to where it went before."""
    configured, handlers = structlog.get_config(), logging.root.handlers[:]
    level, logging.root.handlers[:] = logging.root.level, []
    try:
        yield
    finally:
        structlog.configure(**configured)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


@contextmanager
def command_line_on(home: Path, **variables: str) -> Iterator[CommandLine]:
    """Commands on `home`; whatever they leave behind is ended."""
    try:
        yield CommandLine(home, variables)
    finally:
        kill_all(home)


@contextmanager
def in_this_process_on(home: Path, **variables: str) -> Iterator[InThisProcess]:
    """Commands on `home` without a process of their own; what they leave behind is ended."""
    try:
        yield InThisProcess(home, variables)
    finally:
        kill_all(home)
