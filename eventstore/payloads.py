"""What a payload may be: how it is written, and what is refused before it reaches the log."""

import json
import re
from collections.abc import Mapping
from typing import Any

from eventstore.errors import PayloadRefused
from schemas import NewEvent

MAX_EVENT_BYTES = 256 * 1024
MAX_LINE_BYTES = 64 * 1024
# A backslash that is not itself escaped, and what JSON writes for a NUL.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def event_data(event: NewEvent) -> bytes:
    """The payload as it is kept: JSON in UTF-8. Raises `PayloadRefused`."""
    name = event.payload.type
    try:
        return _checked(name, event.data, MAX_EVENT_BYTES)
    except ValueError as error:  # pydantic's refusal of half a surrogate pair is one
        raise PayloadRefused(f"{name} cannot be written as UTF-8: {error}") from error


def line_data(kind: str, data: Mapping[str, Any]) -> bytes:
    """A progress line as it is kept: JSON in UTF-8. Raises `PayloadRefused`."""
    try:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise PayloadRefused(f"{kind} cannot be written as UTF-8: {error}") from error
    return _checked(kind, text, MAX_LINE_BYTES)


def _checked(what: str, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise PayloadRefused(f"{what} has {len(data)} bytes, more than {limit}")
    if b"\\u0000" in data and _NUL.search(data):
        raise PayloadRefused(f"{what} holds a NUL character")
    return data
