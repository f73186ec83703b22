"""Homes that have been used before: their database is made and at the newest revision.

What a first start does takes four times as much of the processor as a start behind it.
"""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from eventstore import connect_postgres
from service.embedded import embedded_servers
from service.migrating import upgrade


async def furnish(home: Path) -> None:
    """Let a home that is not there yet be one of these; nothing is in its database."""
    used = Path(_used().name)
    if not (used / "postgres").exists():
        with embedded_servers(used) as servers:
            engine = connect_postgres(servers.database_url)
            try:
                await upgrade(engine)
            finally:
                await engine.dispose()
    shutil.copytree(used / "postgres", home / "postgres", symlinks=True)


@cache
def _used() -> "TemporaryDirectory[str]":
    """One for this process, gone at its end."""
    return TemporaryDirectory(prefix="headrace-home-")
