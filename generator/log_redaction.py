"""Whose secrets log output must not have: those of the build that the current task works on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from generator.redaction import Redactor

_CURRENT: ContextVar[Callable[[], Redactor] | None] = ContextVar("redactor", default=None)


@contextmanager
def redacting(redactor: Callable[[], Redactor]) -> Iterator[None]:
    """What this task and those that it starts write to the log goes through `redactor`."""
    token = _CURRENT.set(redactor)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_redactor() -> Redactor | None:
    """The redactor of the build that this task works on; None outside of builds."""
    redactor = _CURRENT.get()
    return redactor() if redactor else None
