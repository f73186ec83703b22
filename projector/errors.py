"""Errors of the projector.

ProjectorError
├── HistoryBroken       a job's events are not 1, 2, 3, …
├── LogBroken           the log lacks an event behind the checkpoint
├── LogForked           the log's server was superseded before it appended this
├── ModelNewer          the read model was made by a newer version of this program
├── CheckpointMoved     another projector folded the batch that was read
├── RowRefused          a projection's own code fails over a job
├── FoldingStalled      nobody folds a partition to its end
├── NotParked           the job that was to be retried or discarded is not parked
└── ReplayRefused       a rebuild cannot begin, or cannot go on
    ├── ReplayRunning   another one is under way
    ├── ProcessLost     a process that folded has ended
    ├── ArchiveShort    the archive lacks events that were folded
    ├── JobDetached     the archive lacks the events of a parked job
    ├── DiskTooSmall    the copy would not fit
    ├── ObjectsInTheWay something of somebody's depends on the tables that would be replaced
    ├── StillVerifying  a verification of them does not end
    └── SwapRefused     readers did not let go of the tables
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


class ModelNewer(ProjectorError):
    """This process does not know all that it would have to fold. Start a newer version of it."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        super().__init__(
            f"the read model has tables that this process is too old for ({', '.join(names)}): "
            "start the newer version"
        )


class CheckpointMoved(ProjectorError):
    """What was prefetched is not what comes next any more. Drop it and read again."""


class RowRefused(ProjectorError):
    """A projection cannot make a row of what its events made of a job: that job is to be parked."""

    def __init__(self, projection: str, error: Exception) -> None:
        self.projection = projection
        self.error = error
        super().__init__(f"{projection}: {type(error).__name__}: {error}")


class FoldingStalled(ProjectorError):
    """Another projector holds a partition and does not go on. It is freed of it within seconds."""

    def __init__(self, partition: int, seq: int) -> None:
        self.partition = partition
        self.seq = seq
        super().__init__(
            f"partition {partition} is not folded past seq {seq}, and another process holds it: "
            "see pg_stat_activity for whoever has headrace.fold_lock"
        )


class NotParked(ProjectorError):
    """There is nothing to retry or discard. `replay parked list` says which jobs are parked."""

    def __init__(self, job: str) -> None:
        self.job = job
        super().__init__(f"job {job} is not parked: `replay parked list` names those that are")


class ReplayRefused(ProjectorError):
    """Nothing was changed: the live read model is as it was."""


class ReplayRunning(ReplayRefused):
    """Rebuilding, retrying and erasing come one at a time. Try again when the other has ended."""

    def __init__(self) -> None:
        super().__init__(
            "another rebuild, retry or erasure is under way: try again when it is done"
        )


class ProcessLost(ReplayRefused):
    """One of the processes that fold has ended. Try again with fewer of them."""

    def __init__(self) -> None:
        super().__init__(
            "a process that folded has ended, maybe for lack of memory: nothing was changed; try "
            "again with --workers 1"
        )


class ArchiveShort(ReplayRefused):
    """A part of the archive was detached or lost: what it held could not be folded again."""

    def __init__(self, partition: int, folded: int, archived: int) -> None:
        self.partition = partition
        self.folded = folded
        self.archived = archived
        super().__init__(
            f"partition {partition}: {folded} events were folded, the archive has {archived}; "
            "attach the missing parts of headrace.events again first"
        )


class JobDetached(ReplayRefused):
    """The part of the archive that has a parked job's events was detached. Attach it again."""

    def __init__(self, job: str) -> None:
        self.job = job
        super().__init__(
            f"the archive has no events of job {job}: attach its part of headrace.events again "
            "first"
        )


class DiskTooSmall(ReplayRefused):
    """The rebuilt tables stand beside the live ones until the swap. Make room."""

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"a rebuild needs about {needed_bytes:,} bytes beside the live tables, the disk has "
            f"{free_bytes:,} free"
        )


class ObjectsInTheWay(ReplayRefused):
    """What depends on the tables themselves, not on their names. Drop it, and make it again."""

    def __init__(self, objects: list[str]) -> None:
        self.objects = objects
        super().__init__(
            f"{', '.join(objects)} would be lost with the tables that are replaced: drop or "
            "disable what is named first, and make it again afterwards"
        )


class StillVerifying(ReplayRefused):
    """A verification is under way for long. Try again when it has ended."""

    def __init__(self, waited_s: float) -> None:
        self.waited_s = waited_s
        super().__init__(
            f"a verification reads the tables and has not ended within {waited_s:g} s: try again "
            "when it has, or end it (it is the session that has application_name headrace and an "
            "advisory lock, see pg_stat_activity and pg_locks)"
        )


class SwapRefused(ReplayRefused):
    """Somebody reads the tables in a transaction that does not end. Try again when it has."""

    def __init__(self, tries: int) -> None:
        self.tries = tries
        super().__init__(
            f"the tables were in use at each of {tries} tries to replace them: a transaction reads "
            "them and does not end (see pg_stat_activity)"
        )
