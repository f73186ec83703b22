"""The Lua scripts beside this file, loaded once and called by name."""

import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from eventstore.connection import redis_errors
from eventstore.errors import EventStoreError, Fenced, LogMissing, LogUnverified
from eventstore.trips import Trips

_FOLDER = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


# What may be sent again without harm.
_REPEATABLE = frozenset({"append", "progress"})


class Scripts:
    """Calls `lua/<name>.lua` with keys and arguments; a server that forgot it is taught again.

    Appends and lines of progress share `trips` with whatever else is due.
    """

    def __init__(self, redis: Redis) -> None:
        self.trips = Trips(redis)
        self._scripts: dict[str, AsyncScript] = {
            path.stem: redis.register_script(source(path.stem)) for path in _FOLDER.glob("*.lua")
        }

    async def __call__(self, name: str, keys: list[str], args: list[Any]) -> Any:
        """The script's answer as Redis gives it. Raises `RedisUnavailable`."""
        script = self._scripts[name]
        with redis_errors():
            if name in _REPEATABLE:
                with suppress(NoScriptError):
                    return await self.trips("EVALSHA", script.sha, len(keys), *keys, *args)
            return await script(keys=keys, args=args)


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


@cache
def source(name: str) -> str:
    """The text of a script, whole, for clients that keep a connection of their own."""

    def included(found: re.Match[str]) -> str:
        return (_FOLDER / "shared" / f"{found[1]}.lua").read_text()

    return _INCLUDE.sub(included, (_FOLDER / f"{name}.lua").read_text())
