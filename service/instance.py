"""A running Headrace as others on this machine find it: a private file in its home."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from service.embedded import is_held
from service.settings import Settings

LOCAL_TENANT = "local"


@dataclass(frozen=True, slots=True)
class Instance:
    """How to reach a running Headrace."""

    url: str
    key: str
    redis_url: str
    database_url: str
    pid: int

    @classmethod
    def find(cls, settings: Settings) -> "Instance | None":
        """The instance that runs on this home, None when none does."""
        try:
            found = cls(**json.loads(settings.instance_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        # A killed one leaves its file behind, and its process id may be another's by now.
        return found if is_held(settings.home) else None


@contextmanager
def announced(path: Path, instance: Instance) -> Iterator[None]:
    """Let others find the instance while the block runs."""
    write_private(path, json.dumps(asdict(instance), indent=2) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_private(path: Path, content: str) -> None:
    """Whole or not at all, mode 600 from its first moment."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(content)
    draft.replace(path)
