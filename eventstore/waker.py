"""What waits for news: it is woken, and looks."""

import anyio


class Waker:
    """Set when there may be news; waits until then."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def wake(self) -> None:
        """Let `wait` return, now or when it is called next."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Return at the next `wake`, or after `timeout_s`; whether it was woken."""
        with anyio.move_on_after(timeout_s) as waiting:
            await self._event.wait()
        self._event = anyio.Event()
        return not waiting.cancelled_caught


class WorkWaker(Waker):
    """Knows as well in which partitions there is new work."""

    def __init__(self) -> None:
        super().__init__()
        self._rung: set[int] = set()

    def ring(self, partition: int) -> None:
        """There is work in this partition."""
        self._rung.add(partition)
        self.wake()

    def take(self) -> set[int]:
        """The partitions that rang since this was asked last."""
        rung, self._rung = self._rung, set()
        return rung
