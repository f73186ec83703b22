"""Errors of the language.

SchemaError
├── CommandRefused        a job's state does not allow a command
│   ├── JobUnknown        there is no such job
│   ├── JobIsTerminal     the job has ended
│   └── JobIsCancelling   a cancel was asked for; only ending it is left
└── UndecodableEvent      a recorded event whose payload does not fit its type
"""


class SchemaError(Exception):
    """Base class of this package's errors."""


class CommandRefused(SchemaError):
    """The job is in a state in which the command makes no sense; nothing was recorded.

    Tell the caller; repeating the command gives the same answer until the job moves.
    """

    def __init__(self, job: str, status: str, command: str, reason: str) -> None:
        self.job = job
        self.status = status
        self.command = command
        self.reason = reason
        super().__init__(f"{command} refused for job {job} ({status}): {reason}")


class JobUnknown(CommandRefused):
    """No event of the job exists."""

    def __init__(self, job: str, command: str) -> None:
        super().__init__(job, "unknown", command, "there is no such job")
        self.args = (f"there is no job {job}",)


class JobIsTerminal(CommandRefused):
    """The job is ready, failed or cancelled."""

    def __init__(self, job: str, status: str, command: str) -> None:
        super().__init__(job, status, command, f"the job is {status} already")
        self.args = (f"job {job} has ended already: it is {status}",)


class JobIsCancelling(CommandRefused):
    """Work on a job whose cancellation was requested. The worker stops and confirms."""

    def __init__(self, job: str, command: str) -> None:
        super().__init__(job, "cancelling", command, "its cancellation was requested")


class UndecodableEvent(SchemaError):
    """A recorded payload cannot be read as its type; the event is damaged or from a broken writer.

    Readers keep the raw bytes (`data`) and set the event's job aside.
    """

    def __init__(self, event_type: str, data: bytes, reason: str) -> None:
        self.event_type = event_type
        self.data = data
        self.reason = reason
        super().__init__(f"{event_type} cannot be decoded: {reason}")
