"""What is read from the log: an event and its place."""

from dataclasses import dataclass

from schemas import Position, RecordedEvent


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An event and its place in the log."""

    position: Position
    event: RecordedEvent
