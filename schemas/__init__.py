"""The language of Headrace: ids, events, commands, and the FSM of a job.

Pure: no I/O, no clock, no randomness, no environment.
"""

from schemas import commands, events
from schemas.commands import Command
from schemas.decider import decide
from schemas.decoding import decode, decode_or_mark
from schemas.envelope import (
    NewEvent,
    RecordedEvent,
    cloud_event,
    entry_fields,
    format_time,
    from_fields,
)
from schemas.errors import (
    CommandRefused,
    JobIsCancelling,
    JobIsTerminal,
    JobUnknown,
    SchemaError,
    UndecodableEvent,
)
from schemas.events import TERMINAL_TYPES, Phase, build_version
from schemas.evolving import evolve, fold, gets_further
from schemas.ids import (
    ID_RULE,
    JobRef,
    Position,
    Slug,
    is_id,
    partition_of,
)
from schemas.job import (
    RUNNING,
    TERMINAL,
    TRANSITIONS,
    Job,
    Preview,
    Status,
)

__all__ = [
    "ID_RULE",
    "RUNNING",
    "TERMINAL",
    "TERMINAL_TYPES",
    "TRANSITIONS",
    "Command",
    "CommandRefused",
    "Job",
    "JobIsCancelling",
    "JobIsTerminal",
    "JobRef",
    "JobUnknown",
    "NewEvent",
    "Phase",
    "Position",
    "Preview",
    "RecordedEvent",
    "SchemaError",
    "Slug",
    "Status",
    "UndecodableEvent",
    "build_version",
    "cloud_event",
    "commands",
    "decide",
    "decode",
    "decode_or_mark",
    "entry_fields",
    "events",
    "evolve",
    "fold",
    "format_time",
    "from_fields",
    "gets_further",
    "is_id",
    "partition_of",
]
