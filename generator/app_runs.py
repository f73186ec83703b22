"""Commands of an app, run in its sandbox: what they print is shown, what fails says why."""

from dataclasses import replace

from generator.app_environment import app_environment
from generator.build import Build
from generator.deadlines import deadline
from generator.errors import CheckFailed, CommandTimeout, DeadlinePassed
from generator.output import clean, last_line, tail
from generator.probe import Probed, probe
from generator.sandbox import PREVIEW_PORT, CommandResult, Sandbox
from generator.server_tail import server_shown
from schemas.events import MAX_OUTPUT_CHARS

SERVER_LOG = ".headrace/server.log"


async def run_command(
    build: Build,
    sandbox: Sandbox,
    command: str,
    timeout_s: float,
    failure: str,
    *,
    installs: bool = False,
) -> CommandResult:
    """The result of a command that succeeds, with what people may see of the output's end.

    Raises `CheckFailed`, beginning with `failure`.
    """
    environment = await app_environment(build)
    await build.transcript.say("command", command)
    try:
        result = await sandbox.run(
            command,
            timeout_s=timeout_s,
            env=environment,
            on_output=build.transcript.take,
            installs=installs,
        )
        await build.transcript.flush()
    except CommandTimeout as error:
        raise CheckFailed(
            f"{failure}: `{command}` did not end within {timeout_s:g} s",
            command=command,
            exit_code=None,
            output=_end_of(build, error.output),
        ) from error
    if result.exit_code != 0:
        output = _end_of(build, result.output)
        raise CheckFailed(
            f"{failure}: `{command}` ended with exit code {result.exit_code}{last_line(output)}",
            command=command,
            exit_code=result.exit_code,
            output=output,
        )
    return replace(result, output=_end_of(build, result.output))


async def start_server(build: Build, sandbox: Sandbox, command: str) -> None:
    """Start the app; what it prints goes to its log in the sandbox."""
    environment = await app_environment(build)
    await build.transcript.say("command", command)
    with deadline(build.deadlines.call_s, "starting the app"):
        await sandbox.start(command, log_path=SERVER_LOG, env=environment)


async def see_app(build: Build, sandbox: Sandbox, command: str) -> Probed:
    """What the app that `command` has started answers; what it prints is shown meanwhile.

    Raises `CheckFailed` when it does not answer as this build, `SandboxGone` when it cannot any
    more.
    """
    url = sandbox.preview_url(PREVIEW_PORT)
    async with server_shown(sandbox, SERVER_LOG, build.transcript):
        found = await probe(url, build.marker, timeout_s=build.deadlines.probe_s)
    if found.failure is not None:
        output = await _server_output(build, sandbox)
        raise CheckFailed(
            f"the app was started but {found.failure}{last_line(output)}",
            command=command,
            exit_code=None,
            output=output,
        )
    return found


async def _server_output(build: Build, sandbox: Sandbox) -> str:
    """The tail of what the app has printed; "" where there is nothing to read."""
    try:
        with deadline(build.deadlines.call_s, "reading the app's output"):
            content = await sandbox.read_file(SERVER_LOG)
    except (FileNotFoundError, DeadlinePassed):
        return ""
    return _end_of(build, content.decode(errors="replace"))


def _end_of(build: Build, output: str) -> str:
    """The tail of an output, fit to be shown; cut last, so that no secret is cut in two."""
    return tail(build.redactor.text(clean(output)), MAX_OUTPUT_CHARS)
