"""How long things may take, and how patiently a step is tried again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from generator.errors import DeadlinePassed


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
    """All phases together, of one attempt."""
    sandbox_s: int = 3600
    """The life of a sandbox, and so of a preview."""
    least_life_s: float = 1200
    """A sandbox that ends sooner is not gone on with: its preview would end too soon."""


@contextmanager
def deadline(seconds: float, what: str, remedy: str = "try again") -> Iterator[None]:
    """Raises `DeadlinePassed` when the block takes longer."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as error:
        raise DeadlinePassed(what, seconds, remedy) from error


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a step is tried: `tries` times at most, with `total_s` of waits at most."""

    tries: int = 5
    total_s: float = 300
    first_s: float = 1.0
    """The first wait is shorter than this; each further one may be twice as long …"""
    longest_s: float = 60.0
    """… up to this."""

    def wait_s(self, tries: int, asked_s: float | None, chance: float) -> float:
        """How long to wait after so many failed tries; `chance` is in [0, 1).

        Exponential with full jitter, so that many who failed at once do not come back at once:
        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        Where the provider said when to come back (`asked_s`), the jitter comes on top of it.
        """
        if asked_s is not None:
            return asked_s + chance * self.first_s
        return chance * min(self.longest_s, self.first_s * float(2 ** (tries - 1)))
