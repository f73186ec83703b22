"""Errors of the projector.

ProjectorError
├── HistoryBroken       a job's events are not 1, 2, 3, …
├── LogBroken           the log lacks an event behind the checkpoint
└── CheckpointMoved     another projector folded the batch that was read
"""


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


class CheckpointMoved(ProjectorError):
    """What was prefetched is not what comes next any more. Drop it and read again."""
