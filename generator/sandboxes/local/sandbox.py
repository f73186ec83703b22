"""One sandbox of this machine, as its clients see it.

Nothing is kept open: each operation is a connection of its own, and leaving it early, for whatever
reason, ends what it started inside. What comes from inside was written by code nobody trusts.
"""

import codecs
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio

from generator.errors import CommandTimeout, SandboxError, SandboxFull, SandboxGone
from generator.sandbox import OUTPUT_TAIL_BYTES, PREVIEW_PORT, CommandResult, OnOutput, Stream
from generator.sandboxes.local.channel import Channel, ChannelLost, open_channel, parsed_result
from generator.sandboxes.local.inside.frames import (
    CHUNK_BYTES,
    CONTROL,
    DATA,
    END,
    FILE,
    INSTALL,
    NOTE,
    REQUEST,
    STDERR,
    STDOUT,
    MalformedFrame,
)
from generator.workspace import checked_path

ANSWER_S = 60.0
COMMAND_GRACE_S = 5.0
PING_S = 5.0
MAX_READ_BYTES = 64 * 1024 * 1024

_STREAMS: dict[bytes, Stream] = {STDOUT: "stdout", STDERR: "stderr", NOTE: "stderr"}


class LocalSandbox:
    """One living sandbox of this machine."""

    def __init__(
        self, sandbox_id: str, *, socket_path: str, preview_port: int, may_install: bool = False
    ) -> None:
        self._sandbox_id = sandbox_id
        self._may_install = may_install
        self._socket_path = socket_path
        self._preview_port = preview_port

    @property
    def sandbox_id(self) -> str:
        return self._sandbox_id

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        checked = {checked_path(path): content for path, content in files.items()}
        async with self._operation("write files") as channel:
            await channel.send(REQUEST, _json(op="write"))
            for path, content in checked.items():
                await channel.send(FILE, _json(path=path, executable=path.endswith(".sh")))
                for start in range(0, len(content), CHUNK_BYTES):
                    await channel.send(DATA, content[start : start + CHUNK_BYTES])
            await channel.send(END)
            self._check(await channel.result())

    async def read_file(self, path: str) -> bytes:
        content = bytearray()
        async with self._operation(f"read {path}") as channel:
            await channel.send(REQUEST, _json(op="read", path=checked_path(path)))
            while (received := await channel.receive())[0] == DATA:
                content += received[1]
                if len(content) > MAX_READ_BYTES:
                    raise SandboxError(f"file {path!r} is larger than {MAX_READ_BYTES} bytes")
            self._check(parsed_result(*received))
        return bytes(content)

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        on_output: OnOutput | None = None,
        installs: bool = False,
    ) -> CommandResult:
        output = _Output(on_output)
        kind, op = (INSTALL, "install") if installs and self._may_install else (CONTROL, "run")
        request = _json(op=op, command=command, env=dict(env or {}), timeout_s=timeout_s)
        with anyio.move_on_after(timeout_s + COMMAND_GRACE_S):
            async with self._channel(kind) as channel:
                await channel.send(REQUEST, request)
                while (received := await channel.receive())[0] in _STREAMS:
                    await output.take(_STREAMS[received[0]], received[1])
                await output.finish()
                result = parsed_result(*received)
                self._check(result)
                if result.get("timed_out") is not True:
                    return CommandResult(_exit_code(result), output.tail)
        raise CommandTimeout(command, timeout_s, output.tail)

    async def start(
        self, command: str, *, log_path: str, env: Mapping[str, str] | None = None
    ) -> None:
        request = _json(
            op="start", command=command, env=dict(env or {}), log_path=checked_path(log_path)
        )
        async with self._operation("start a server") as channel:
            await channel.send(REQUEST, request)
            self._check(await channel.result())

    async def end_processes(self) -> None:
        async with self._operation("end what runs in it") as channel:
            await channel.send(REQUEST, _json(op="end"))
            self._check(await channel.result())

    def preview_url(self, port: int) -> str:
        if port != PREVIEW_PORT:
            raise ValueError(f"only port {PREVIEW_PORT} of a sandbox can be seen, not {port}")
        return f"http://127.0.0.1:{self._preview_port}"

    async def close(self) -> None:
        """Nothing to give back."""

    @asynccontextmanager
    async def _operation(self, name: str) -> AsyncIterator[Channel]:
        with anyio.move_on_after(ANSWER_S) as scope:
            async with self._channel() as channel:
                yield channel
        if scope.cancelled_caught:
            raise SandboxError(
                f"sandbox {self._sandbox_id} took longer than {ANSWER_S:g} s to {name}"
            )

    @asynccontextmanager
    async def _channel(self, kind: bytes = CONTROL) -> AsyncIterator[Channel]:
        try:
            async with open_channel(self._socket_path, kind) as channel:
                yield channel
        except MalformedFrame as error:
            raise SandboxError(f"sandbox {self._sandbox_id} sent nonsense: {error}") from error
        except ChannelLost:
            if await self._answers():
                raise SandboxError(
                    f"sandbox {self._sandbox_id} broke off in the middle of an answer"
                ) from None
            raise SandboxGone(self._sandbox_id) from None

    async def _answers(self) -> bool:
        """Whether a sandbox that hung up on us is alive."""
        with anyio.move_on_after(PING_S):
            try:
                async with open_channel(self._socket_path) as channel:
                    await channel.send(REQUEST, _json(op="ping"))
                    await channel.result()
                    return True
            except (ChannelLost, MalformedFrame):
                return False
        return False

    def _check(self, result: Mapping[str, object]) -> None:
        if "error" in result:
            message = str(result.get("message"))[:500]
            match result["error"]:
                case "full":
                    raise SandboxFull(f"sandbox {self._sandbox_id} is at a limit: {message}")
                case "missing":
                    raise FileNotFoundError(message)
                case _:
                    raise SandboxError(f"sandbox {self._sandbox_id} refused: {message}")


class _Output:
    """The output of a command: decoded as it comes, handed on, and its tail kept."""

    def __init__(self, on_output: OnOutput | None) -> None:
        self._on_output = on_output
        self._tail = bytearray()
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: decoder("replace") for stream in set(_STREAMS.values())}

    @property
    def tail(self) -> str:
        return self._tail.decode(errors="ignore")  # only its first character can be cut

    async def take(self, stream: Stream, data: bytes, *, final: bool = False) -> None:
        text = self._decoders[stream].decode(data, final)
        self._tail += text.encode()
        del self._tail[:-OUTPUT_TAIL_BYTES]
        if text and self._on_output is not None:
            await self._on_output(stream, text)

    async def finish(self) -> None:
        for stream in self._decoders:
            await self.take(stream, b"", final=True)


def _exit_code(result: Mapping[str, object]) -> int:
    code = result.get("exit_code")
    if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code <= 255:
        raise MalformedFrame(f"exit code {code!r:.80}")
    return code


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()
