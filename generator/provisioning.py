"""A living sandbox that holds the app's files, installed: patched, or else made anew.

A sandbox says itself what it holds: `HELD` names the manifest whose files were written and
installed in it, and is empty while that is being changed. The app inside could forge it; what comes
of that is seen by the checks of that same app.
"""

import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from shlex import join
from typing import TypeVar

from generator.app_manifest import app_commands, install_inputs
from generator.app_runs import run_command
from generator.build import Build
from generator.deadlines import deadline
from generator.errors import (
    ArtifactMissing,
    CheckFailed,
    GenerationError,
    SandboxError,
    SandboxGone,
)
from generator.handover import inherited_sandbox
from generator.retrying import retrying
from generator.sandbox import Sandbox
from generator.sandbox_life import create_sandbox, living_sandbox
from schemas.events import Fact

HELD = ".headrace/manifest"
SANDBOX_TRIES = 3
INSTALL_TRIES = 3
_DELETED_AT_ONCE = 200
_DIGEST = re.compile(r"[0-9a-f]{64}")

# What installers print when a network is to blame, and not the app.
_NETWORK = re.compile(
    r"temporary failure in name resolution|could not resolve|name or service not known"
    r"|EAI_AGAIN|ECONNRESET|ECONNREFUSED|ETIMEDOUT|ENETUNREACH|connection (reset|refused|aborted)"
    r"|connection timed out|read timed out|network is unreachable|too many requests"
    r"|bad gateway|service unavailable|gateway time-?out",
    re.IGNORECASE,
)

T = TypeVar("T")


async def surviving(build: Build, action: Callable[[], Awaitable[T]]) -> T:
    """What `action` gives. It is done again, in a new sandbox, when its sandbox ends under it."""

    def ended(error: GenerationError) -> bool:
        if not isinstance(error, SandboxGone):
            return False
        build.sandbox = None
        return True

    return await retrying(build, "sandbox", action, again=ended, tries=SANDBOX_TRIES)


async def provide(build: Build) -> dict[str, Fact]:
    """Let `build.sandbox` hold the app's files, installed; how that was done, as evidence.

    Raises `CheckFailed` when the app cannot be installed.
    """
    began = time.monotonic()
    files = await build.files()
    build.sandbox = await living_sandbox(build) or await inherited_sandbox(build)
    held = await _held_by(build, build.sandbox) if build.sandbox else None
    if build.sandbox is None or held is None:
        held = {}
        build.sandbox = await retrying(build, "create_sandbox", partial(create_sandbox, build))
    sandbox = build.sandbox
    created = time.monotonic()
    written = {path: content for path, content in files.items() if held.get(path) != content}
    deleted = held.keys() - files.keys()
    if written or deleted:
        await retrying(build, "upload", partial(_patch, build, sandbox, written, deleted))
    uploaded = time.monotonic()
    install = _install_needed(held, files)
    if install:
        command = partial(
            run_command,
            build,
            sandbox,
            install,
            build.deadlines.install_s,
            "the app cannot be installed",
            installs=True,
        )
        await retrying(build, "install", command, again=_may_pass, tries=INSTALL_TRIES)
    installed = time.monotonic()
    if written or deleted:
        await _say_held(build, sandbox, build.job.manifest or "")
    return {
        "sandbox_id": sandbox.sandbox_id,
        "files_written": len(written),
        "files_deleted": len(deleted),
        "create_ms": _ms(created - began),
        "upload_ms": _ms(uploaded - created),
        "install_ms": _ms(installed - uploaded),
        "install_command": install,
    }


async def _held_by(build: Build, sandbox: Sandbox) -> Mapping[str, bytes] | None:
    """The files that a sandbox holds, installed; {} where it holds nothing that must go.

    None where that cannot be known: it is of no use then.
    """

    async def ask() -> str:
        with deadline(build.deadlines.call_s, "asking the sandbox what it holds"):
            return (await sandbox.read_file(HELD)).decode(errors="replace")

    try:
        held = await retrying(build, "ask_sandbox", ask, again=stumbled, tries=SANDBOX_TRIES)
        if _DIGEST.fullmatch(held):
            return await build.files_of(held)
    except (FileNotFoundError, ArtifactMissing):
        pass
    # In a first round there never was anything but files of this very manifest.
    return {} if build.job.round == 1 and not build.job.in_place else None


async def _patch(
    build: Build, sandbox: Sandbox, written: Mapping[str, bytes], deleted: Collection[str]
) -> None:
    with deadline(build.deadlines.upload_s, "the upload to the sandbox"):
        await sandbox.write_files({HELD: b""})
        paths = sorted(deleted)
        for first in range(0, len(paths), _DELETED_AT_ONCE):
            await _delete(build, sandbox, paths[first : first + _DELETED_AT_ONCE])
        await sandbox.write_files(written)


async def _delete(build: Build, sandbox: Sandbox, paths: list[str]) -> None:
    """Delete files, and the folders that are empty then: a file may take their name."""
    folders = sorted({path.rpartition("/")[0] for path in paths} - {""})
    script = f"rm -f -- {join(paths)}"
    if folders:
        script += f"; rmdir -p -- {join(folders)} 2>/dev/null; true"
    result = await sandbox.run(script, timeout_s=build.deadlines.call_s)
    if result.exit_code != 0:
        raise SandboxError(f"files could not be deleted in the sandbox: {result.output[:200]}")


async def _say_held(build: Build, sandbox: Sandbox, manifest: str) -> None:
    with deadline(build.deadlines.call_s, "marking the sandbox"):
        await sandbox.write_files({HELD: manifest.encode()})


def _install_needed(held: Mapping[str, bytes], files: Mapping[str, bytes]) -> str:
    """The install command; "" when there is none, or what it depends on is as it was."""
    install = app_commands(files).install
    if install is None:
        return ""
    if not held or app_commands(held).install != install:
        return install
    inputs = install_inputs(install, files)
    paths = held.keys() | files.keys() if inputs is None else inputs
    return install if any(held.get(path) != files.get(path) for path in paths) else ""


def _may_pass(error: GenerationError) -> bool:
    if isinstance(error, CheckFailed):
        return bool(_NETWORK.search(error.output))
    return stumbled(error)


def stumbled(error: GenerationError) -> bool:
    """Whether the way to a sandbox broke off, or its provider is at a limit: no fault of an app."""
    return isinstance(error, SandboxError) and error.may_pass


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
