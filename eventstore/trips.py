"""Trips to the server that several callers share."""

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

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
            trip.answers = await self._answers(trip.commands)
        except Exception as error:  # noqa: BLE001 - each caller raises it
            trip.error = error
        finally:
            if self._open is trip:
                self._open = _Trip()
            trip.answered.set()

    async def _answers(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """What a pipeline of the driver gives: errors among them, but those of the connection.

        The driver's own sets a timer for each answer, though nearly always all come at once, and
        goes through five of its layers: that took a worker a tenth of its time.
        """
        pool: Any = self._redis.connection_pool
        connection = await pool.get_connection()
        try:
            answers: list[Any] = await connection.retry.call_with_retry(
                lambda: self._exchange(connection, commands),
                lambda _: connection.disconnect(nowait=True),
            )
            return answers
        finally:
            with anyio.CancelScope(shield=True):
                await pool.release(connection)

    async def _exchange(
        self, connection: AbstractConnection, commands: list[tuple[Any, ...]]
    ) -> list[Any]:
        await connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        try:
            async with asyncio.timeout(connection.socket_timeout):
                for name, *_ in commands:
                    try:
                        answer = await connection.read_response(timeout=math.inf)
                    except ResponseError as error:
                        answers.append(error)
                        continue
                    parse = self._redis.response_callbacks.get(name)
                    answers.append(parse(answer) if parse else answer)
        except TimeoutError as error:  # the connection is cut by then
            raise RedisTimeoutError("Timeout reading from socket") from error
        return answers
