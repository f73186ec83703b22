"""The sandboxes of this machine: one folder each below the state folder.

`<id>/info.json` tells what a supervisor holds and is locked by it as long as it lives, which,
unlike a process id, can neither be reused nor go stale. A folder whose lock is free was left by
a supervisor that was killed; whoever comes across it cleans up. Only the standard library, and
little of it: the supervisor starts with this file.
"""

import fcntl
import json
import os
import time
from contextlib import suppress
from typing import Any

from . import cgroups

ID_PREFIX = "sb-"
INFO = "info.json"
UNBORN_S = 60.0
"""A folder without info older than this belongs to a creation that crashed."""

Info = dict[str, Any]


def publish(folder: str, info: Info) -> int:
    """Write `info.json`; it counts as alive while the returned descriptor is open."""
    draft = os.path.join(folder, f".{INFO}")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, json.dumps(info).encode())
    os.rename(draft, os.path.join(folder, INFO))  # complete and locked from its first moment
    return fd


def living(folder: str) -> Info | None:
    """What the supervisor of `folder` holds; None when there is none or it has died."""
    info, alive = _look(folder)
    return info if alive else None


def sweep(state_dir: str) -> list[Info]:
    """Every living sandbox; what dead supervisors left is cleaned up on the way."""
    found = []
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(state_dir)):
            if not name.startswith(ID_PREFIX):
                continue
            folder = os.path.join(state_dir, name)
            info, alive = _look(folder)
            if info is not None and alive:
                found.append(info)
            elif info is not None or _age_s(folder) > UNBORN_S:
                with suppress(OSError):  # whoever comes next tries again
                    forget(folder, info)
    return found


def bury(folder: str) -> None:
    """Clean up after the supervisor of `folder`, unless it lives; it may have held nothing yet."""
    info, alive = _look(folder)
    if not alive:
        forget(folder, info)


def forget(folder: str, info: Info | None) -> None:
    """Remove every trace of a sandbox that has ended; killed processes in its cgroups included."""
    if info is not None:
        for cgroup in set(info["cgroups"].values()):
            cgroups.remove(cgroup)
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    if info is not None:
        with suppress(FileNotFoundError):
            os.unlink(info["socket"])


def counted(info: Info) -> list[str]:
    """The controllers whose cgroups were made as they were planned."""
    return sorted(name for name, folder in info["cgroups"].items() if os.path.isdir(folder))


def _look(folder: str) -> tuple[Info | None, bool]:
    try:
        with open(os.path.join(folder, INFO)) as file:
            info: Info = json.load(file)
            return info, _locked(file.fileno())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a power cut leaves empty files
        return None, False


def _locked(fd: int) -> bool:
    try:
        # Shared, so that two who look at once do not take each other for the supervisor.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _age_s(folder: str) -> float:
    try:
        return time.time() - os.stat(folder).st_mtime
    except FileNotFoundError:
        return 0.0
