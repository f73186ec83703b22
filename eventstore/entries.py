"""What is read from the log: an event and its place."""

from typing import NamedTuple

from schemas import Position, RecordedEvent


class LogEntry(NamedTuple):
    """An event and its place in the log."""

    position: Position
    event: RecordedEvent
