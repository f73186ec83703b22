"""From recorded bytes to payloads, old ones included.

A wire type is a name, or a name and a version from the second on: `JobQueued`, `JobQueued.v2`.
An upcaster turns the data of one wire type into those of the next; reading walks the chain until
it meets a type that `schemas/events.py` knows. Nothing recorded is ever rewritten,
but by an erasure (`schemas/erasing.py`).
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast, get_args

from pydantic import ValidationError

from schemas.errors import UndecodableEvent
from schemas.events import AnyPayload, Known, UnknownEvent, Unreadable

Upcaster = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]

PAYLOADS: Mapping[str, type[Known]] = {model.type: model for model in get_args(Known)}
UPCASTERS: Mapping[str, Upcaster] = {}


def decode(
    event_type: str,
    data: bytes,
    *,
    payloads: Mapping[str, type[AnyPayload]] = PAYLOADS,
    upcasters: Mapping[str, Upcaster] = UPCASTERS,
) -> AnyPayload:
    """The payload in `data` (UTF-8 JSON), brought up to the newest version of its type.

    A type that is not known gives `UnknownEvent`. Raises `UndecodableEvent`.
    """
    model = payloads.get(event_type)
    try:
        if model is not None:
            # What `model_validate_json` calls, without its handling of options: reads are hot.
            return cast("AnyPayload", model.__pydantic_validator__.validate_json(data))
        if event_type not in upcasters:
            return UnknownEvent()
        newer_type, values = event_type, json.loads(data)
        while newer_type in upcasters:
            newer_type, values = upcasters[newer_type](values)
        return payloads[newer_type].model_validate(values)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # Pydantic's refusals are ValueErrors; the others are an upcaster's on damaged values.
        raise UndecodableEvent(event_type, data, _reason(error)) from error


def decode_or_mark(event_type: str, data: bytes) -> AnyPayload:
    """`decode`, with `Unreadable` for what it raises.

    Small payloads are decoded once: most events are one of a few dozen (a phase was entered, …).
    """
    if len(data) <= _SMALL:
        return _decode_small(event_type, data)
    return _decode_or_mark(event_type, data)


def _decode_or_mark(event_type: str, data: bytes) -> AnyPayload:
    try:
        return decode(event_type, data)
    except UndecodableEvent as error:
        return Unreadable(reason=error.reason)


_SMALL = 64
_decode_small = lru_cache(maxsize=4_096)(_decode_or_mark)


def _reason(error: Exception) -> str:
    """What was wrong and where, in one line and without the payload's values."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the payload'}: {problem['msg']}"
        for problem in error.errors()
    )
