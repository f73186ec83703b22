"""A runner at work: in a thread of its own, with an event loop of its own.

A runner that never yields would otherwise stop every build of its worker, and no cancel could reach
it. Here its build goes on without it: it is told to stop, and what does not stop within `GRACE_S`
is cut off. From then on it can write no file and say nothing. A loop in Python is ended by an
exception raised in its thread; a call that blocks outside of Python ends when it returns.
"""

import asyncio
import contextvars
import ctypes
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import structlog
from anyio.from_thread import BlockingPortal

from generator.errors import RunnerFailed
from generator.runner import Listener, Runner, RunnerTask
from generator.workspace import Workspace
from schemas.commands import Usage
from schemas.events import Fact

GRACE_S = 0.5

log = structlog.get_logger()


async def run_in_thread(
    runner: Runner, task: RunnerTask, workspace: Workspace, listener: Listener
) -> Usage:
    """What `runner.run` gives or raises. When cancelled, returns only once the run has no effect.

    The workspace's notices and the listener are called in this event loop.
    """
    async with BlockingPortal() as portal:
        voice = _Voice(portal, listener, workspace.on_written)
        workspace.on_written = voice.wrote
        run = _Run(lambda: runner.run(task, workspace, voice))
        try:
            await run.ended.wait()
        except anyio.get_cancelled_exc_class():
            run.stop()
            with anyio.move_on_after(GRACE_S, shield=True):
                await run.ended.wait()
            raise
        finally:
            workspace.close()
            voice.cut()
            if not run.ended.is_set():
                log.error("runner_cut_off", runner=runner.name, job=task.job)
                run.interrupt()
    return run.result()


class _Run:
    """The thread, and what came of it."""

    def __init__(self, work: Callable[[], Awaitable[Usage]]) -> None:
        self.ended = anyio.Event()
        self._work = work
        self._waiting = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False
        self._usage: Usage | None = None
        self._error: BaseException | None = None
        # A daemon: what blocks for ever must not keep the process from ending.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._main,), name="runner", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Cancel the run, at its next step; idempotent."""
        self._stopped = True
        if self._task is not None and self._loop is not None:
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._task.cancel)

    def interrupt(self) -> None:
        """Raise `SystemExit` in the thread, at its next step in Python."""
        thread_id = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(SystemExit))

    def result(self) -> Usage:
        if self._error is not None:
            raise self._error
        assert self._usage is not None  # noqa: S101 - it has ended without an error
        return self._usage

    def _main(self) -> None:
        try:
            self._usage = asyncio.run(self._under())
        except Exception as error:  # noqa: BLE001 - for who waits, in another thread
            self._error = error
        except BaseException as error:  # noqa: BLE001 - a cancel, or an end, of this thread alone
            self._error = RunnerFailed(f"the runner stopped by itself ({type(error).__name__})")
        finally:
            with suppress(RuntimeError):  # nobody waits any more
                self._waiting.call_soon_threadsafe(self.ended.set)

    async def _under(self) -> Usage:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._stopped:
            raise asyncio.CancelledError
        return await self._work()


class _Voice:
    """The listener as the runner's thread has it: speaks in the build's loop, until it is cut."""

    def __init__(
        self,
        portal: BlockingPortal,
        listener: Listener,
        on_written: Callable[[Mapping[str, int]], Awaitable[None]],
    ) -> None:
        self._portal = portal
        self._listener = listener
        self._on_written = on_written
        self._is_cut = False

    def cut(self) -> None:
        self._is_cut = True

    async def said(self, text: str) -> None:
        await self._speak(self._listener.said, text)

    async def used(self, usage: Usage) -> None:
        await self._speak(self._listener.used, usage)

    async def noted(self, facts: Mapping[str, Fact]) -> None:
        await self._speak(self._listener.noted, facts)

    async def wrote(self, sizes: Mapping[str, int]) -> None:
        await self._speak(self._on_written, sizes)

    async def _speak(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        if self._is_cut:
            raise RunnerFailed("the build goes on without this run")
        await asyncio.wrap_future(self._portal.start_task_soon(function, *args))
