"""The process that holds one sandbox: starts it, lets clients and browsers in, ends it in time.

It lives on its own, so that a sandbox survives the worker that made it, and bubblewrap dies with
it, so that none survives its supervisor. Its input is one JSON object, a `Spec`; its output is
one more when the sandbox is ready or could not be made, then its output closes.

Python's own start dominates that of a sandbox. Hence only the standard library, and before
bubblewrap is running only little of it: the agent inside boots while asyncio is imported here.
What it imports of ours is named relatively, for it starts without the packages around (`_BOOT` in
`runtime.py`).
"""

import binascii
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from . import cgroups, registry

OVERDUE_S = 60
BACKLOG = 256
ENDED_WITHIN_S = 5.0

Spec = dict[str, Any]
"""Made by `isolation.spec`, where its fields are listed."""


class StartFailed(Exception):
    """Bubblewrap or the agent did not come up; the text is what they had to say."""


class Box:
    """A running bubblewrap: `channel` leads to the agent, `errors` is what both complain on."""

    def __init__(self, spec: Spec, info: registry.Info) -> None:
        self._folder = spec["folder"]
        self._files = spec["files_each"]
        self.install_hosts = spec["install_hosts"]
        self._info = info
        groups = dict(info["cgroups"])
        limits = dict(spec["rlimits"])
        entrances = cgroups.make(
            groups, memory_bytes=spec["memory_bytes"], processes=spec["processes"]
        )
        if "memory" not in groups:
            limits["AS"] = spec["address_space_bytes"]
        self.channel, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.errors, errors = os.pipe()
        self._status, status = os.pipe()
        files = {path: _in_memory(text.encode()) for path, text in spec["files"].items()}
        calls = _in_memory(binascii.a2b_base64(spec["seccomp"]))
        arguments = [*spec["arguments"], "--json-status-fd", str(status), "--seccomp", str(calls)]
        for path, fd in files.items():
            arguments += ["--perms", "0444", "--file", str(fd), path]
        command = [*spec["command"], str(inner.fileno()), json.dumps(limits)]
        theirs = [inner.fileno(), status, calls, *files.values()]
        try:
            self._process = subprocess.Popen(
                # What can be read of it inside, through /proc: no variables and a bare name.
                ["bwrap", *arguments, "--remount-ro", "/", "--", *command],
                executable=spec["bwrap"],
                env={},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=theirs,
                preexec_fn=lambda: _enter(entrances, spec),
            )
        except OSError as error:
            raise StartFailed(f"bubblewrap cannot be started: {error}") from error
        inner.detach()
        for fd in (errors, *theirs):
            os.close(fd)
        self.ended = os.pidfd_open(self._process.pid)
        self._first: int | None = None

    def watch(self) -> None:
        """Remember process 1 of the sandbox, whose end is the end of all processes in it."""
        pid = json.loads(os.read(self._status, 4096).splitlines()[0])["child-pid"]
        self._first = os.pidfd_open(pid)
        from . import inodes

        try:
            inodes.limit(pid, self._files)
        except OSError as error:
            raise StartFailed(f"the number of files cannot be limited: {error}") from error

    def end(self) -> None:
        """Returns when nothing of the sandbox is left, no process and no file."""
        self._process.kill()
        self._process.wait()
        if self._first is not None:
            select.select([self._first], [], [], ENDED_WITHIN_S)
        registry.forget(self._folder, self._info)


def main() -> None:
    """Detach, hold the sandbox until its end, clean up."""
    spec = json.load(sys.stdin)
    if os.fork():
        os._exit(0)  # the worker collects this one at once, and the child has another parent
    os.chdir("/")
    # Should the loop below ever hang: this signal ends the process, and bubblewrap with it.
    signal.alarm(spec["timeout_s"] + OVERDUE_S)
    try:
        _hold(spec)
    except StartFailed as failure:
        _report({"refused": str(failure)})
    except Exception as failure:
        _report({"failed": f"{type(failure).__name__}: {failure}"})
        raise


def _hold(spec: Spec) -> None:
    control, preview = _listen(spec["socket"])
    info = {
        "sandbox_id": spec["sandbox_id"],
        "metadata": spec["metadata"],
        "pid": os.getpid(),
        "ends_at": time.time() + spec["timeout_s"],
        "preview_port": preview.getsockname()[1],
        "socket": spec["socket"],
        "may_install": bool(spec["install_hosts"]),
        "cgroups": cgroups.plan_here(f"headrace-{spec['sandbox_id']}"),
    }
    # Published before there is anything to leave behind, so that a crash leaves it findable.
    lock = registry.publish(spec["folder"], info)
    try:
        box = Box(spec, info)
        from . import switchboard

        switchboard.run(
            box, control, preview, timeout_s=spec["timeout_s"], ready=lambda: _report(info)
        )
    finally:
        registry.forget(spec["folder"], info)
        os.close(lock)


def _listen(path: str) -> tuple[socket.socket, socket.socket]:
    control = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    control.bind(path)
    os.umask(mask)
    control.listen(BACKLOG)
    preview = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    return control, preview


def _in_memory(content: bytes) -> int:
    fd = os.memfd_create("file")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _enter(entrances: list[str], spec: Spec) -> None:
    """Between fork and exec: into the cgroups, then away from root."""
    try:
        for path in entrances:
            with open(path, "w") as procs:
                procs.write("0")
        if spec["uid"] is not None:
            from . import demotion

            demotion.become(spec["uid"], mounts=spec["mounts"], copies=spec["copies"])
    except OSError as error:
        os.write(2, f"cannot prepare the process: {error}\n".encode())
        os._exit(1)


def _report(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode())
    os.dup2(2, 1)  # closes the pipe to the worker, which waits for exactly that
