"""Reading one's own writes: a read waits until what a write answered with has been folded.

A write answers with its position. A read with `after=<position>` waits until the checkpoint of that
partition is there, and the tables that it asks are built, or says that it is stale. However many
wait, the read model is asked how far it is once every few hundredths of a second, and nobody holds
a connection meanwhile.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated

import anyio
from fastapi import Depends, Query, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventstore import postgres_errors
from projector import Standing, standing
from schemas import Position
from service.api.parts import OwnParts, Parts, Tenant
from service.problems import NotThere
from service.refusals import Unusable

QUERY_S = 5.0
LOOK_AGAIN_S = 0.03
POSITION = "Headrace-Position"
STALE = "Headrace-Stale"


class Folded:
    """How far the read model is, asked for by one on behalf of all who wait."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._asking = anyio.Lock()
        self._looked_at = float("-inf")
        self._standing = Standing({})

    async def wait(self, position: Position, tables: Collection[str], wait_s: float) -> None:
        """Return once `position` is folded into these tables, or after `wait_s`.

        Raises `PostgresUnavailable`.
        """
        with anyio.move_on_after(wait_s):
            while True:
                if _has(await self._look(), position, tables):
                    return
                await anyio.sleep(LOOK_AGAIN_S)

    async def _look(self) -> Standing:
        async with self._asking:
            if anyio.current_time() - self._looked_at >= LOOK_AGAIN_S:
                with postgres_errors():
                    async with self._engine.connect() as connection:
                        self._standing = await standing(connection)
                self._looked_at = anyio.current_time()
            return self._standing


@dataclass(frozen=True, slots=True)
class Reader:
    """Asks the read model for one tenant, once it has what the caller waits for."""

    parts: Parts
    folded: Folded
    partition: int
    after: Position | None
    response: Response

    def at_least(self, position: Position) -> "Reader":
        """The same, also waiting for this position."""
        if self.after is not None and self.after >= position:
            return self
        return replace(self, after=position) if position.seq else self

    @asynccontextmanager
    async def connection(self, *tables: str) -> AsyncIterator[AsyncConnection]:
        """A connection for a question to these tables that must be answered soon.

        The answer will say up to which position it is complete, and whether that is too little.
        """
        if self.after is not None:
            await self.folded.wait(self.after, tables, self.parts.read_wait_s)
        with postgres_errors(), anyio.fail_after(QUERY_S):
            async with self.parts.engine.connect() as connection:
                # Before the question: what is folded meanwhile may be in the answer, or not.
                self._say(await standing(connection), tables)
                yield connection

    def _say(self, found: Standing, tables: Collection[str]) -> None:
        if (end := found.folded.get(self.partition)) is not None:
            self.response.headers[POSITION] = str(end)
        if self.after is not None and not _has(found, self.after, tables):
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


def _has(found: Standing, position: Position, tables: Collection[str]) -> bool:
    """Whether what stands at `position` is in these tables."""
    end = found.folded.get(position.partition)
    return end is not None and end >= position and found.left_out.isdisjoint(tables)
