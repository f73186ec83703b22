"""Writes `docs/events.md` and `docs/events/*.json` from the code: `python -m docs.generate`.

A published schema is a promise to whoever reads events (`docs/compatibility.py`): where the code
would break one, nothing is written. `--check` writes nothing at all and says what is wrong.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema

from docs.compatibility import JsonSchema, breaking_changes
from schemas.decoding import UPCASTERS
from schemas.events import Known, Payload
from schemas.job import TRANSITIONS

DOCS = Path(__file__).parent
ENVELOPE = "envelope"
WHAT_TO_DO = (
    "Nothing was written. An event that must change gets a new wire type and an upcaster from the "
    "old one, whose schema stays (docs/decisions/0005-version-in-the-wire-type.md); the envelope "
    "may gain attributes that can be absent, and nothing else."
)

HEAD = """# Events

Generated from `schemas/events.py` and `schemas/job.py` by `python -m docs.generate`.

An event is a fact about a job, past tense and immutable. Beside its payload it has an `id`
(UUIDv7), `type`, `tenant`, `project`, `job`, `version` (1, 2, 3, … within its job), `time`
(RFC 3339, UTC), `cause` (id of the event or command behind it) and `trace` (W3C traceparent). Over
HTTP it is a CloudEvents 1.0 JSON object with the payload in `data`
([schema](events/envelope.json)).

A published schema is never changed so that a reader breaks: an event may gain a field that can be
absent, and whatever else must change becomes a new type, `JobQueued.v2`. Pass over types and fields
that you do not know.

## Moves

| from | to |
|---|---|
"""


class Envelope(BaseModel):
    """An event as others see it, over HTTP and in exports: a CloudEvents 1.0 JSON object."""

    model_config = ConfigDict(title=ENVELOPE, use_attribute_docstrings=True)

    specversion: Literal["1.0"]
    id: str
    """The event's id, a UUIDv7; the same however often the event is delivered."""
    source: str
    """`/headrace/<tenant>/<project>`."""
    type: str = Field(pattern=r"^headrace\.")
    """`headrace.` and the wire type, whose schema describes `data`."""
    subject: str
    """The job's id."""
    time: AwareDatetime
    """When it happened, in UTC."""
    datacontenttype: Literal["application/json"]
    tenant: str
    project: str
    job: str
    jobversion: int = Field(ge=1)
    """The event's number within its job: 1, 2, 3, … without gaps."""
    cause: str = ""
    """The id of the event or command behind it, where one is known."""
    traceparent: str = ""
    """The W3C trace it belongs to, where there is one."""
    data: dict[str, Any]
    """The payload."""


class _Untitled(GenerateJsonSchema):
    """Without the titles that only repeat the fields' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def events_page(upcast: Collection[str] = UPCASTERS) -> str:
    """The page as it should be; `upcast` are the wire types that only old events have."""
    moves = "".join(
        f"| {start} | {', '.join(sorted(ends)) or '(ended)'} |\n"
        for start, ends in TRANSITIONS.items()
    )
    older = "".join(f"- [{name}](events/{name}.json)\n" for name in sorted(upcast))
    return (
        HEAD
        + moves
        + "".join(_section(model) for model in get_args(Known))
        + (f"\n## Older types\n\nRecorded once, still readable.\n\n{older}" if older else "")
    )


def event_schemas() -> dict[str, JsonSchema]:
    """The JSON Schema of every payload by its wire type, and of the envelope."""
    models: dict[str, type[BaseModel]] = {model.type: model for model in get_args(Known)}
    return {
        name: {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:headrace:events:{name}",
            **model.model_json_schema(schema_generator=_Untitled),
            "title": name,
        }
        for name, model in (models | {ENVELOPE: Envelope}).items()
    }


def broken_promises(
    published: Mapping[str, JsonSchema], current: Mapping[str, JsonSchema], upcast: Collection[str]
) -> list[str]:
    """What `current` breaks of what was published, a sentence each.

    A wire type that the code only upcasts keeps the schema that it had.
    """
    found: list[str] = []
    for name, schema in sorted(published.items()):
        if name in current:
            found += [f"{name}: {broken}" for broken in breaking_changes(schema, current[name])]
        elif name not in upcast:
            found.append(f"{name}: it is published, and the code neither has nor upcasts it")
    return found


def main(arguments: Sequence[str], docs: Path = DOCS) -> None:
    """Write what changed into `docs`. Exits with 1 and says why where that breaks a promise."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is wrong")
    check = parser.parse_args(arguments).check
    schemas = event_schemas()
    published = {
        path.stem: json.loads(path.read_text()) for path in (docs / "events").glob("*.json")
    }
    if broken := broken_promises(published, schemas, UPCASTERS):
        sys.exit("\n".join([*broken, WHAT_TO_DO]))
    pages = {docs / "events.md": events_page()} | {
        docs / "events" / f"{name}.json": _text(schema) for name, schema in schemas.items()
    }
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        names = ", ".join(sorted(path.name for path in stale))
        sys.exit(f"not what the code generates, run `python -m docs.generate`: {names}")
    (docs / "events").mkdir(exist_ok=True)
    for path in stale:
        path.write_text(pages[path])


def _text(schema: JsonSchema) -> str:
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _section(model: type[Payload]) -> str:
    schema = model.model_json_schema()
    fields = schema.get("properties", {})
    rows = "".join(
        f"| `{name}` | {_shape(field)} | {_default(name, field, schema)} |\n"
        for name, field in fields.items()
    )
    table = f"\n| field | type | default |\n|---|---|---|\n{rows}" if rows else ""
    link = f"[Schema](events/{model.type}.json)"
    return f"\n## {model.type}\n\n{inspect.getdoc(model)}\n{table}\n{link}\n"


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
    main(sys.argv[1:])
