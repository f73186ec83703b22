"""Shell scripts that give a command inside an E2B sandbox what E2B itself does not.

E2B runs every command as `/bin/bash -l -c SCRIPT`, waits until nobody holds its output any more,
and can signal one process only. A command of ours gets a session of its own, so that everything
it started can be ended together; its group's id is kept in a *mark*, a file in the sandbox whose
name we chose, so that the group can be ended without having heard from it.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from shlex import join, quote

from generator.sandbox import OUTPUT_TAIL_BYTES, PROJECT_DIR, OnOutput, Stream

_ENTER = f"mkdir -p {PROJECT_DIR} && cd {PROJECT_DIR}"

# - Descriptor 3 keeps the shell's own remarks ("Killed ...") out of the command's output.
# - `set -C` makes creating the mark atomic: whoever comes first, the command or its end, wins.
# - The environment is the shell's own: a script holds less, and is logged. PATH alone is set behind
#   the login shell, whose profile would overwrite it.
# - What the command left running goes with it; holding its output, it would keep us waiting.
_RUN = """\
{enter} || exit
exec 3>&2 2>/dev/null
setsid --wait /bin/sh -c 'set -C; echo $$ >"$0" || exit; exec /usr/bin/env "$@"' \
{mark} {argv} 2>&3 3>&-
code=$?
kill -KILL -- "-$(cat {mark})"
rm -f {mark}
exit $code
"""

# A mark we could create is one of a command that has not begun, and now never will. Otherwise
# the command's own shell removes it when the group is dead; the loop is bounded for the case
# that this shell was killed too.
_END = """\
(set -C; : >{mark}) 2>/dev/null && exit
for _ in $(seq 60); do
  [ -e {mark} ] || exit 0
  kill -KILL -- "-$(cat {mark})"
  sleep 0.05
done 2>/dev/null
"""

_START = """\
{enter} && mkdir -p {folder} && : >{log} || exit
setsid --fork /bin/sh -c 'echo $$ >"$0"; exec /usr/bin/env "$@"' \
{mark} {argv} >>{log} 2>&1 </dev/null
"""

# The mark of a command goes with its own shell, which waits for it; that of a server with us.
_END_ALL = """\
for mark in {marks}; do
  [ -s "$mark" ] && kill -KILL -- "-$(cat "$mark")"
  rm -f "$mark"
done 2>/dev/null
:
"""


def run_script(command: str, env: Mapping[str, str], token: str) -> str:
    """Runs `command` in the foreground, its process group known by `token`.

    It expects `env` in its own environment, as all that start something do.
    """
    return _RUN.format(enter=_ENTER, mark=_mark(token), argv=_argv(command, env))


def end_script(token: str) -> str:
    """Kills the process group of the command with that `token`, even if it has yet to start."""
    return _END.format(mark=_mark(token))


def start_script(command: str, env: Mapping[str, str], log_path: str, token: str) -> str:
    """Starts `command` in the background, its output in a new `log_path`, and returns."""
    folder = quote(str(PurePosixPath("./", log_path).parent))
    log = quote(f"./{log_path}")
    return _START.format(
        enter=_ENTER, folder=folder, log=log, mark=_mark(token), argv=_argv(command, env)
    )


def end_all_script() -> str:
    """Kills the process groups of all commands and servers."""
    return _END_ALL.format(marks=_mark("*"))


def chmod_script(paths: list[str]) -> str:
    """Makes files below the project executable."""
    return f"{_ENTER} && chmod +x -- {join(paths)}"


def _mark(token: str) -> str:
    return f"/tmp/.headrace-{token}"  # noqa: S108 (a path inside the sandbox)


def _argv(command: str, env: Mapping[str, str]) -> str:
    path = [f"PATH={env['PATH']}"] if "PATH" in env else []
    return join([*path, "/bin/sh", "-c", command])


class CommandOutput:
    """Keeps the tail of a command's output and hands every piece on to a listener.

    `listener_error` is what the listener raised. It belongs to the caller and must not be taken
    for an error of the SDK, through whose hands it goes.
    """

    def __init__(self, on_output: OnOutput | None = None) -> None:
        self.listener_error: Exception | None = None
        self._on_output = on_output
        self._tail = bytearray()

    @property
    def tail(self) -> str:
        """The last `OUTPUT_TAIL_BYTES` bytes, both streams interleaved."""
        return self._tail.decode(errors="ignore")  # only its first character can be cut

    async def write(self, stream: Stream, text: str) -> None:
        self._tail += text.encode(errors="replace")
        del self._tail[:-OUTPUT_TAIL_BYTES]
        if self._on_output is None:
            return
        try:
            await self._on_output(stream, text)
        except Exception as error:
            self.listener_error = error
            raise
