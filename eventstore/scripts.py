"""The Lua scripts beside this file, loaded once and called by name."""

from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from eventstore.connection import redis_errors

_FOLDER = Path(__file__).parent / "lua"


class Scripts:
    """Calls `lua/<name>.lua` with keys and arguments; a server that forgot it is taught again."""

    def __init__(self, redis: Redis) -> None:
        self._scripts: dict[str, AsyncScript] = {
            path.stem: redis.register_script(path.read_text()) for path in _FOLDER.glob("*.lua")
        }

    async def __call__(self, name: str, keys: list[str], args: list[Any]) -> Any:
        """The script's answer as Redis gives it. Raises `RedisUnavailable`."""
        with redis_errors():
            return await self._scripts[name](keys=keys, args=args)


def source(name: str) -> str:
    """The text of a script, for clients that keep a connection of their own."""
    return (_FOLDER / f"{name}.lua").read_text()
