"""How many files a sandbox may have, which bubblewrap has no argument for.

Empty files take no space of a tmpfs, but memory of the kernel. So its file systems are mounted once
more, with a limit, by a process that enters the sandbox's mounts from outside: who made a user
namespace may do so, and what runs inside may not undo it.

Imported by the supervisor while the agent boots.
"""

import ctypes
import fcntl
import os

PLACES = ("/home/user", "/tmp", "/dev/shm")  # noqa: S108 (those of the sandbox)

_NS_GET_USERNS = 0xB701
"""ioctl_ns(2): the user namespace that owns another namespace."""
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 2, 4, 32

_libc = ctypes.CDLL(None, use_errno=True)


def limit(pid: int, files: int) -> None:
    """Let each file system of process `pid`'s sandbox hold at most `files`. Raises `OSError`."""
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _remount(pid, files)
        except OSError as error:
            os.write(told, str(error).encode())
        finally:
            os._exit(0)
    os.close(told)
    try:
        if said := os.read(answer, 4096):
            raise OSError(said.decode())
    finally:
        os.close(answer)
        os.waitpid(child, 0)


def _remount(pid: int, files: int) -> None:
    mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    owner = fcntl.ioctl(mounts, _NS_GET_USERNS)
    _call("setns", owner, _CLONE_NEWUSER)
    _call("setns", mounts, _CLONE_NEWNS)
    for place in PLACES:
        flags = _MS_REMOUNT | _MS_NOSUID | _MS_NODEV
        _call("mount", None, place.encode(), None, flags, f"nr_inodes={files}".encode())


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
