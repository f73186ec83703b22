"""One sandbox in the E2B cloud, as its clients see it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from uuid import uuid4

import anyio
import structlog
from anyio import CancelScope
from e2b import (
    AsyncSandbox,
    CommandExitException,
    FileNotFoundException,
    SandboxNotFoundException,
)
from e2b.sandbox.filesystem.filesystem import WriteEntry

from generator.errors import CommandTimeout, SandboxError, SandboxGone
from generator.sandbox import PROJECT_DIR, CommandResult, OnOutput
from generator.sandboxes.e2b.commands import (
    CommandOutput,
    chmod_script,
    end_all_script,
    end_script,
    run_script,
    start_script,
)
from generator.sandboxes.e2b.errors import translated
from generator.workspace import checked_path

UPLOAD_BYTES = 8 * 1024 * 1024
UPLOAD_FILES = 100
"""Size of one upload, small enough for the time limit of a request on a slow line."""

END_GROUP_S = 8.0
"""How long a timed-out or cancelled command may hold up its caller while it is being ended."""

DISCONNECT_S = 2.0

_log = structlog.get_logger()


class E2BSandbox:
    """One living sandbox of E2B."""

    def __init__(self, sdk: AsyncSandbox, *, preview_url: str, request_timeout_s: float) -> None:
        self._sdk = sdk
        self._preview_url = preview_url
        self._request_timeout_s = request_timeout_s

    @property
    def sandbox_id(self) -> str:
        return self._sdk.sandbox_id

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        for batch in _uploads({checked_path(path): data for path, data in files.items()}):
            entries = [
                WriteEntry(path=f"{PROJECT_DIR}/{path}", data=data) for path, data in batch.items()
            ]
            async with self._calling("write files"):
                await self._sdk.files.write_files(entries)
            if scripts := [path for path in batch if path.endswith(".sh")]:
                await self._shell("make files executable", chmod_script(scripts))

    async def read_file(self, path: str) -> bytes:
        absolute = f"{PROJECT_DIR}/{checked_path(path)}"
        try:
            async with self._calling(f"read {path}"):
                content = await self._sdk.files.read(absolute, format="bytes")
        except SandboxError as error:
            if isinstance(error.__cause__, FileNotFoundException):
                raise FileNotFoundError(path) from error
            raise
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
        token = uuid4().hex
        output = CommandOutput(on_output)
        exit_code: int | None = None
        try:
            with anyio.move_on_after(timeout_s):
                script = run_script(command, env or {}, token)
                exit_code = await self._follow(script, output, env)
        finally:
            if exit_code is None:  # timed out, cancelled, cut off, or the listener failed
                with CancelScope(shield=True):
                    await self._end_group(token)
        if exit_code is None:
            raise CommandTimeout(command, timeout_s, output.tail)
        return CommandResult(exit_code, output.tail)

    async def start(
        self, command: str, *, log_path: str, env: Mapping[str, str] | None = None
    ) -> None:
        await self._shell(
            "start a server",
            start_script(command, env or {}, checked_path(log_path), uuid4().hex),
            env,
        )

    async def end_processes(self) -> None:
        await self._shell("end what runs in a sandbox", end_all_script())

    def preview_url(self, port: int) -> str:
        return self._preview_url.format(
            host=self._sdk.get_host(port), sandbox_id=self.sandbox_id, port=port
        ).rstrip("/")

    async def close(self) -> None:
        """Nothing to give back: the SDK's connections belong to the process, not to a sandbox."""

    async def _shell(self, doing: str, script: str, env: Mapping[str, str] | None = None) -> None:
        """Run a short script of ours that has to succeed."""
        output = CommandOutput()
        with anyio.move_on_after(self._request_timeout_s):
            if await self._follow(script, output, env):
                raise SandboxError(f"E2B could not {doing}: {output.tail.strip()}")
            return
        raise SandboxError(f"E2B could not {doing} in time; try again")

    async def _follow(
        self, script: str, output: CommandOutput, env: Mapping[str, str] | None = None
    ) -> int:
        """The exit code of a script whose output goes to `output`; no time limit of its own."""
        handle = None
        try:
            async with self._calling("start a command"):
                handle = await self._sdk.commands.run(
                    script,
                    background=True,
                    envs=dict(env or {}),
                    on_stdout=partial(output.write, "stdout"),
                    on_stderr=partial(output.write, "stderr"),
                    timeout=0,  # E2B would kill the shell, and nothing but the shell
                    request_timeout=0,  # the SDK's leaves a task behind when we are cancelled
                    retain_output=False,
                )
            async with self._calling("follow a command", deadline_s=math.inf):
                try:
                    return int((await handle.wait()).exit_code)
                except CommandExitException as ended:
                    return ended.exit_code
        except SandboxError:
            if output.listener_error is not None:
                raise output.listener_error from None
            raise
        finally:
            if handle is not None:
                with anyio.move_on_after(DISCONNECT_S, shield=True):
                    await handle.disconnect()

    async def _end_group(self, token: str) -> None:
        """Kill what a command started; given up after a while, as its sandbox will end too."""
        reason = "no answer"
        with anyio.move_on_after(END_GROUP_S):
            try:
                await self._follow(end_script(token), CommandOutput())
                return
            except SandboxGone:
                return
            except SandboxError as error:
                reason = str(error)
        _log.warning("command_not_ended", sandbox=self.sandbox_id, reason=reason)

    def _calling(
        self, doing: str, *, deadline_s: float | None = None
    ) -> AbstractAsyncContextManager[None]:
        return translated(
            doing,
            deadline_s=self._request_timeout_s if deadline_s is None else deadline_s,
            sandbox_id=self.sandbox_id,
            is_gone=self._is_gone,
        )

    async def _is_gone(self) -> bool:
        """What E2B's control plane says, which knows; no answer is no proof."""
        with anyio.move_on_after(self._request_timeout_s):
            try:
                await self._sdk.get_info()
            except SandboxNotFoundException:
                return True
            except Exception:  # noqa: BLE001 (the error that made us ask is the one to report)
                return False
        return False


def _uploads(files: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """The files in the order given, in uploads of bounded size."""
    batch: dict[str, bytes] = {}
    size_bytes = 0
    for path, data in files.items():
        # A quote survives only in the address of a lone file, not in a multipart header.
        alone = '"' in path or any('"' in name for name in batch)
        full = size_bytes + len(data) > UPLOAD_BYTES or len(batch) == UPLOAD_FILES
        if batch and (alone or full):
            yield batch
            batch, size_bytes = {}, 0
        batch[path] = data
        size_bytes += len(data)
    if batch:
        yield batch
