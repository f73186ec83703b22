"""Changing an app that the template runner wrote: its name, its colours, fields of its entries.

The app keeps what it is made of in `app.json`, and every file of it that somebody else has changed
since stays as it is.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from generator.errors import RunnerFailed
from generator.runners.app_kinds import DATA_FILE, app_kinds, data_file
from generator.runners.changes import AddField, Change, Recolour, Rename, Scheme, understood

MAX_FIELDS = 8
_FIELD_LINE = 'FIELD, GOOD, OTHER, BAD = "due_date", "2026-12-24", "2027-01-31", "tomorrow"'
_SAMPLES = {
    "date": ("2026-12-24", "2027-01-31", "tomorrow"),
    "number": ("42", "3.5", "a few"),
    "tel": ("+49 30 123456", "555-0199", "call me"),
    "email": ("ada@example.com", "bob@example.com", "nobody"),
    "url": ("https://example.com/a", "http://example.com/b", "javascript:alert(1)"),
    "text": ("Crème brûlée <b>", "'; DROP TABLE x; --", "\0"),
}
_HAS = (DATA_FILE, "fields.py", "static/fields.js", "pages/theme.css")


def evolved(base: Mapping[str, bytes], request: str) -> dict[str, str]:
    """The files that become others, or new, when the change is made. Raises `RunnerFailed`.

    The same base and request give the same bytes.
    """
    data = _data(base)
    changes = understood(request)
    after = json.loads(json.dumps(data))
    files: dict[str, str] = {}
    for change in changes:
        files |= _apply(after, change, base)
    if after == data:
        raise RunnerFailed("nothing would change: the app is like that already")
    return {**files, DATA_FILE: data_file(after)}


def _data(base: Mapping[str, bytes]) -> dict[str, Any]:
    """What the app is made of. Raises `RunnerFailed` when it is not one of ours."""
    try:
        data = json.loads(base[DATA_FILE])
        is_ours = (
            data["kind"] in app_kinds()
            and isinstance(data["fields"], list)
            and all(path in base for path in _HAS)
        )
    except (KeyError, ValueError, TypeError):
        is_ours = False
    if not is_ours:
        raise RunnerFailed(
            "the template runner can only change apps that it wrote itself, and this build is "
            "none of them: build the app anew, or run with an LLM runner"
        )
    return dict(data)


def _apply(data: dict[str, Any], change: Change, base: Mapping[str, bytes]) -> dict[str, str]:
    """Change `data`; the further files that this needs."""
    match change:
        case Rename(name):
            data["title"] = name
            if data["kind"] == "poll":
                data["question" if name.endswith("?") else "eyebrow"] = name
        case Recolour(accent):
            data["accent_light"], data["accent_dark"] = accent.light, accent.dark
        case Scheme(value):
            data["color_scheme"] = value
        case AddField():
            return _add_field(data, change, base)
    return {}


def _add_field(data: dict[str, Any], field: AddField, base: Mapping[str, bytes]) -> dict[str, str]:
    fields: Sequence[Mapping[str, Any]] = data["fields"]
    if any(field.name == other["name"] for other in fields):
        raise RunnerFailed(f"there is a field “{field.label}” already: give the new one a name")
    if len(fields) >= MAX_FIELDS:
        raise RunnerFailed(f"the app has {MAX_FIELDS} further fields already, and takes no more")
    entry: dict[str, Any] = {"name": field.name, "label": field.label, "kind": field.kind}
    if field.choices:
        entry["choices"] = list(field.choices)
    data["fields"] = [*fields, entry]
    good, other, bad = _SAMPLES.get(field.kind) or (*field.choices[:2], "none of them")
    values = ", ".join(json.dumps(value) for value in (field.name, good, other, bad))
    test = app_kinds()[data["kind"]].field_test
    assert _FIELD_LINE in test  # noqa: S101 - our own file
    return {
        f"tests/test_{field.name}.py": test.replace(
            _FIELD_LINE, f"FIELD, GOOD, OTHER, BAD = {values}"
        )
    }
