"""`given(events).when(command).then(events)`: one decision of a job as one sentence."""

from dataclasses import dataclass
from typing import Self

from schemas import Command, CommandRefused, Job, decide, fold
from schemas.events import Known
from tests.histories import recorded


@dataclass(frozen=True, slots=True)
class Decided:
    """What a command led to."""

    history: tuple[Known, ...]
    events: tuple[Known, ...]
    refusal: CommandRefused | None

    def then(self, *events: Known) -> "Given":
        """Exactly these events; the sentence may go on behind them."""
        assert self.refusal is None, f"refused: {self.refusal}"
        assert self.events == events
        return Given((*self.history, *events))

    def then_nothing(self) -> "Given":
        """The command is taken, and there is nothing to record."""
        return self.then()

    def then_refused(self, refusal: type[CommandRefused], reason: str = "") -> None:
        """Exactly this refusal, no subclass of it, with `reason` in its message."""
        assert type(self.refusal) is refusal, f"{self.refusal!r}, {self.events}"
        assert reason in str(self.refusal)


@dataclass(frozen=True, slots=True)
class Given:
    """A job with a history."""

    history: tuple[Known, ...]

    @property
    def job(self) -> Job:
        """The job that the history tells."""
        job = fold(recorded(self.history))
        assert job is not None
        return job

    def and_then(self, *events: Known) -> Self:
        """More of its history."""
        return type(self)((*self.history, *events))

    def when(self, command: Command) -> Decided:
        """The job is asked for something."""
        job = fold(recorded(self.history))
        try:
            return Decided(self.history, tuple(decide(job, command)), None)
        except CommandRefused as refusal:
            return Decided(self.history, (), refusal)


def given(*history: Known) -> Given:
    """A job to which this has happened; nothing: a job that is not there."""
    return Given(history)
