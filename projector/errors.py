"""Errors of the projector.

ProjectorError
├── HistoryBroken       a job's events are not 1, 2, 3, …
├── LogBroken           the log lacks an event behind the checkpoint
├── LogForked           the log's server was superseded before it appended this
└── CheckpointMoved     another projector folded the batch that was read
"""

from schemas import Position


class ProjectorError(Exception):
    """Base class of this package's errors."""


class HistoryBroken(ProjectorError):
    """A job's history has a hole or no beginning: its row would be invented. A person must look."""

    def __init__(self, job: str, expected: int, found: int) -> None:
        self.job = job
        self.expected = expected
        self.found = found
        super().__init__(f"job {job}: version {expected} expected, {found} found")


class LogBroken(ProjectorError):
    """An entry of the log is gone that was never folded. A person must look; nothing is skipped."""

    def __init__(self, partition: int, expected: int, found: int) -> None:
        self.partition = partition
        self.expected = expected
        self.found = found
        super().__init__(
            f"partition {partition}: the event with seq {expected} comes next, the log has {found}"
        )


class LogForked(ProjectorError):
    """Events of a server that another has superseded. They never happened; reconnect."""

    def __init__(self, position: Position) -> None:
        self.position = position
        super().__init__(
            f"{position} was appended by a Redis that another has superseded: REDIS_URL of this "
            "projector must name the new one"
        )


class CheckpointMoved(ProjectorError):
    """What was prefetched is not what comes next any more. Drop it and read again."""
