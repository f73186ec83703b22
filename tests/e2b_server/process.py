"""envd's process service: commands of a sandbox, over the ASGI application in the SDK's wheel."""

import asyncio
import base64
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Literal

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from e2b.envd.process import process_pb as pb
from e2b.envd.process.process_connect import Process as ProcessService
from protobuf import Oneof

from tests.e2b_server.sandbox import Event, Process, Sandbox

Stdout = Oneof[Literal["stdout"], bytes]
Stderr = Oneof[Literal["stderr"], bytes]


class Processes(ProcessService):
    """Finds the sandbox of a request by its headers, which `Edge` has checked."""

    def __init__(self, sandbox_of: Callable[[str], Sandbox]) -> None:
        self._sandbox_of = sandbox_of

    async def list(
        self, request: pb.ListRequest, ctx: RequestContext[Any, Any], /
    ) -> pb.ListResponse:
        return pb.ListResponse(
            processes=[
                pb.ProcessInfo(pid=process.pid, config=_config(process))
                for process in self._sandbox(ctx).processes.values()
            ]
        )

    async def start(
        self, request: pb.StartRequest, ctx: RequestContext[Any, Any], /
    ) -> AsyncIterator[pb.StartResponse]:
        sandbox = self._sandbox(ctx)
        config = request.process or pb.ProcessConfig()
        if not sandbox.path(config.cwd or "/home/user").is_dir():
            raise ConnectError(Code.INVALID_ARGUMENT, f"cwd '{config.cwd}' does not exist")
        try:
            process, queue = await sandbox.exec(
                [config.cmd, *config.args], config.envs, config.cwd or "/home/user"
            )
        except ValueError as error:
            raise ConnectError(Code.INVALID_ARGUMENT, str(error)) from error
        if milliseconds := ctx.request_headers.get("connect-timeout-ms"):
            # envd's clock is its own: it runs on when the client has gone.
            asyncio.get_running_loop().call_later(
                int(milliseconds) / 1000,
                lambda: asyncio.ensure_future(sandbox.signal(process.pid, signal.SIGKILL)),
            )
        async with aclosing(_events(process, queue)) as events:
            async for event in events:
                yield pb.StartResponse(event=event)

    async def connect(
        self, request: pb.ConnectRequest, ctx: RequestContext[Any, Any], /
    ) -> AsyncIterator[pb.ConnectResponse]:
        process = self._process(request.process, ctx)
        async with aclosing(_events(process, process.listen())) as events:
            async for event in events:
                yield pb.ConnectResponse(event=event)

    async def send_signal(
        self, request: pb.SendSignalRequest, ctx: RequestContext[Any, Any], /
    ) -> pb.SendSignalResponse:
        process = self._process(request.process, ctx)
        await self._sandbox(ctx).signal(process.pid, signal.Signals(int(request.signal)))
        return pb.SendSignalResponse()

    def _sandbox(self, ctx: RequestContext[Any, Any]) -> Sandbox:
        return self._sandbox_of(ctx.request_headers["e2b-sandbox-id"])

    def _process(
        self, selector: pb.ProcessSelector | None, ctx: RequestContext[Any, Any]
    ) -> Process:
        match selector.selector if selector else None:
            case Oneof(field="pid", value=int(pid)):
                if process := self._sandbox(ctx).processes.get(pid):
                    return process
                raise ConnectError(Code.NOT_FOUND, f"process with pid {pid} not found")
        raise ConnectError(Code.UNIMPLEMENTED, "processes are selected by pid")


def _config(process: Process) -> pb.ProcessConfig:
    cmd, *args = process.argv
    return pb.ProcessConfig(cmd=cmd, args=args, envs=dict(process.env), cwd=process.cwd)


async def _events(
    process: Process, queue: asyncio.Queue[Event]
) -> AsyncGenerator[pb.ProcessEvent, None]:
    try:
        yield _start(process.pid)
        while True:
            match await queue.get():
                case {"stdout": text}:
                    stdout: Stdout = Oneof("stdout", base64.b64decode(text))
                    yield _data(stdout)
                case {"stderr": text}:
                    stderr: Stderr = Oneof("stderr", base64.b64decode(text))
                    yield _data(stderr)
                case {"exit_code": code}:
                    yield _end(code)
                    return
                case _:
                    raise ConnectError(
                        Code.UNAVAILABLE, "the connection ended before the stream completed"
                    )
    finally:
        process.listeners.remove(queue)


def _start(pid: int) -> pb.ProcessEvent:
    event: Oneof[Literal["start"], pb.ProcessEvent.StartEvent]
    event = Oneof("start", pb.ProcessEvent.StartEvent(pid=pid))
    return pb.ProcessEvent(event=event)


def _data(output: Stdout | Stderr) -> pb.ProcessEvent:
    event: Oneof[Literal["data"], pb.ProcessEvent.DataEvent]
    event = Oneof("data", pb.ProcessEvent.DataEvent(output=output))
    return pb.ProcessEvent(event=event)


def _end(code: int) -> pb.ProcessEvent:
    """In the words of envd's language, which says -1 of a process that a signal ended."""
    status = f"exit status {code}" if code >= 0 else f"signal: {-code}"
    event: Oneof[Literal["end"], pb.ProcessEvent.EndEvent] = Oneof(
        "end",
        pb.ProcessEvent.EndEvent(
            exit_code=max(code, -1), exited=code >= 0, status=status, error=status if code else None
        ),
    )
    return pb.ProcessEvent(event=event)
