"""What comes from inside a sandbox is not trusted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from generator.errors import SandboxError, SandboxGone
from generator.sandboxes.local.inside.frames import DATA, HEADER, RESULT, STDOUT, frame
from generator.sandboxes.local.sandbox import LocalSandbox

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def impostor(run_dir: Path, answer: bytes) -> AsyncIterator[LocalSandbox]:
    """A sandbox whose agent answers everything with the same bytes, then hangs up."""
    path = str(run_dir / "impostor.sock")

    async def respond(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    async with anyio.create_task_group() as tasks, await anyio.create_unix_listener(path) as server:
        tasks.start_soon(server.serve, respond)
        with anyio.fail_after(10):
            yield LocalSandbox("sb-impostor", socket_path=path, preview_port=1)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        HEADER.pack(RESULT, 2**32 - 1),
        frame(b"?", b"what"),
        frame(RESULT, b"\xff\xfe"),
        frame(RESULT, b"[" * 100_000),
        frame(RESULT, b'"exit_code"'),
        frame(RESULT, b'{"exit_code": "0"}'),
        frame(RESULT, b'{"exit_code": true}'),
        frame(RESULT, b'{"exit_code": 1e400}'),
        frame(RESULT, b"{}"),
        frame(RESULT, b'{"error": {"deep": []}, "message": [1]}'),
        frame(DATA, b"not asked for"),
    ],
)
async def test_nonsense_from_inside_is_an_error_and_no_hang(run_dir: Path, answer: bytes) -> None:
    async with impostor(run_dir, answer) as sandbox:
        with pytest.raises(SandboxError, match=r"sb-impostor (sent|refused)"):
            await sandbox.run("true", timeout_s=5)


@pytest.mark.parametrize("answer", [b"", HEADER.pack(STDOUT, 100) + b"cut off"])
async def test_a_sandbox_that_hangs_up_and_answers_no_more_is_gone(
    run_dir: Path, answer: bytes
) -> None:
    async with impostor(run_dir, answer or b"\0") as sandbox:
        with pytest.raises(SandboxGone):
            await sandbox.run("true", timeout_s=5)


async def test_output_that_is_no_text_is_replaced(run_dir: Path) -> None:
    answer = frame(STDOUT, b"a\xffb\xc3") + frame(RESULT, b'{"exit_code": 0}')
    async with impostor(run_dir, answer) as sandbox:
        assert (await sandbox.run("true", timeout_s=5)).output == "a�b�"


async def test_a_file_without_end_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generator.sandboxes.local.sandbox.MAX_READ_BYTES", 1000)
    async with impostor(run_dir, frame(DATA, bytes(600)) * 2) as sandbox:
        with pytest.raises(SandboxError, match="larger"):
            await sandbox.read_file("a")
