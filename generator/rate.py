"""One rate over all workers, kept in Redis: how often a provider may be asked for a sandbox."""

from collections.abc import Awaitable, Callable

import anyio

from eventstore import EventStore, patiently
from generator.errors import SandboxBusy

LOG_PATIENCE_S = 60.0
LONGEST_WAIT_S = 120.0

OnWait = Callable[[float], Awaitable[None]]


class Rate:
    """Turns at making a sandbox of a provider: `per_s` a second, over all workers of this Redis."""

    def __init__(self, store: EventStore, provider: str, per_s: float) -> None:
        self._store = store
        # A hash tag of its own: the rate belongs to no partition.
        self._key = f"hr:{{rate}}:sandboxes:{provider}"
        self._every_ms = 1000 / per_s

    async def turn(self, on_wait: OnWait) -> None:
        """Return when it is the caller's turn; a wait is told before it begins.

        Turns are given in the order in which they were asked for. Raises `SandboxBusy` when so many
        stand before that it would take too long.
        """
        answer, wait_ms = await patiently(
            lambda: self._store.scripts.plain(
                "rate", [self._key], [self._every_ms, round(LONGEST_WAIT_S * 1000)]
            ),
            LOG_PATIENCE_S,
        )
        wait_s = wait_ms / 1000
        if answer != b"ok":
            raise SandboxBusy(
                f"too many builds wait for a sandbox: the next turn is in {wait_s:.0f} s",
                retry_after_s=wait_s - LONGEST_WAIT_S,
            )
        if wait_s:
            await on_wait(wait_s)
            await anyio.sleep(wait_s)
