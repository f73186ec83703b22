"""Commands and servers inside a sandbox, and the reaping of every process in it."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .client import Client, Refused, Result
from .frames import CHUNK_BYTES, STDERR, STDOUT

PROJECT_DIR = "/home/user/project"
NICE = 5
KILL_AFTER_S = 0.5
GROUP_GONE_S = 2.0
END_ALL_TRIES = 200
LAST_OUTPUT_BYTES = 1024 * 1024
"""What is still read when a command has ended; more comes from a process that left its group."""


class Commands:
    """Runs commands, each in a session of its own so that everything it started ends with it."""

    def __init__(self) -> None:
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._reaped = asyncio.Event()

    async def run(
        self, client: Client, command: str, env: Mapping[str, str], timeout_s: float
    ) -> Result:
        """Run until the command ends, its time is over or the client is gone."""
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        try:
            pid = _spawn(command, env, out_end, err_end)
        except OSError:
            os.close(out)
            os.close(err)
            raise
        finally:
            os.close(out_end)
            os.close(err_end)
        exited = self._exits[pid] = asyncio.get_running_loop().create_future()
        output = asyncio.ensure_future(_forward_both(out, err, exited, client))
        gone = asyncio.ensure_future(client.gone())
        try:
            ends: set[asyncio.Future[Any]] = {exited, gone}
            in_time, _ = await asyncio.wait(
                ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            await self._end(pid, exited)
            await asyncio.wait({output, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            output.cancel()
            gone.cancel()
        return {"exit_code": await exited, "timed_out": not in_time}

    def start(self, command: str, env: Mapping[str, str], log_path: str) -> Result:
        """Start a server. Nobody waits for it: its log and its port tell how it fares."""
        path = os.path.join(PROJECT_DIR, log_path)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            begin = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK
            log = os.open(path, begin, 0o644)
        except OSError as error:
            raise Refused.by(error) from error
        try:
            _spawn(command, env, log, log)
        finally:
            os.close(log)
        return {}

    async def end_all(self) -> Result:
        """End every process but this one; as process 1 it sees them all, and reaps them."""
        with suppress(ProcessLookupError):
            for _ in range(END_ALL_TRIES):
                self._reaped.clear()
                os.kill(-1, signal.SIGKILL)
                with suppress(TimeoutError):
                    async with asyncio.timeout(KILL_AFTER_S):
                        await self._reaped.wait()
            raise Refused("failed", "processes go on starting others")
        return {}

    def reap(self) -> None:
        """Collect every process that has ended (on SIGCHLD)."""
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                exited = self._exits.pop(ended.si_pid, None)
                if exited is not None:
                    # Before its leader is reaped a group's id cannot have gone to another group.
                    _signal_group(ended.si_pid, signal.SIGKILL)
                _, status = os.waitpid(ended.si_pid, 0)
                if exited is not None:
                    code = os.waitstatus_to_exitcode(status)
                    exited.set_result(code if code >= 0 else 128 - code)
        self._reaped.set()

    async def _end(self, group: int, exited: asyncio.Future[int]) -> None:
        """End what is left of a command's process group."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if not exited.done():
                _signal_group(group, sign)
                await asyncio.wait({exited}, timeout=KILL_AFTER_S)
        # Bounded, because a process that left the group may never reap its child in the group.
        with suppress(TimeoutError):
            async with asyncio.timeout(GROUP_GONE_S):
                while _signal_group(group, 0):
                    self._reaped.clear()
                    await self._reaped.wait()


def _spawn(command: str, env: Mapping[str, str], output: int, errors: int) -> int:
    try:
        os.makedirs(PROJECT_DIR, exist_ok=True)
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=PROJECT_DIR,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_step_back,
        )
    except OSError as error:
        raise Refused.by(error) from error
    process.returncode = 0  # reaped by `reap`, so Popen must never wait for it
    return process.pid


def _step_back() -> None:
    """Whatever an app is up to, process 1 and the host come first."""
    os.nice(NICE)
    # Out of memory, the kernel ends those with the highest score.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def _signal_group(group: int, sign: int) -> bool:
    """Signal a process group; False when there is none."""
    try:
        os.killpg(group, sign)
    except ProcessLookupError:
        return False
    return True


async def _forward_both(out: int, err: int, exited: asyncio.Future[int], client: Client) -> None:
    await asyncio.gather(
        _forward(out, exited, client, STDOUT), _forward(err, exited, client, STDERR)
    )


async def _forward(fd: int, exited: asyncio.Future[int], client: Client, kind: bytes) -> None:
    """Send what comes out of a pipe as frames, no faster than the client takes them."""
    os.set_blocking(fd, False)
    last_bytes = LAST_OUTPUT_BYTES
    try:
        while last_bytes > 0:
            try:
                data = os.read(fd, CHUNK_BYTES)
            except BlockingIOError:
                if exited.done():
                    return  # a process that left the group may hold the pipe open for ever
                await _readable(fd, exited)
                continue
            if not data:
                return
            if exited.done():
                last_bytes -= len(data)
            await client.send(kind, data)
    except OSError:
        return  # the client has gone, which ends the command too
    finally:
        os.close(fd)


async def _readable(fd: int, exited: asyncio.Future[int]) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[int] = loop.create_future()
    loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(fd))
    try:
        await asyncio.wait({ready, exited}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(fd)
