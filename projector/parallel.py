"""Shares folded by this process, or by others that are forked from it.

A forked process has all that this one has loaded, which costs a new one two seconds of a core. It
folds on a connection of its own and gives back rows; only this process writes.
"""

import asyncio
import ctypes
import gc
import multiprocessing
import os
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
from projector.errors import ProcessLost, ReplayRefused
from projector.projection import Projection
from projector.shares import UNHURRIED, FoldedShare, Share, Source

_FORKED = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1


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
            process = _FORKED.Process(
                target=_fold, args=(os.getpid(), theirs, source, part, projections)
            )
            process.start()
            processes.append(process)
            theirs.close()  # so that it ends with the process
        yield pipes
        for pipe in pipes:
            pipe.close()
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def _fold(
    parent: int,
    to: Connection,
    source: Source,
    cut: Sequence[Share],
    projections: Sequence[Projection],
) -> None:
    """All that a forked process does."""
    # It holds open what its parent had open: connections and locks.
    _end_with(parent)
    gc.freeze()  # a collection would copy every page that is shared
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the parent

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
        _give(to, _portable(error))


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent does, however that comes about."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)  # it ended before the line above


def _portable(error: Exception) -> Exception:
    """The error, or what it says where it cannot be made again from what it was made of."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except (AttributeError, TypeError, pickle.PicklingError):
        return ReplayRefused(f"{type(error).__name__}: {error}")
    return error


def _give(to: Connection, what: FoldedShare | Exception | None) -> None:
    to.send_bytes(pickle.dumps(what, pickle.HIGHEST_PROTOCOL))


def _received(pipe: Connection) -> FoldedShare | None:
    """What a forked process gives next; None when it has folded all."""
    try:
        message = pipe.recv_bytes()
    except (EOFError, OSError) as error:  # OSError: in the middle of a message
        raise ProcessLost from error
    given: FoldedShare | Exception | None = pickle.loads(message)  # noqa: S301
    if isinstance(given, Exception):
        raise given
    return given


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
