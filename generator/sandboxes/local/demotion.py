"""Root gives itself up before anything untrusted runs.

Started by root, bubblewrap maps the sandbox's user to the kernel's user 0. Without a single
capability that one may still write /proc/sys/kernel/core_pattern (a command that the kernel runs
as root), change the mode of the host's /dev/null, and exceed RLIMIT_NPROC. So every sandbox gets
a kernel user of its own, far from those that systems, containers and networks hand out.

Imported only where root makes sandboxes.
"""

import ctypes
import os
from collections.abc import Mapping

STAGE = "/tmp"  # noqa: S108 (covered by a fresh tmpfs that nobody else sees)
NOBODY = 65534

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def become(uid: int, *, mounts: Mapping[str, str], copies: Mapping[str, str]) -> None:
    """Turn this process, between fork and exec, into user `uid` without groups.

    The new user may be unable to reach what it needs, say below a private /root. So in a mount
    namespace of this process, the folders `mounts` and the files `copies` appear as
    `STAGE/<name>`, the copies executable for everybody.
    """
    _call("unshare", _CLONE_NEWNS)
    _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    # Opened before the stage covers what may hold them.
    folders = {name: os.open(folder, os.O_PATH) for name, folder in mounts.items()}
    files = {name: os.open(file, os.O_RDONLY) for name, file in copies.items()}
    _call("mount", b"tmpfs", STAGE.encode(), b"tmpfs", 0, b"mode=755,size=16m")
    os.umask(0o022)
    for name, fd in folders.items():
        os.makedirs(f"{STAGE}/{name}")
        place = f"{STAGE}/{name}".encode()
        _call("mount", f"/proc/self/fd/{fd}".encode(), place, None, _MS_BIND, None)
        os.close(fd)
    for name, fd in files.items():
        os.makedirs(os.path.dirname(f"{STAGE}/{name}"), exist_ok=True)
        copy = os.open(f"{STAGE}/{name}", os.O_WRONLY | os.O_CREAT, 0o755)
        os.sendfile(copy, fd, 0, os.fstat(fd).st_size)
        os.close(copy)
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
