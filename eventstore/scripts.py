"""The Lua scripts beside this file, loaded once and called by name."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from eventstore.connection import redis_errors
from eventstore.errors import EventStoreError, Fenced, LogMissing, LogUnverified

_FOLDER = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


# What may be sent again without harm: an append knows its events again, a line may come twice.
_REPEATABLE = frozenset({"append", "progress"})
_MOST_TOGETHER = 16


@dataclass(eq=False, slots=True)
class _Batch:
    """Calls that go to the server together; its first caller sends it."""

    calls: list[tuple[str, list[str], list[Any]]] = field(default_factory=list)
    answered: anyio.Event = field(default_factory=anyio.Event)
    answers: list[Any] = field(default_factory=list)
    """Empty if nobody knows: the first caller was cancelled meanwhile."""
    error: Exception | None = None


class Scripts:
    """Calls `lua/<name>.lua` with keys and arguments; a server that forgot it is taught again.

    Appends and lines of progress that are due in the same turn of the event loop share one trip.
    Each has its own answer, and none waits for others to come.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts: dict[str, AsyncScript] = {
            path.stem: redis.register_script(source(path.stem)) for path in _FOLDER.glob("*.lua")
        }
        self._open = _Batch()

    async def __call__(self, name: str, keys: list[str], args: list[Any]) -> Any:
        """The script's answer as Redis gives it. Raises `RedisUnavailable`."""
        if name in _REPEATABLE:
            batch = self._open
            number = len(batch.calls)
            batch.calls.append((name, keys, args))
            if number + 1 == _MOST_TOGETHER:
                self._open = _Batch()
            if number == 0:
                await self._send(batch)
            else:
                await batch.answered.wait()
            if batch.error:
                raise batch.error
            # Whom an error is the answer, and whose first caller was cancelled, asks alone.
            if batch.answers and not isinstance(batch.answers[number], RedisError):
                return batch.answers[number]
        with redis_errors():
            return await self._scripts[name](keys=keys, args=args)

    async def _send(self, batch: _Batch) -> None:
        try:
            await anyio.lowlevel.checkpoint()  # whoever else is due now joins
            if self._open is batch:
                self._open = _Batch()
            if len(batch.calls) > 1:
                pipeline = self._redis.pipeline(transaction=False)
                for name, keys, args in batch.calls:
                    pipeline.evalsha(self._scripts[name].sha, len(keys), *keys, *args)
                with redis_errors():
                    batch.answers = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - each caller raises it
            batch.error = error
        finally:
            if self._open is batch:
                self._open = _Batch()
            batch.answered.set()


def refusal(answer: Any, *, partition: int, job: str = "") -> EventStoreError:
    """The error for what a script refused."""
    match answer:
        case [b"refused", b"LogMissing"]:
            return LogMissing(partition)
        case [b"refused", b"LogUnverified", found]:
            return LogUnverified(partition, f"found lineage {found.decode()}")
        case [b"refused", b"Fenced", owner, attempt]:
            return Fenced(job, owner.decode(), int(attempt))
    return EventStoreError(f"unexpected answer of a script: {answer!r}")


def source(name: str) -> str:
    """The text of a script, whole, for clients that keep a connection of their own."""

    def included(found: re.Match[str]) -> str:
        return (_FOLDER / "shared" / f"{found[1]}.lua").read_text()

    return _INCLUDE.sub(included, (_FOLDER / f"{name}.lua").read_text())
