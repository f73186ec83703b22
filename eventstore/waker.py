"""What waits for news: it is woken, and looks."""

from collections import defaultdict

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
    """Knows as well in which partitions there is new work, and most likely which."""

    def __init__(self) -> None:
        super().__init__()
        self._rung: defaultdict[int, list[str]] = defaultdict(list)

    def ring(self, partition: int, job: str) -> None:
        """There is work in this partition, most likely this job."""
        self._rung[partition].append(job)
        self.wake()

    def take(self) -> dict[int, list[str]]:
        """The partitions that rang since this was asked last, with the jobs they rang for."""
        rung, self._rung = self._rung, defaultdict(list)
        return rung
