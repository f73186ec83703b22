"""Whether a published event schema may be replaced by another. Pure functions over JSON Schema.

Two readers must live through a change. Today's code reads every event that was ever recorded, and a
reader outside, made from the published schema, reads every event that is recorded from now on. Both
can only if each field takes exactly the values that it took before. So an event may gain a field
that can be absent, its descriptions may change, and every other difference is a break.

That holds for what merely widens, too. A reader can pass over an event whose type it does not know;
a value that it does not know, in an event that it does, it meets in the middle of its work: a
fifth phase in a branch over four, a long goal in a short column. Hence a new value of an enum, or a
larger limit, asks for a new wire type as much as a removed one.

A keyword that this file does not know breaks when it differs: better once too often.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

JsonSchema = Mapping[str, Any]

RECORDED = "recorded events would not be read as they were meant"
OUTSIDE = "readers outside would meet what they were told not to expect"

_UPPER = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_LOWER = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_INNER = {"additionalProperties": ".*", "items": "[]"}
_DESCRIPTIONS = {"$schema", "$id", "title", "description", "examples"}
_LOOKED_AT = {"type", "anyOf", "enum", "const", "properties", "required", "default"}


def breaking_changes(published: JsonSchema, current: JsonSchema) -> list[str]:
    """Every way in which `current` breaks readers of `published`, a sentence each."""
    old = _resolved(published, published.get("$defs", {}))
    new = _resolved(current, current.get("$defs", {}))
    # What stands beside alternatives goes for each of them, and is told once.
    return list(dict.fromkeys(_differences("", old, new)))


def _resolved(schema: Any, defs: JsonSchema) -> Any:
    """`schema` with what its references refer to in their place. No payload contains itself."""
    if isinstance(schema, list):
        return [_resolved(item, defs) for item in schema]
    if not isinstance(schema, dict):
        return schema
    here = {key: _resolved(value, defs) for key, value in schema.items() if key != "$defs"}
    if "$ref" not in here:
        return here
    return _resolved(defs[here.pop("$ref").removeprefix("#/$defs/")], defs) | here


def _differences(path: str, old: JsonSchema, new: JsonSchema) -> Iterator[str]:
    """Where `new` takes other values than `old`; `path` is the field's, "" for the whole event."""
    before, after = _alternatives(old), _alternatives(new)
    for kind in sorted(before.keys() - after.keys()):
        yield f"{_name(path)} can no longer be {kind}: {RECORDED}"
    for kind in sorted(after.keys() - before.keys()):
        yield f"{_name(path)} can now be {kind}: {OUTSIDE}"
    for kind in sorted(before.keys() & after.keys()):
        yield from _fields(path, before[kind], after[kind])
        yield from _values(path, before[kind], after[kind])
        yield from _keywords(path, before[kind], after[kind])


def _alternatives(schema: JsonSchema) -> dict[str, JsonSchema]:
    """What a value may be, one schema per JSON type; `null` is a type like any other."""
    if "anyOf" in schema:
        beside = {key: value for key, value in schema.items() if key != "anyOf"}
        options = [beside | option for option in schema["anyOf"]]
    elif isinstance(schema.get("type"), list):
        options = [{**schema, "type": kind} for kind in schema["type"]]
    else:
        return {schema.get("type", "anything"): schema}
    found: dict[str, JsonSchema] = {}
    for option in options:
        for kind, alternative in _alternatives(option).items():
            # Of two alternatives of one type the second goes by all that it says.
            found[kind if kind not in found else _json(alternative)] = alternative
    return found


def _fields(path: str, old: JsonSchema, new: JsonSchema) -> Iterator[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    was_required, is_required = set(old.get("required", [])), set(new.get("required", []))
    for field in sorted(before.keys() - after.keys()):
        yield f"{_below(path, field)} was removed: recorded events have it, and readers expect it"
    for field in sorted(is_required - before.keys()):
        yield f"{_below(path, field)} is new and required: recorded events lack it"
    for field in sorted(before.keys() & after.keys()):
        name = _below(path, field)
        was, now = (_json(schemas[field].get("default")) for schemas in (before, after))
        if field in is_required - was_required:
            yield f"{name} became required: recorded events may lack it"
        elif field in was_required - is_required:
            yield f"{name} became optional: readers outside count on it"
        elif was != now:
            yield f"{name}, where absent, was {was} and is {now}: {RECORDED}"
        yield from _differences(name, before[field], after[field])


def _values(path: str, old: JsonSchema, new: JsonSchema) -> Iterator[str]:
    """Enums and constants: a constant is an enum of one, and no enum at all is every value."""
    before, after = _listed(old), _listed(new)
    if before is None and after is not None:
        yield f"{_name(path)} can now only be {', '.join(sorted(after))}: {RECORDED}"
    elif before is not None and after is None:
        yield f"{_name(path)} can now be more than {', '.join(sorted(before))}: {OUTSIDE}"
    elif before is not None and after is not None:
        for value in sorted(before - after):
            yield f"{_name(path)} can no longer be {value}: {RECORDED}"
        for value in sorted(after - before):
            yield f"{_name(path)} can now be {value}: {OUTSIDE}"


def _listed(schema: JsonSchema) -> set[str] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return None if values is None else {_json(value) for value in values}


def _keywords(path: str, old: JsonSchema, new: JsonSchema) -> Iterator[str]:
    """Limits, what stands inside of lists and maps, and every keyword without a rule of its own."""
    for keyword in sorted((old.keys() | new.keys()) - _DESCRIPTIONS - _LOOKED_AT):
        before, after = old.get(keyword), new.get(keyword)
        if keyword in _INNER and isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(path + _INNER[keyword], before, after)
        elif before != after:
            reason = OUTSIDE if _loosened(keyword, before, after) else RECORDED
            yield (
                f"{keyword} of {_name(path)} was {_json(before)} and is {_json(after)}: {reason}"
            )


def _loosened(keyword: str, before: Any, after: Any) -> bool:
    """Whether a limit, or any other keyword, lets through more than it did."""
    if after is None:
        return True
    if before is None:
        return False
    return (keyword in _UPPER and after > before) or (keyword in _LOWER and after < before)


def _below(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _name(path: str) -> str:
    return path or "the event"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
