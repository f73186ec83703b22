"""The one place where an exception of the e2b SDK becomes an error of ours.

Sorted by what the caller should do, not by what happened. The SDK's hierarchy sets traps: a
sandbox that is gone is a `TimeoutException`; a refused key and a busy service are no
`SandboxException`; a stream that was cut is a bare `Exception`, and an error page that is not JSON
a `JSONDecodeError`. So the order of the cases matters, and the last one takes everything.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import httpx
from e2b import exceptions as e2b

from generator.errors import (
    GenerationError,
    SandboxBusy,
    SandboxError,
    SandboxFull,
    SandboxGone,
    SandboxUnavailable,
)

MAX_REASON_CHARS = 300
"""A proxy's error page can be long; its beginning says enough."""

_CUT = ("Code.UNKNOWN:", "the connection broke off")
"""What the SDK says of a stream that was cut, and what a person understands."""


def translate(error: Exception, doing: str, sandbox_id: str | None) -> SandboxError:
    """Our error for one of the SDK; `doing` completes the sentence "E2B could not ..."."""
    said = " ".join(str(error).split())
    reason = _CUT[1] if said == _CUT[0] else said[:MAX_REASON_CHARS] or type(error).__name__
    match error:
        case e2b.AuthenticationException():
            # The provider's own words are left out: no text of theirs may carry the key.
            return SandboxUnavailable(
                "E2B refused the API key: set E2B_API_KEY to a valid one"
                " from https://e2b.dev/dashboard?tab=keys"
            )
        case e2b.TemplateException() | e2b.SandboxException(status_code=403):
            return SandboxUnavailable(f"E2B could not {doing}: {reason}")
        case e2b.RateLimitException() | e2b.ServiceBusyException():
            return SandboxBusy(f"E2B is at a limit and could not {doing}: {reason}")
        case e2b.NotEnoughSpaceException():
            return SandboxFull(f"E2B could not {doing}, the sandbox is full: {reason}")
        case e2b.FileNotFoundException():
            return SandboxError(f"E2B could not {doing}: {reason}")
        case e2b.NotFoundException() | e2b.SandboxNotRunningException() if sandbox_id:
            return SandboxGone(sandbox_id)
        case TimeoutError() | httpx.TimeoutException():
            return SandboxError(f"E2B could not {doing} in time; try again")
        case _:
            return SandboxError(f"E2B could not {doing}: {reason}")


async def _unknown() -> bool:
    return False


@asynccontextmanager
async def translated(
    doing: str,
    *,
    deadline_s: float | None,
    sandbox_id: str | None = None,
    is_gone: Callable[[], Awaitable[bool]] = _unknown,
) -> AsyncIterator[None]:
    """Calls of the SDK inside end after `deadline_s` and raise only errors of ours.

    The deadline is ours because the SDK's own do not hold on a stream that hangs. `is_gone` is
    asked when an error leaves open whether the sandbox still lives: a cut connection is how the
    end of a sandbox looks to whoever was talking to it.
    """
    try:
        with anyio.fail_after(deadline_s):
            yield
    except GenerationError:
        raise
    except Exception as error:
        ours = translate(error, doing, sandbox_id)
        unclear = type(ours) is SandboxError
        if unclear and sandbox_id is not None and await is_gone():
            raise SandboxGone(sandbox_id) from error
        raise ours from error
