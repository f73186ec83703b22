"""Trips to the server that several callers share."""

from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from redis.asyncio import Redis
from redis.exceptions import RedisError

_MOST_TOGETHER = 16


@dataclass(eq=False, slots=True)
class _Trip:
    """Commands that go to the server together; the first caller sends them."""

    commands: list[tuple[Any, ...]] = field(default_factory=list)
    answered: anyio.Event = field(default_factory=anyio.Event)
    answers: list[Any] = field(default_factory=list)
    """Empty if nobody knows: the first caller was cancelled meanwhile."""
    error: Exception | None = None


class Trips:
    """Commands that are due in the same turn of the event loop go to the server together.

    Each has its own answer, and none waits for others to come. Only for what may be sent again
    without harm: an append, which knows its events again, a line, which may come twice, a read.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._open = _Trip()

    async def __call__(self, *command: Any) -> Any:
        """The answer, as the driver gives it. Raises what the driver raises."""
        trip = self._open
        number = len(trip.commands)
        trip.commands.append(command)
        if number + 1 == _MOST_TOGETHER:
            self._open = _Trip()
        if number == 0:
            await self._send(trip)
        else:
            await trip.answered.wait()
        if trip.error:
            raise trip.error
        # Whom an error is the answer, and whose first caller was cancelled, asks alone.
        if trip.answers and not isinstance(trip.answers[number], RedisError):
            return trip.answers[number]
        return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def _send(self, trip: _Trip) -> None:
        try:
            await anyio.lowlevel.checkpoint()  # whoever else is due now joins
            if self._open is trip:
                self._open = _Trip()
            pipeline = self._redis.pipeline(transaction=False)
            for command in trip.commands:
                pipeline.execute_command(*command)
            trip.answers = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - each caller raises it
            trip.error = error
        finally:
            if self._open is trip:
                self._open = _Trip()
            trip.answered.set()
