"""What is still there of an instance that has ended: processes, cgroups, folders, sockets.

Asked of the machine itself and not of the provider of sandboxes, whose word is what is examined.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from generator.sandboxes.local import cgroups
from generator.sandboxes.local.registry import ID_PREFIX, INFO
from service.embedded import socket_folder


def sandbox_folders(home: Path) -> list[Path]:
    """Those of sandboxes that came up; of a creation that crashed the next one cleans up later."""
    return [one.parent for one in (home / "sandboxes").glob(f"{ID_PREFIX}*/{INFO}")]


def sandbox_sockets(home: Path) -> list[Path]:
    """Where supervisors listened."""
    return list((socket_folder(home) / "sandboxes").glob("*.sock"))


def sandbox_cgroups(ids: Collection[str]) -> list[Path]:
    """The cgroups of these sandboxes."""
    planned = {folder for one in ids for folder in cgroups.plan_here(f"headrace-{one}").values()}
    return [Path(folder) for folder in sorted(planned) if os.path.isdir(folder)]


def processes(home: Path, ids: Collection[str]) -> list[int]:
    """Those that work in `home`, or in one of these sandboxes, but this one."""
    words = [os.fsencode(home.resolve()), *map(os.fsencode, ids)]
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if int(process.name) != os.getpid()
        and any(word in said for said in _said_of(process) for word in words)
    ]


def _said_of(process: Path) -> Iterator[bytes]:
    """All that names what a process belongs to; nothing of one that has just ended."""
    for name in ("cmdline", "environ", "cgroup"):
        with suppress(OSError):
            yield (process / name).read_bytes()
    with suppress(OSError):
        for link in (process / "cwd", *(process / "fd").iterdir()):
            with suppress(OSError):
                yield os.fsencode(os.readlink(link))
