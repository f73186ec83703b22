"""Names of things: their types, shapes, and the partition a tenant lives in.

Shapes are narrow on purpose. The same id stands in Redis keys, file paths, sandbox metadata (where
a provider encodes values twice) and URLs, and none of these places has to escape it.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Self

from pydantic import AfterValidator, WithJsonSchema

ID_RULE = "1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit"
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_POSITION = re.compile(r"(0|[1-9][0-9]{0,8}):(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})")


def is_id(text: str) -> bool:
    """Whether `text` may stand as a tenant, project, user or job id."""
    return _ID.fullmatch(text) is not None


def _checked_id(text: str) -> str:
    if not is_id(text):
        raise ValueError(f"an id has {ID_RULE}")
    return text


Slug = Annotated[
    str,
    AfterValidator(_checked_id),
    WithJsonSchema({"type": "string", "pattern": f"^{_ID.pattern}$"}),
]
"""A tenant, project or user id where it crosses a wire."""


def partition_of(tenant: str, partitions: int) -> int:
    """The partition, 0 to `partitions` - 1, in which everything of `tenant` lives."""
    return zlib.crc32(tenant.encode()) % partitions


@dataclass(frozen=True, slots=True)
class JobRef:
    """Where to find a job: its tenant names the partition, its id the stream."""

    tenant: str
    job: str


class Position(NamedTuple):
    """An event's place in the log of its partition.

    Only positions of one partition can be compared; across partitions there is no order. A tuple,
    for every event that is read gets one.
    """

    partition: int
    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.epoch}-{self.seq}"

    @property
    def entry_id(self) -> str:
        """The id of the entry in the partition's Redis stream."""
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def at(cls, partition: int, entry_id: str) -> Self:
        """Where the entry of that id stands. Raises `ValueError` for what is no such id."""
        return cls.parse(f"{partition}:{entry_id}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str()`. Raises `ValueError` for anything else."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError(f"not a position (partition:epoch-seq): {text[:80]!r}")
        return cls(*map(int, match.groups()))
