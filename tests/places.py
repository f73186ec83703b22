"""Where servers of tests keep their data."""

import os
import shutil
from pathlib import Path

_MEMORY = Path("/dev/shm")
_LEAST_BYTES = 4 * 1024**3


def quick_folder() -> str | None:
    """A place in memory, where there is one with room: data there outlive a kill.

    None: where temporary files are by default.
    """
    if not os.access(_MEMORY, os.W_OK) or os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
        return None
    return str(_MEMORY) if shutil.disk_usage(_MEMORY).free >= _LEAST_BYTES else None
