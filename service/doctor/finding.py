"""What a check has found, and the words in which quantities are told."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and is not as safe or as fast as it should be."""
    PROBLEM = "problem"
    """It does not work, or will not for long."""
    UNKNOWN = "unknown"
    """It could not be told; the finding says what that would take."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is, why it matters, and the command that mends it."""

    check: str
    level: Level
    says: str
    why: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON has it."""
        return asdict(self)


def ok(check: str, says: str) -> Finding:
    """A finding with nothing to do."""
    return Finding(check, Level.OK, says)


def warning(check: str, says: str, why: str, remedy: str) -> Finding:
    """A finding that can be lived with."""
    return Finding(check, Level.WARNING, says, why, remedy)


def problem(check: str, says: str, why: str, remedy: str) -> Finding:
    """A finding that must be mended."""
    return Finding(check, Level.PROBLEM, says, why, remedy)


def unknown(check: str, says: str) -> Finding:
    """A check that could not be made."""
    return Finding(check, Level.UNKNOWN, says)


def size(size_bytes: float) -> str:
    """`3.4 GB`; powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def duration(seconds: float) -> str:
    """`3 min`: the largest unit, rounded."""
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds * 1000:.0f} ms"


def count(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def partitions(numbers: Iterable[int]) -> str:
    """`partition 3`, `partitions 0, 2`, `partitions 0 to 7`; how many when a line is too short."""
    listed = sorted(numbers)
    if len(listed) == 1:
        return f"partition {listed[0]}"
    if len(listed) > 2 and listed[-1] - listed[0] == len(listed) - 1:
        return f"partitions {listed[0]} to {listed[-1]}"
    if len(listed) > 8:
        return count(len(listed), "partition")
    return f"partitions {', '.join(map(str, listed))}"


def address(url: str) -> str:
    """Where a server is reached, without user and password."""
    parsed = urlsplit(url)
    if parsed.hostname:
        return f"{parsed.hostname}:{parsed.port}" if parsed.port else parsed.hostname
    return parse_qs(parsed.query).get("host", [unquote(parsed.path)])[0]
