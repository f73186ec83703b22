"""One sandbox of the loopback server: a bubble, its processes, its preview port and its end."""

import asyncio
import contextlib
import json
import signal
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from tests.e2b_server.agent import pump
from tests.e2b_server.bubble import HOME, Bubble

APP_PORT = 8080
PORT_NOT_OPEN = b"The sandbox is running but port is not open"


Event = dict[str, Any]


@dataclass(eq=False)
class Process:
    """A command in a sandbox. What it prints while nobody listens is thrown away, as by envd."""

    pid: int
    argv: list[str]
    env: Mapping[str, str]
    cwd: str
    listeners: list[asyncio.Queue[Event]] = field(default_factory=list)

    def listen(self) -> asyncio.Queue[Event]:
        """What the agent tells from now on, up to `exit_code`, or `gone` if the sandbox ended."""
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self.listeners.append(queue)
        return queue

    def tell(self, event: Event) -> None:
        for queue in self.listeners:
            queue.put_nowait(event)


class Sandbox:
    """Lives from `start` to `end`, which comes by itself when its time is over."""

    def __init__(
        self,
        root: Path,
        *,
        template_id: str,
        metadata: Mapping[str, str],
        env: Mapping[str, str],
        on_timeout: Callable[["Sandbox"], None],
    ) -> None:
        self.template_id = template_id
        self.metadata = dict(metadata)
        self.env = dict(env)
        self.access_token = uuid4().hex
        self.started_at = datetime.now(UTC)
        self.ends_at = self.started_at
        self.processes: dict[int, Process] = {}
        self.sandbox_id = ""
        self.is_paused = False
        self._on_timeout = on_timeout
        self._bubble = Bubble(root)
        self._tasks: set[asyncio.Task[None]] = set()
        self._preview: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, timeout_s: float) -> None:
        await self._bubble.start()
        self._preview = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        # The first five characters of an id are the loopback port of its previews, so that a
        # plain template can lead there; the rest makes it unlike any other.
        self.sandbox_id = f"{self._preview.sockets[0].getsockname()[1]:05d}{uuid4().hex[:15]}"
        self.set_timeout(timeout_s)

    def set_timeout(self, timeout_s: float) -> None:
        """End `timeout_s` from now."""
        if self._timer is not None:
            self._timer.cancel()
        self.ends_at = datetime.now(UTC) + timedelta(seconds=timeout_s)
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._on_timeout, self)

    def pause(self) -> None:
        """Freeze all that runs inside; it has no end until it is resumed."""
        if self._timer is not None:
            self._timer.cancel()
        self.is_paused = True
        self._bubble.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Idempotent."""
        self._bubble.signal(signal.SIGCONT)
        self.is_paused = False

    @property
    def state(self) -> str:
        return "paused" if self.is_paused else "running"

    @property
    def left_s(self) -> float:
        return (self.ends_at - datetime.now(UTC)).total_seconds()

    def path(self, path: str) -> Path:
        """Where a file of the sandbox lies on this machine. Raises `ValueError`."""
        home = self._bubble.home.resolve()
        found = (home / Path(path).relative_to(HOME)).resolve()
        if not found.is_relative_to(home):
            raise ValueError(f"{path} leads out of {HOME}")
        return found

    async def exec(
        self, argv: list[str], env: Mapping[str, str], cwd: str
    ) -> tuple[Process, asyncio.Queue[Event]]:
        """Start a process and listen from its first byte. Raises `ValueError` if it cannot."""
        full_env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": HOME,
            "USER": "user",
            "LOGNAME": "user",
            "E2B_SANDBOX": "true",
            **self.env,
            **env,
        }
        reader, writer = await self._bubble.open(op="exec", argv=argv, env=full_env, cwd=cwd)
        started = json.loads(await reader.readline())
        if "error" in started:
            writer.close()
            raise ValueError(started["error"])
        process = Process(started["pid"], argv, env, cwd)
        self.processes[process.pid] = process
        queue = process.listen()
        self._spawn(self._follow(process, reader, writer))
        return process, queue

    async def signal(self, pid: int, number: signal.Signals) -> bool:
        """False when there is no such process."""
        if pid not in self.processes:
            return False
        reader, writer = await self._bubble.open(op="signal", pid=pid, signal=int(number))
        with contextlib.closing(writer):
            return bool(json.loads(await reader.readline())["found"])

    async def end(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._preview is not None:
            self._preview.close()
        await self._bubble.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, process: Process, reader: StreamReader, writer: StreamWriter) -> None:
        event: Event = {"gone": True}
        try:
            while line := await reader.readline():
                event = json.loads(line)
                if "exit_code" in event:
                    return
                process.tell(event)
            event = {"gone": True}
        except asyncio.CancelledError:
            event = {"gone": True}
            raise
        finally:
            del self.processes[process.pid]
            process.tell(event)
            writer.close()

    async def _relay(self, reader: StreamReader, writer: StreamWriter) -> None:
        """A connection to the preview's port, handed through to the app inside."""
        self._tasks.add(task := cast("asyncio.Task[None]", asyncio.current_task()))
        task.add_done_callback(self._tasks.discard)
        with contextlib.closing(writer):
            if self.is_paused:
                writer.write(_bad_gateway(b"The sandbox was not found"))
                return
            inner_reader, inner_writer = await self._bubble.open(op="dial", port=APP_PORT)
            with contextlib.closing(inner_writer):
                if json.loads(await inner_reader.readline() or b"{}").get("open"):
                    await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
                else:
                    writer.write(_bad_gateway(PORT_NOT_OPEN))


def _bad_gateway(body: bytes) -> bytes:
    """What E2B's proxy answers in place of a sandbox."""
    head = f"HTTP/1.1 502 Bad Gateway\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body
