"""What happens in each phase. A phase returns what its `PhaseCompleted` says, or raises.

Each may be run again from its beginning by another worker: whatever it left behind is replaced.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import anyio

from generator.app_manifest import app_commands
from generator.build import Build, deadline
from generator.errors import CheckFailed, CommandTimeout, DeadlinePassed, RunnerFailed
from generator.output import clean, last_line, tail
from generator.probe import probe
from generator.runner import RunnerTask
from generator.sandbox import PREVIEW_PORT, CommandResult, Sandbox
from generator.server_tail import server_shown
from schemas import Phase
from schemas.commands import CompletePhase, RecordSandbox
from schemas.events import MAX_OUTPUT_CHARS

SERVER_LOG = ".headrace/server.log"

PhaseFunction = Callable[[Build], Awaitable[CompletePhase]]


async def scaffold(build: Build) -> CompletePhase:
    """Lay the ground: an empty workspace."""
    started = time.monotonic()
    workspace = build.workspace()
    await workspace.clear()
    return CompletePhase(Phase.SCAFFOLD, _ms(started), evidence={"base_files": 0})


async def code(build: Build) -> CompletePhase:
    """Let the runner write the app, and keep its files before the phase counts as done."""
    started = time.monotonic()
    workspace = build.workspace()
    await workspace.clear()
    runner = build.runner
    assert runner is not None  # noqa: S101 - without one the simulated phases run
    task = RunnerTask(job=build.job.job, goal=build.job.goal, round=build.job.round)
    try:
        with anyio.fail_after(build.deadlines.code_s):
            usage = await runner.run(task, workspace, build)
            await build.transcript.flush()
    except TimeoutError as error:
        raise RunnerFailed(
            f"the {runner.name} runner did not finish within {build.deadlines.code_s:g} s"
        ) from error
    files = workspace.files
    if not any(files.values()):
        raise RunnerFailed(f"the {runner.name} runner wrote no files: try another goal")
    app_commands(files)  # an app that cannot be started is refused before anything is paid for it
    manifest = await build.store_files(files)
    return CompletePhase(
        Phase.CODE,
        _ms(started),
        evidence={
            "runner": runner.name,
            "files": len(files),
            "bytes": sum(map(len, files.values())),
        },
        manifest=manifest,
        usage=usage,
    )


async def deps(build: Build) -> CompletePhase:
    """Make the sandbox, put the files in, and install what the app declares."""
    started = time.monotonic()
    evidence = await _prepare_sandbox(build)
    return CompletePhase(Phase.DEPS, _ms(started), evidence=evidence)


async def checks(build: Build) -> CompletePhase:
    """Run the app's tests, start it, and ask it over HTTP, as a visitor would, who it is."""
    started = time.monotonic()
    if build.sandbox is None:
        # Taken over: what the predecessor's sandbox holds by now is not known.
        await _prepare_sandbox(build)
    assert build.sandbox is not None  # noqa: S101 - just prepared
    commands = app_commands(await build.files())
    tested = await _run(build, commands.test, build.deadlines.tests_s, "the app's own tests fail")
    tests_ms = _ms(started)
    await build.transcript.say("command", commands.start)
    with deadline(build.deadlines.call_s, "starting the app"):
        await build.sandbox.start(commands.start, log_path=SERVER_LOG, env=build.app_environment)
    url = build.sandbox.preview_url(PREVIEW_PORT)
    async with server_shown(build.sandbox, SERVER_LOG, build.transcript):
        found = await probe(url, build.marker, timeout_s=build.deadlines.probe_s)
    if found.failure is not None:
        output = await _server_output(build)
        raise CheckFailed(
            f"the app was started but {found.failure}{last_line(output)}",
            command=commands.start,
            exit_code=None,
            output=output,
        )
    return CompletePhase(
        Phase.CHECKS,
        _ms(started),
        evidence={
            "tests_exit_code": tested.exit_code,
            "tests_ms": tests_ms,
            "tests_output": tail(clean(tested.output), 1_000),
            "probe_url": found.url,
            "probe_status": found.status,
            "probe_marker": found.marker,
            "probe_tries": found.tries,
            "probe_ms": found.duration_ms,
        },
    )


async def simulated(build: Build) -> CompletePhase:
    """Any phase of the loop that a worker without a runner walks: the FSM without the work."""
    phase = build.job.current_phase
    assert phase is not None  # noqa: S101 - called within one
    return CompletePhase(phase, 0, evidence={"simulated": True})


PHASES: dict[Phase, PhaseFunction] = {
    Phase.SCAFFOLD: scaffold,
    Phase.CODE: code,
    Phase.DEPS: deps,
    Phase.CHECKS: checks,
}


async def _prepare_sandbox(build: Build) -> dict[str, str | int]:
    started = time.monotonic()
    await build.end_sandbox()
    build.sandbox = await _create_sandbox(build)
    create_ms = _ms(started)
    files = await build.files()
    with deadline(build.deadlines.upload_s, "the upload to the sandbox"):
        await build.sandbox.write_files(files)
    upload_ms = _ms(started) - create_ms
    install = app_commands(files).install
    if install is not None:
        await _run(build, install, build.deadlines.install_s, "the app cannot be installed")
    return {
        "sandbox_id": build.sandbox.sandbox_id,
        "create_ms": create_ms,
        "upload_ms": upload_ms,
        "install_ms": _ms(started) - create_ms - upload_ms,
        "install_command": install or "",
    }


async def _create_sandbox(build: Build) -> Sandbox:
    """A sandbox that the log knows of. One that could not be recorded is ended at once."""
    life_s = build.deadlines.sandbox_s
    with deadline(build.deadlines.create_s, "making a sandbox"):
        sandbox = await build.runtime().create(
            metadata={
                "tenant": build.job.tenant,
                "job": build.job.job,
                "attempt": str(build.claim.attempt),
            },
            timeout_s=life_s,
        )
    try:
        await build.tell(
            RecordSandbox(
                sandbox_id=sandbox.sandbox_id,
                provider=build.runtime().provider,
                ends_at=build.handler.clock() + timedelta(seconds=life_s),
            )
        )
    except BaseException:
        build.sandbox = sandbox
        await build.end_sandbox()
        raise
    return sandbox


async def _run(build: Build, command: str, timeout_s: float, failure: str) -> CommandResult:
    assert build.sandbox is not None  # noqa: S101 - callers made one
    await build.transcript.say("command", command)
    try:
        result = await build.sandbox.run(
            command,
            timeout_s=timeout_s,
            env=build.app_environment,
            on_output=build.transcript.take,
        )
        await build.transcript.flush()
    except CommandTimeout as error:
        raise CheckFailed(
            f"{failure}: `{command}` did not end within {timeout_s:g} s",
            command=command,
            exit_code=None,
            output=tail(clean(error.output), MAX_OUTPUT_CHARS),
        ) from error
    if result.exit_code != 0:
        output = tail(clean(result.output), MAX_OUTPUT_CHARS)
        raise CheckFailed(
            f"{failure}: `{command}` ended with exit code {result.exit_code}{last_line(output)}",
            command=command,
            exit_code=result.exit_code,
            output=output,
        )
    return result


async def _server_output(build: Build) -> str:
    assert build.sandbox is not None  # noqa: S101 - callers made one
    try:
        with deadline(build.deadlines.call_s, "reading the app's output"):
            content = await build.sandbox.read_file(SERVER_LOG)
    except (FileNotFoundError, DeadlinePassed):
        return ""
    return tail(clean(content.decode(errors="replace")), MAX_OUTPUT_CHARS)


def _ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
