"""Cgroups that bound memory and processes of one sandbox, version 1 or 2, where one may make them.

They are made below (or, in version 2, beside) the cgroup of whoever makes the sandbox, so that a
limit set on Headrace as a whole holds for its sandboxes too. Only the standard library, and little
of it: the supervisor starts with this file.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

CONTROLLERS = ("memory", "pids")
REMOVED_WITHIN_S = 2.0


def plan(
    name: str,
    *,
    mountinfo: str,
    membership: str,
    writable: Callable[[str], bool],
    read: Callable[[str], str],
) -> dict[str, str]:
    """Controller to the folder that would bound `name`; a controller out of reach is left out.

    `mountinfo` and `membership` are the texts of /proc/self/mountinfo and /proc/self/cgroup.
    """
    mounts = _mounts(mountinfo)
    folders: dict[str, str] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        for controller in CONTROLLERS:
            if controller in names.split(",") and controller in mounts:
                own = _below(mounts[controller], path)
                if writable(own):
                    folders[controller] = f"{own}/{name}"
        if not names and "" in mounts:
            own = _below(mounts[""], path)
            # A cgroup with processes in it cannot hand controllers down, hence its parent.
            for parent in (own, os.path.dirname(own)):
                if parent.startswith(mounts[""][1]) and writable(parent):
                    given = read(f"{parent}/cgroup.subtree_control").split()
                    for controller in CONTROLLERS:
                        if controller in given:
                            folders.setdefault(controller, f"{parent}/{name}")
    return folders


def plan_here(name: str) -> dict[str, str]:
    """`plan` for this process on this machine."""
    return plan(
        name,
        mountinfo=_text("/proc/self/mountinfo"),
        membership=_text("/proc/self/cgroup"),
        writable=lambda folder: os.access(folder, os.W_OK),
        read=_text,
    )


def make(folders: dict[str, str], *, memory_bytes: int, processes: int) -> list[str]:
    """Make the planned cgroups; returns the files into which a process writes 0 to enter.

    A controller that refuses is dropped from `folders`: resource limits hold in any case.
    """
    settings = {
        "memory.limit_in_bytes": memory_bytes,
        "memory.memsw.limit_in_bytes": memory_bytes,
        "memory.max": memory_bytes,
        "memory.swap.max": 0,
        "pids.max": processes,
    }
    for controller, folder in list(folders.items()):
        try:
            os.makedirs(folder, exist_ok=True)
            for name, value in settings.items():
                path = f"{folder}/{name}"
                if name.startswith(controller) and os.path.exists(path):
                    with open(path, "w") as file:
                        file.write(str(value))
        except OSError:
            del folders[controller]
    return [f"{folder}/cgroup.procs" for folder in sorted(set(folders.values()))]


def remove(folder: str) -> None:
    """Kill what is left in a cgroup and remove it; one that does not exist is fine."""
    give_up = time.monotonic() + REMOVED_WITHIN_S
    while True:
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError:
            # Busy: processes are on their way out, or their supervisor died and left them.
            if time.monotonic() > give_up:
                raise
        with suppress(OSError):
            for pid in _text(f"{folder}/cgroup.procs").split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.005)  # a cgroup offers nothing to wait for


def _mounts(mountinfo: str) -> dict[str, tuple[str, str]]:
    """Controller (version 2: empty) to the root and the mount point of its hierarchy."""
    mounts = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup2":
            mounts[""] = (root, point)
        elif kind == "cgroup":
            for controller in CONTROLLERS:
                if controller in options.split(","):
                    mounts[controller] = (root, point)
    return mounts


def _below(mount: tuple[str, str], path: str) -> str:
    """Where `path` of a hierarchy stands in the file system; a container mounts only a part."""
    root, point = mount
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return (point + path).rstrip("/")


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
