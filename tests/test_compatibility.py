"""What breaks the readers of a published event, and what does not."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from docs.compatibility import OUTSIDE, RECORDED, breaking_changes
from docs.generate import event_schemas

TEXT = {"type": "string"}
NUMBER = {"type": "integer"}
NULL = {"type": "null"}


def event(required: Sequence[str] = (), **fields: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an event with these fields."""
    return {"type": "object", "properties": fields, "required": list(required)}


def only(**schema: Any) -> dict[str, Any]:
    """The schema of an event with one field, required, that `schema` describes."""
    return event(["a"], a=schema)


@pytest.mark.parametrize(
    ("published", "current", "sentence"),
    [
        (event(a=TEXT), event(), "a was removed: recorded events have it, and readers expect it"),
        (event(), event(["a"], a=TEXT), "a is new and required: recorded events lack it"),
        (event(a=TEXT), event(["a"], a=TEXT), "a became required: recorded events may lack it"),
        (event(["a"], a=TEXT), event(a=TEXT), "a became optional: readers outside count on it"),
        (
            event(a={**TEXT, "default": "x"}),
            event(a={**TEXT, "default": "y"}),
            f'a, where absent, was "x" and is "y": {RECORDED}',
        ),
        (only(**TEXT), only(anyOf=[TEXT, NULL]), f"a can now be null: {OUTSIDE}"),
        (only(anyOf=[TEXT, NULL]), only(**TEXT), f"a can no longer be null: {RECORDED}"),
        (only(enum=["x", "y"]), only(enum=["x"]), f'a can no longer be "y": {RECORDED}'),
        (only(enum=["x"]), only(enum=["x", "y"]), f'a can now be "y": {OUTSIDE}'),
        (only(**TEXT), only(**TEXT, enum=["x"]), f'a can now only be "x": {RECORDED}'),
        (only(**TEXT, const="x"), only(**TEXT), f'a can now be more than "x": {OUTSIDE}'),
        (
            only(**TEXT, maxLength=9),
            only(**TEXT, maxLength=8),
            f"maxLength of a was 9 and is 8: {RECORDED}",
        ),
        (
            only(**TEXT, maxLength=8),
            only(**TEXT, maxLength=9),
            f"maxLength of a was 8 and is 9: {OUTSIDE}",
        ),
        (only(**NUMBER), only(**NUMBER, minimum=1), f"minimum of a was null and is 1: {RECORDED}"),
        (only(**NUMBER, minimum=1), only(**NUMBER), f"minimum of a was 1 and is null: {OUTSIDE}"),
        (
            only(**NUMBER, minimum=1),
            only(**NUMBER, minimum=0),
            f"minimum of a was 1 and is 0: {OUTSIDE}",
        ),
        (
            only(**NUMBER, minimum=0),
            only(**NUMBER, minimum=1),
            f"minimum of a was 0 and is 1: {RECORDED}",
        ),
        (
            only(**TEXT, pattern="^a"),
            only(**TEXT, pattern="^b"),
            f'pattern of a was "^a" and is "^b": {RECORDED}',
        ),
        (
            only(**TEXT),
            only(**TEXT, neverHeardOf=1),
            f"neverHeardOf of a was null and is 1: {RECORDED}",
        ),
        (
            only(type="array", items={"enum": ["x", "y"]}),
            only(type="array", items={"enum": ["x"]}),
            f'a[] can no longer be "y": {RECORDED}',
        ),
        (
            only(type="object", additionalProperties={"anyOf": [TEXT, NULL]}),
            only(type="object", additionalProperties=TEXT),
            f"a.* can no longer be null: {RECORDED}",
        ),
        (
            only(type="object", additionalProperties=True),
            only(type="object", additionalProperties=TEXT),
            f'additionalProperties of a was true and is {{"type": "string"}}: {RECORDED}',
        ),
        (
            only(**event(b=TEXT)),
            only(**event()),
            "a.b was removed: recorded events have it, and readers expect it",
        ),
        (
            only(anyOf=[{**TEXT, "maxLength": 9}, NULL]),
            only(anyOf=[{**TEXT, "maxLength": 8}, NULL]),
            f"maxLength of a was 9 and is 8: {RECORDED}",
        ),
        (
            only(anyOf=[TEXT, NULL], maxLength=9),
            only(anyOf=[TEXT, NULL], maxLength=8),
            f"maxLength of a was 9 and is 8: {RECORDED}",
        ),
        (
            only(anyOf=[event(b=TEXT), event(b=TEXT, c=TEXT)]),
            only(anyOf=[event(b=TEXT)]),
            'a can no longer be {"properties": {"b": {"type": "string"}, "c": {"type": "string"}}, '
            f'"required": [], "type": "object"}}: {RECORDED}',
        ),
        (
            {**event(), "maxProperties": 2},
            {**event(), "maxProperties": 1},
            f"maxProperties of the event was 2 and is 1: {RECORDED}",
        ),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_each_break_is_named_in_a_sentence(
    published: dict[str, Any], current: dict[str, Any], sentence: str
) -> None:
    assert breaking_changes(published, current) == [sentence]


def test_a_change_of_type_breaks_both_kinds_of_readers() -> None:
    assert breaking_changes(only(**TEXT), only(**NUMBER)) == [
        f"a can no longer be string: {RECORDED}",
        f"a can now be integer: {OUTSIDE}",
    ]


def test_a_break_behind_a_reference_is_found() -> None:
    field = {"$ref": "#/$defs/Colour"}
    published = {**event(["a"], a=field), "$defs": {"Colour": {"enum": ["red", "blue"]}}}
    current = {**event(["a"], a=field), "$defs": {"Colour": {"enum": ["red"]}}}
    assert breaking_changes(published, current) == [f'a can no longer be "blue": {RECORDED}']


def test_a_break_beside_a_reference_is_found() -> None:
    definitions = {"$defs": {"Colour": {"enum": ["red", "blue"]}}}
    published = event(a={"$ref": "#/$defs/Colour", "default": "red"}) | definitions
    current = event(a={"$ref": "#/$defs/Colour", "default": "blue"}) | definitions
    assert breaking_changes(published, current) == [
        f'a, where absent, was "red" and is "blue": {RECORDED}'
    ]


def test_every_break_is_named_not_the_first_alone() -> None:
    published = event(["a"], a=TEXT, b=TEXT, c={"enum": ["x", "y"]})
    current = event(["b"], a=TEXT, b=TEXT, c={"enum": ["x"]})
    assert breaking_changes(published, current) == [
        "a became optional: readers outside count on it",
        "b became required: recorded events may lack it",
        f'c can no longer be "y": {RECORDED}',
    ]


@pytest.mark.parametrize(
    ("published", "current"),
    [
        pytest.param(event(), event(a=TEXT), id="a new field that can be absent"),
        pytest.param(
            only(**TEXT), only(**TEXT, title="A", description="better"), id="other descriptions"
        ),
        pytest.param(
            event(["a", "b"], a=TEXT, b=TEXT),
            event(["b", "a"], b=TEXT, a=TEXT),
            id="order of fields",
        ),
        pytest.param(only(enum=["x", "y"]), only(enum=["y", "x"]), id="order of values"),
        pytest.param(
            only(anyOf=[TEXT, NULL]), only(anyOf=[NULL, TEXT]), id="order of alternatives"
        ),
        pytest.param(only(const="x"), only(enum=["x"]), id="a constant as an enum of one"),
        pytest.param(
            only(anyOf=[TEXT, NULL]), only(type=["string", "null"]), id="alternatives as types"
        ),
        pytest.param(
            only(enum=["x"]),
            {**only(**{"$ref": "#/$defs/X"}), "$defs": {"X": {"enum": ["x"]}}},
            id="a definition of its own",
        ),
    ],
)
def test_what_leaves_every_value_as_it_was_is_no_break(
    published: dict[str, Any], current: dict[str, Any]
) -> None:
    assert breaking_changes(published, current) == []


@pytest.mark.parametrize("name", event_schemas())
def test_any_field_taken_from_any_event_is_missed(name: str) -> None:
    schema = event_schemas()[name]
    assert breaking_changes(schema, schema) == []
    for field in schema["properties"]:
        fields = {key: value for key, value in schema["properties"].items() if key != field}
        required = [key for key in schema.get("required", []) if key != field]
        without = {**schema, "properties": fields, "required": required}
        assert any(
            broken.startswith(f"{field} was removed")
            for broken in breaking_changes(schema, without)
        )
