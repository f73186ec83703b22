"""Writes `docs/events.md` from the code: `python -m docs.generate`. A test holds it current."""

import inspect
from pathlib import Path
from typing import Any, get_args

from schemas.events import Known, Payload
from schemas.job import TRANSITIONS

EVENTS = Path(__file__).parent / "events.md"

HEAD = """# Events

Generated from `schemas/events.py` and `schemas/job.py` by `python -m docs.generate`.

An event is a fact about a job, past tense and immutable. Beside its payload it has an `id`
(UUIDv7), `type`, `tenant`, `project`, `job`, `version` (1, 2, 3, … within its job), `time`
(RFC 3339, UTC), `cause` (id of the event or command behind it) and `trace` (W3C traceparent). Over
HTTP it is a CloudEvents 1.0 JSON object with the payload in `data`.

## Moves

| from | to |
|---|---|
"""


def events_page() -> str:
    """The page as it should be."""
    moves = "".join(
        f"| {start} | {', '.join(sorted(ends)) or '(ended)'} |\n"
        for start, ends in TRANSITIONS.items()
    )
    return HEAD + moves + "".join(_section(model) for model in get_args(Known))


def _section(model: type[Payload]) -> str:
    schema = model.model_json_schema()
    fields = schema.get("properties", {})
    rows = "".join(
        f"| `{name}` | {_shape(field)} | {_default(name, field, schema)} |\n"
        for name, field in fields.items()
    )
    table = f"\n| field | type | default |\n|---|---|---|\n{rows}" if rows else ""
    return f"\n## {model.type}\n\n{inspect.getdoc(model)}\n{table}"


def _shape(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_shape(option) for option in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[-1]
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    name = str(field.get("format") or field.get("type", "any"))
    limits = [
        f"{words} {field[key]}"
        for key, words in (
            ("minimum", "at least"),
            ("minLength", "characters: at least"),
            ("maxLength", "at most"),
        )
        if key in field
    ]
    return f"{name} ({', '.join(limits)})" if limits else name


def _default(name: str, field: dict[str, Any], schema: dict[str, Any]) -> str:
    return "required" if name in schema.get("required", []) else f"`{field.get('default')}`"


if __name__ == "__main__":
    EVENTS.write_text(events_page())
