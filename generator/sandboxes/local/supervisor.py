"""The process that holds one sandbox: starts it, lets clients and browsers in, ends it in time.

It lives on its own, so that a sandbox survives the worker that made it, and bubblewrap dies with
it, so that none survives its supervisor. It begins with a `Spec`, and has a socket to the worker
(`launch.py`): over it comes, maybe much later, whose the sandbox is and how long it may live, and
goes what became of it. A worker that hangs up before has no use for it.

Python's own start dominates that of a sandbox. So a supervisor is forked from a process that has
started (`nursery.py`). The first of a worker waits for no more than it needs: only the standard
library, and before bubblewrap is running only little of it. What is imported of ours is named
relatively, for the nursery starts without the packages around (`BOOT` in `launch.py`).
"""

import binascii
import json
import os
import select
import signal
import socket
import subprocess
import time
from contextlib import suppress
from typing import Any

from . import cgroups, registry

UNCLAIMED_S = 3600
OVERDUE_S = 60
BACKLOG = 256
CLAIM_BYTES = 64 * 1024
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
        files = {
            path: _in_memory(binascii.a2b_base64(content))
            for path, content in spec["files"].items()
        }
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


def main(spec: Spec, worker: socket.socket) -> None:
    """Hold the sandbox until its end, clean up."""
    # Should the loop below ever hang: this signal ends the process, and bubblewrap with it.
    signal.alarm(UNCLAIMED_S + OVERDUE_S)
    try:
        _hold(spec, worker)
    except StartFailed as failure:
        _refuse(worker, {"refused": str(failure)})
    except Exception as failure:
        _refuse(worker, {"failed": f"{type(failure).__name__}: {failure}"})
        raise


def _hold(spec: Spec, worker: socket.socket) -> None:
    control, preview = _listen(spec["socket"])
    now = time.time()
    info = {
        "sandbox_id": spec["sandbox_id"],
        "metadata": None,
        "pid": os.getpid(),
        "started_at": now,
        "ends_at": now + UNCLAIMED_S,
        "preview_port": preview.getsockname()[1],
        "socket": spec["socket"],
        "may_install": bool(spec["install_hosts"]),
        "cgroups": cgroups.plan_here(f"headrace-{spec['sandbox_id']}"),
    }
    # Published before there is anything to leave behind, so that a crash leaves it findable.
    locks = [registry.publish(spec["folder"], info)]

    def claimed() -> float | None:
        """How long it may live, in seconds; None when nobody wants it any more."""
        try:
            claim = worker.recv(CLAIM_BYTES)
        except ConnectionResetError:
            claim = b""
        if not claim:
            return None
        info.update(json.loads(claim), started_at=time.time())
        life_s = info.pop("timeout_s")
        info["ends_at"] = info["started_at"] + life_s
        signal.alarm(life_s + OVERDUE_S)
        # The first lock stays: somebody may look at what was published with it.
        locks.append(registry.publish(spec["folder"], info))
        try:
            worker.send(json.dumps(info).encode())
        except OSError:
            return None  # its worker has given it up, and no other knows of it
        worker.close()
        return float(life_s)

    try:
        box = Box(spec, info)
        from . import switchboard

        switchboard.run(box, control, preview, worker, claimed)
    finally:
        registry.forget(spec["folder"], info)
        for lock in locks:
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


def _refuse(worker: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # a worker that has gone need not know
        worker.setblocking(True)
        worker.send(json.dumps(message).encode())
        worker.recv(CLAIM_BYTES)  # hanging up on a claim would cost the worker the answer
