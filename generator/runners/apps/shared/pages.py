"""What the browser loads: pages filled from `app.json`, and static files.

All of it is read once, into a dict by URL path. A request can name nothing outside that dict, so
no path, however written, leads to another file of the machine.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
SLOT = re.compile(r"\{\{(\w+)\}\}")


class File(NamedTuple):
    content: bytes
    content_type: str
    etag: str


def load_data(root: Path) -> dict[str, Any]:
    """The texts and settings of this app."""
    data: dict[str, Any] = json.loads((root / "app.json").read_text(encoding="utf-8"))
    return data


def load_files(root: Path, data: Mapping[str, object]) -> dict[str, File]:
    """URL path to file: `pages/` filled in at the top (`index.html` as `/`), `static/` as it is."""
    files = {}
    for path in sorted((root / "pages").iterdir()):
        content = fill(path.read_text(encoding="utf-8"), data).encode()
        files["/" if path.name == "index.html" else f"/{path.name}"] = _file(path, content)
    for path in sorted((root / "static").iterdir()):
        files[f"/static/{path.name}"] = _file(path, path.read_bytes())
    return files


def fill(template: str, data: Mapping[str, object]) -> str:
    """Put `data` into the `{{slots}}`, escaped, in one pass: a text with braces stays a text.

    What is no text goes in as JSON.
    """
    return SLOT.sub(lambda slot: html.escape(_shown(data[slot[1]])), template)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _file(path: Path, content: bytes) -> File:
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return File(content, CONTENT_TYPES[path.suffix], etag)
