"""Small batches of several partitions, folded in one transaction.

A transaction of the projector costs as much as a hundred events, and under a steady load each
partition always has a few. So partitions take turns together: while one transaction runs they wait,
then each reads what it has by then, and what is small goes in the next one.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import anyio
import structlog

from projector.batches import BATCH_ERRORS, Batch

log = structlog.get_logger()

Fold = Callable[[Sequence[Batch]], Awaitable[Collection[Batch]]]


class NotTogether(Exception):
    """The transaction that a batch shared failed, be it for another's sake: fold it alone."""


class _Transaction:
    """What takes part in it reads first; it begins when all have."""

    def __init__(self, before: anyio.Event) -> None:
        """`before`: the transaction before is over."""
        self.before = before
        self.over = anyio.Event()
        self.all_read = anyio.Event()
        self.reading = 0
        self.batches: dict[int, Batch] = {}
        self.begun = False
        self.folded: Collection[Batch] | None = None

    def has_read(self) -> None:
        """One that takes part has."""
        self.reading -= 1
        if self.reading == 0:
            self.all_read.set()
            if not self.batches:
                self.over.set()

    async def run(self, fold: Fold) -> None:
        """Carry it out."""
        why = "it was cut off"
        try:
            self.folded = await fold(list(self.batches.values()))
        except BATCH_ERRORS as error:
            if len(self.batches) == 1:
                raise
            why = str(error)
        finally:
            self.over.set()
            if self.folded is None and len(self.batches) > 1:
                log.info("folded_one_by_one", partitions=list(self.batches), error=why)


class Turn:
    """A partition's part in a transaction."""

    def __init__(self, transaction: _Transaction, fold: Fold) -> None:
        self._transaction = transaction
        self._fold = fold
        self._is_reading = True

    async def fold(self, batch: Batch) -> bool:
        """Whether it was folded, or another projector was faster. Raises `NotTogether`."""
        transaction = self._transaction
        if batch.partition in transaction.batches:
            return False
        transaction.batches[batch.partition] = batch
        self.has_read()
        await transaction.all_read.wait()
        if transaction.begun:
            await transaction.over.wait()
        else:
            transaction.begun = True
            await transaction.run(self._fold)
        if transaction.folded is None:
            raise NotTogether
        return batch in transaction.folded

    def has_read(self) -> None:
        """The others need not wait for it any more."""
        if self._is_reading:
            self._is_reading = False
            self._transaction.has_read()


class Together:
    """Gives turns to partitions."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        nothing = anyio.Event()
        nothing.set()
        self._next = _Transaction(before=nothing)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """A turn in the next transaction, once the one before is over: to read, and then to fold.

        Who leaves without a batch has none, or folds it alone.
        """
        if self._next.all_read.is_set():
            self._next = _Transaction(before=self._next.over)
        transaction = self._next
        transaction.reading += 1
        turn = Turn(transaction, self._fold)
        try:
            await transaction.before.wait()
            yield turn
        finally:
            turn.has_read()
