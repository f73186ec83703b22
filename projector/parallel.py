"""Shares folded by this process, or by others that are forked from it.

A forked process has all that this one has loaded, which costs a new one two seconds of a core. It
folds on a connection of its own and gives back rows; only this process writes.
"""

import asyncio
import gc
import multiprocessing
import pickle
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from anyio.to_thread import run_sync

from eventstore import connect_postgres
from projector.errors import ProcessLost
from projector.projection import Projection
from projector.shares import UNHURRIED, FoldedShare, Share, Source

_FORKED = multiprocessing.get_context("fork")


@asynccontextmanager
async def folded(
    source: Source, cut: Sequence[Share], projections: Sequence[Projection], workers: int
) -> AsyncIterator[AsyncIterator[FoldedShare]]:
    """The folded shares: from this process, or from as many others as there are workers.

    The next ones are folded while one is written. Raises `ProcessLost`.
    """
    workers = min(workers, len(cut))
    # No more finished shares than workers wait here to be written.
    send, receive = anyio.create_memory_object_stream[FoldedShare](workers)

    async def here(to: MemoryObjectSendStream[FoldedShare]) -> None:
        async with to:
            await source.fold(source.engine, cut, projections, to.send)

    async def elsewhere(given: Connection, to: MemoryObjectSendStream[FoldedShare]) -> None:
        async with to:
            while share := await run_sync(_received, given, abandon_on_cancel=True):
                await to.send(share)

    try:
        with _forked(source, cut, projections, workers if workers > 1 else 0) as pipes:
            async with anyio.create_task_group() as tasks, receive:
                for pipe in pipes:
                    tasks.start_soon(elsewhere, pipe, send.clone())
                if not pipes:
                    tasks.start_soon(here, send.clone())
                send.close()
                yield aiter(receive)
    except BaseExceptionGroup as group:
        raise _first(group) from group  # callers wait for one of ours, not for a group


@contextmanager
def _forked(
    source: Source, cut: Sequence[Share], projections: Sequence[Projection], count: int
) -> Iterator[list[Connection]]:
    """So many processes, each with its part of the shares; what they give comes out of these."""
    pipes: list[Connection] = []
    processes: list[ForkProcess] = []
    try:
        for number in range(count):
            ours, theirs = _FORKED.Pipe(duplex=False)
            pipes.append(ours)
            part = cut[number::count]
            process = _FORKED.Process(target=_fold, args=(theirs, source, part, projections))
            process.start()
            processes.append(process)
            theirs.close()  # so that it ends with the process
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _fold(
    to: Connection, source: Source, cut: Sequence[Share], projections: Sequence[Projection]
) -> None:
    """All that a forked process does."""
    gc.freeze()  # what is shared stays shared
    signal.set_wakeup_fd(-1)  # that would wake the other process
    # What a terminal or a supervisor asks to end is the process that waits for this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    async def give(share: FoldedShare) -> None:
        _give(to, share)

    async def fold() -> None:
        url = source.engine.url.render_as_string(hide_password=False)
        engine = connect_postgres(url, pool_size=1, settings=UNHURRIED)
        try:
            await source.fold(engine, cut, projections, give)
        finally:
            await engine.dispose()

    try:
        asyncio.run(fold())
        _give(to, None)
    except Exception as error:  # noqa: BLE001 - raised again where it is waited for
        _give(to, error)


def _give(to: Connection, what: FoldedShare | Exception | None) -> None:
    to.send_bytes(pickle.dumps(what, pickle.HIGHEST_PROTOCOL))


def _received(pipe: Connection) -> FoldedShare | None:
    """What a forked process gives next; None when it has folded all."""
    try:
        given: FoldedShare | Exception | None = pickle.loads(pipe.recv_bytes())  # noqa: S301
    except EOFError as error:
        raise ProcessLost from error
    if isinstance(given, Exception):
        raise given
    return given


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
