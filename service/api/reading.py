"""Reading one's own writes: a read waits until what a write answered with has been folded.

A write answers with its position. A read with `after=<position>` waits until the checkpoint of that
partition is there, or says that it is stale. However many wait, the checkpoints are asked for once
every few hundredths of a second, and nobody holds a connection meanwhile.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Depends, Query, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import postgres_errors
from projector import checkpoints_of
from schemas import Position
from service.api.parts import OwnParts, Parts, Tenant
from service.problems import NotThere, Unusable

QUERY_S = 5.0
LOOK_AGAIN_S = 0.03
POSITION = "Headrace-Position"
STALE = "Headrace-Stale"


class Folded:
    """Up to where the partitions are folded, asked for by one on behalf of all who wait."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._asking = anyio.Lock()
        self._looked_at = float("-inf")
        self._ends: Mapping[int, Position] = {}

    async def wait(self, position: Position, wait_s: float) -> None:
        """Return once `position` is folded, or after `wait_s`. Raises `PostgresUnavailable`."""
        with anyio.move_on_after(wait_s):
            while True:
                if _is_at(await self._end(position.partition), position):
                    return
                await anyio.sleep(LOOK_AGAIN_S)

    async def _end(self, partition: int) -> Position | None:
        async with self._asking:
            if anyio.current_time() - self._looked_at >= LOOK_AGAIN_S:
                with postgres_errors():
                    async with self._engine.connect() as connection:
                        self._ends = await checkpoints_of(connection)
                self._looked_at = anyio.current_time()
            return self._ends.get(partition)


@dataclass(frozen=True, slots=True)
class Reader:
    """Asks the read model for one tenant, once it has what the caller waits for."""

    parts: Parts
    folded: Folded
    partition: int
    after: Position | None
    response: Response

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection for a question that must be answered soon.

        The answer will say up to which position it is complete, and whether that is too little.
        """
        if self.after is not None:
            await self.folded.wait(self.after, self.parts.read_wait_s)
        with postgres_errors(), anyio.fail_after(QUERY_S):
            async with self.parts.engine.connect() as connection:
                # Before the question: what is folded meanwhile may be in the answer, or not.
                self._say((await checkpoints_of(connection)).get(self.partition))
                yield connection

    def _say(self, end: Position | None) -> None:
        if end is not None:
            self.response.headers[POSITION] = str(end)
        if self.after is not None and not _is_at(end, self.after):
            self.response.headers[STALE] = "true"

    def missing(self, what: str) -> NotThere:
        """What is not there, or another's; with what was said of the answer so far."""
        said = {
            name: self.response.headers[name]
            for name in (POSITION, STALE)
            if name in self.response.headers
        }
        return NotThere(what, said)


def _reader(
    request: Request,
    parts: OwnParts,
    owner: Tenant,
    response: Response,
    after: Annotated[str | None, Query()] = None,
) -> Reader:
    partition = parts.handler.store.partition(owner)
    position = None
    if after is not None:
        try:
            position = Position.parse(after)
        except ValueError as error:
            raise Unusable("after", str(error)) from error
        if position.partition != partition:
            raise Unusable(
                "after",
                f"{position} is of partition {position.partition}, yours is {partition}: "
                "give the Headrace-Position of an answer to this key",
            )
    return Reader(parts, request.app.state.folded, partition, position, response)


ReadModel = Annotated[Reader, Depends(_reader)]


def _is_at(end: Position | None, position: Position) -> bool:
    return end is not None and end >= position
