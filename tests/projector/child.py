"""Processes that can be killed and frozen: `python -m tests.projector.child <what> <where …>`."""

import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from eventstore import Archive, Hub, connect_postgres, connect_redis, open_log
from projector import Projector, ground, rebuild, swapping
from tests.logs import PARTITIONS

ROOT = Path(__file__).parent.parent.parent
HERE = "here"


class Child:
    """A running one. It ends with the block that started it, if not before."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.projector.child", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )

    def wait_until_here(self) -> None:
        """Return when it says that it is where it was to be killed, or ready."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline().decode().strip() == HERE

    def kill(self) -> None:
        """End it as a power failure would."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def freeze(self) -> None:
        """It runs no further until it is woken."""
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """It goes on where it was frozen."""
        self._process.send_signal(signal.SIGCONT)

    def runs(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None


@contextmanager
def projecting(redis_url: str, database_url: str, *, frozen_s: int = 5) -> Iterator[Child]:
    """A process that folds. Postgres takes a frozen one's transaction away after `frozen_s`."""
    child = Child("project", redis_url, database_url, str(frozen_s))
    try:
        child.wait_until_here()
        yield child
    finally:
        child.kill()


@contextmanager
def rebuilding(database_url: str, stop_at: str) -> Iterator[Child]:
    """A process that rebuilds up to `folded` or `swapped`, and stands there."""
    child = Child("rebuild", database_url, stop_at)
    try:
        child.wait_until_here()
        yield child
    finally:
        child.kill()


def _stand(*_: Any) -> None:
    print(HERE, flush=True)  # noqa: T201 - to whoever started us
    signal.pause()


async def _stand_there(*_: Any) -> None:
    _stand()


async def _project(redis_url: str, database_url: str, frozen_s: str) -> None:
    ground.FROZEN_S = int(frozen_s)
    engine = connect_postgres(database_url)
    store = await open_log(connect_redis(redis_url), Archive(engine), partitions=PARTITIONS)
    hub = Hub(store, connect_redis(redis_url))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hub.run)
        tasks.start_soon(Projector(store, engine).run, hub)
        print(HERE, flush=True)  # noqa: T201 - to whoever started us


async def _rebuild(database_url: str, stop_at: str) -> None:
    if stop_at == "swapped":
        vars(swapping)["mark_built"] = _stand_there
    await rebuild(
        connect_postgres(database_url), on_progress=_stand if stop_at == "folded" else None
    )


if __name__ == "__main__":
    _, what, *where = sys.argv
    does: dict[str, Callable[..., Awaitable[None]]] = {"project": _project, "rebuild": _rebuild}
    anyio.run(does[what], *where)
