"""Root gives itself up before anything untrusted runs.

Started by root, bubblewrap maps the sandbox's user to the kernel's user 0. Without a single
capability that one may still write /proc/sys/kernel/core_pattern (a command that the kernel runs
as root), change the mode of the host's /dev/null, and exceed RLIMIT_NPROC. So every sandbox gets
a kernel user of its own, far from those that systems, containers and networks hand out.

Only the supervisor of root imports this file.
"""

import ctypes
import os
from collections.abc import Mapping

STAGE = "/tmp"  # noqa: S108 (covered by a fresh tmpfs that nobody else sees)
NOBODY = 65534

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def become(uid: int, staged: Mapping[str, str]) -> None:
    """Turn this process, between fork and exec, into user `uid` without groups.

    `staged` maps names to folders that the new user may be unable to reach, say below a private
    /root: they appear as `STAGE/<name>` in a mount namespace of this process.
    """
    if staged:
        _call("unshare", _CLONE_NEWNS)
        _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        # Opened before the stage covers what may hold them.
        sources = {name: os.open(folder, os.O_PATH) for name, folder in staged.items()}
        _call("mount", b"tmpfs", STAGE.encode(), b"tmpfs", 0, b"mode=755,size=64k")
        for name, fd in sources.items():
            place = f"{STAGE}/{name}"
            os.mkdir(place)
            _call("mount", f"/proc/self/fd/{fd}".encode(), place.encode(), None, _MS_BIND, None)
            os.close(fd)
    os.setgroups([])
    try:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError:  # a container whose user namespace has 65536 users only
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
