"""Looks at jobs for those who seldom have anything to see.

One task for all of them: a task and a timer for each took a worker of many small jobs a tenth of
its time.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
import structlog

from eventstore.errors import EventStoreError
from eventstore.waker import Waker

LOOK_AGAIN_S = 15.0
_BACKOFF_S = 0.5

log = structlog.get_logger()

Look = Callable[[], Awaitable[None]]
"""Equal to no other one. A call that fails by an `EventStoreError` is made again."""


class Lookout:
    """Calls looks: those of a job when it rings, and all of them now and then. `run` must run."""

    def __init__(self) -> None:
        self._looks: defaultdict[str, set[Look]] = defaultdict(set)
        self._due: dict[Look, str] = {}
        self._news = Waker()

    @contextmanager
    def looking(self, job: str, look: Look) -> Iterator[None]:
        """`look` is called for what rings for the job while the block runs."""
        self._looks[job].add(look)
        try:
            yield
        finally:
            self._looks[job].discard(look)
            if not self._looks[job]:
                del self._looks[job]

    def ring(self, job: str) -> None:
        """There may be something to see."""
        for look in self._looks.get(job, ()):
            self._due[look] = job
            self._news.wake()

    def ring_all(self) -> None:
        """There may be something to see anywhere."""
        for job in self._looks:
            self.ring(job)

    async def run(self) -> None:
        """Call what is due until cancelled."""
        all_again_at = anyio.current_time() + LOOK_AGAIN_S
        async with anyio.create_task_group() as tasks:
            while True:
                await self._news.wait(all_again_at - anyio.current_time())
                if anyio.current_time() >= all_again_at:  # a bell may be lost
                    all_again_at = anyio.current_time() + LOOK_AGAIN_S
                    self.ring_all()
                while self._due:
                    tasks.start_soon(self._call, *self._due.popitem())

    async def _call(self, look: Look, job: str) -> None:
        while look in self._looks.get(job, ()):
            try:
                await look()
            except EventStoreError as error:
                log.warning("look_waits", job=job, error=str(error))
                await anyio.sleep(_BACKOFF_S)
            except Exception:  # one job must not end the looks of all
                log.exception("look_failed", job=job)
                return
            else:
                return
