"""Small batches of several partitions, folded in one transaction.

A transaction of the projector costs as much as a hundred events, and under a steady load each
partition always has a few. So what is small waits while a transaction runs, and goes together in
the next one.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

import anyio
import structlog
from asyncpg import PostgresError
from sqlalchemy.exc import SQLAlchemyError

from eventstore import EventStoreError
from projector.batches import Batch
from projector.errors import ProjectorError
from schemas import SchemaError

log = structlog.get_logger()

Fold = Callable[[Sequence[Batch]], Awaitable[Collection[Batch]]]


class NotTogether(Exception):
    """The transaction that a batch shared failed, be it for another's sake: fold it alone."""


@dataclass(eq=False, slots=True)
class _Turn:
    """Batches for one transaction, by partition, and what became of them."""

    batches: dict[int, Batch] = field(default_factory=dict)
    events: int = 0
    folded: Collection[Batch] | None = None
    over: anyio.Event = field(default_factory=anyio.Event)


class Together:
    """Folds each batch that it is given in the next transaction, with all that are waiting."""

    def __init__(self, fold: Fold, *, most: int) -> None:
        """`most`: a transaction that has so many events takes no further batch."""
        self._fold = fold
        self._most = most
        self._waiting = _Turn()
        self._one_at_a_time = anyio.Lock()

    async def fold(self, batch: Batch) -> bool:
        """Whether it was folded, or another projector was faster. Raises `NotTogether`."""
        turn = self._waiting
        if batch.partition in turn.batches:
            return False
        turn.batches[batch.partition] = batch
        turn.events += len(batch.entries)
        if turn.events >= self._most:
            self._waiting = _Turn()
        if len(turn.batches) == 1:
            await self._lead(turn)
        else:
            await turn.over.wait()
        if turn.folded is None:
            raise NotTogether
        return batch in turn.folded

    async def _lead(self, turn: _Turn) -> None:
        why = "it was cut off"
        try:
            async with self._one_at_a_time:
                self._close(turn)
                turn.folded = await self._fold(list(turn.batches.values()))
        except (
            EventStoreError,
            ProjectorError,
            SchemaError,
            SQLAlchemyError,
            PostgresError,
        ) as error:
            if len(turn.batches) == 1:
                raise
            why = str(error)
        finally:
            self._close(turn)
            turn.over.set()
            if turn.folded is None and len(turn.batches) > 1:
                log.info("folded_one_by_one", partitions=list(turn.batches), error=why)

    def _close(self, turn: _Turn) -> None:
        if self._waiting is turn:
            self._waiting = _Turn()
