"""What happens in each phase. A phase returns what its `PhaseCompleted` says, or raises.

Each may be run again from its beginning by another worker, which finds what the first has left: the
draft of the code, and the sandbox.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from generator.app_manifest import MANIFEST, app_commands
from generator.app_runs import run_command, see_app, start_server
from generator.build import Build
from generator.coding import write_code
from generator.errors import CheckFailed, ManifestInvalid
from generator.output import tail
from generator.provisioning import provide, stumbled, surviving
from generator.retrying import retrying
from schemas import Phase
from schemas.commands import CompletePhase
from schemas.events import Fact

COMMAND_TRIES = 3

PhaseFunction = Callable[[Build], Awaitable[CompletePhase]]


async def scaffold(build: Build) -> CompletePhase:
    """Lay the ground: the files of the base build, or an empty workspace."""
    started = time.monotonic()
    files = await build.base_files()
    workspace = build.workspace()
    await workspace.clear()
    await workspace.load(files)
    evidence: dict[str, Fact] = {"base_files": len(files)}
    if build.job.base_build is not None:
        evidence["base_build"] = build.job.base_build
    return CompletePhase(Phase.SCAFFOLD, _ms(started), evidence=evidence)


async def code(build: Build) -> CompletePhase:
    """Let the runner write the app, and keep its files before the phase counts as done."""
    started = time.monotonic()
    if build.job.restore:
        return await _restored(build, started)
    assert build.runner is not None  # noqa: S101 - without one the simulated phases run
    drafted = len(build.draft.files)
    files = await write_code(build)
    return CompletePhase(
        Phase.CODE,
        _ms(started),
        evidence={
            **build.facts,
            "runner": build.runner.name,
            "files": len(files),
            "bytes": sum(map(len, files.values())),
            "drafted": drafted,
        },
        manifest=await build.store_files(files),
        usage=build.usage,
    )


async def _restored(build: Build, started: float) -> CompletePhase:
    """The base's files as they are: there is nothing for a runner to do."""
    files = await build.base_files()
    app_commands(files)  # refused here: nobody would mend it
    return CompletePhase(
        Phase.CODE,
        _ms(started),
        evidence={
            "restored_build": build.job.base_build,
            "files": len(files),
            "bytes": sum(map(len, files.values())),
        },
        manifest=await build.store_files(files),
    )


async def deps(build: Build) -> CompletePhase:
    """Make the sandbox, put the files in, and install what the app declares."""
    started = time.monotonic()
    _check_declared(await build.files())  # before a provider is paid for anything
    evidence = await surviving(build, partial(provide, build))
    return CompletePhase(Phase.DEPS, _ms(started), evidence=evidence)


def _check_declared(files: Mapping[str, bytes]) -> None:
    """Raises `CheckFailed` when the app does not declare how it is tested and started."""
    try:
        app_commands(files)
    except ManifestInvalid as error:
        raise CheckFailed(
            str(error), command=f"read {MANIFEST}", exit_code=1, output=str(error)
        ) from error


async def checks(build: Build) -> CompletePhase:
    """Run the app's tests, start it, and ask it over HTTP, as a visitor would, who it is."""
    return await surviving(build, partial(_checks, build))


async def _checks(build: Build) -> CompletePhase:
    started = time.monotonic()
    if build.sandbox is None:
        await provide(build)  # taken over, or made anew
    assert build.sandbox is not None  # noqa: S101 - just provided
    sandbox, commands = build.sandbox, app_commands(await build.files())
    tests_started = time.monotonic()
    test = partial(
        run_command,
        *(build, sandbox, commands.test, build.deadlines.tests_s, "the app's own tests fail"),
    )
    tested = await retrying(build, "tests", test, again=stumbled, tries=COMMAND_TRIES)
    tests_ms = _ms(tests_started)
    start_started = time.monotonic()
    # Twice is once: of two the first has the port.
    start = partial(start_server, build, sandbox, commands.start)
    await retrying(build, "start", start, again=stumbled, tries=COMMAND_TRIES)
    start_ms = _ms(start_started)
    found = await see_app(build, sandbox, commands.start)
    return CompletePhase(
        Phase.CHECKS,
        _ms(started),
        evidence={
            "tests_exit_code": tested.exit_code,
            "tests_ms": tests_ms,
            "tests_output": tail(tested.output, 1_000),
            "start_ms": start_ms,
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


def _ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
