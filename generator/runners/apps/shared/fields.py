"""Further fields of an entry: `app.json` lists them, this module checks and keeps their values.

A field has a `name`, a `label` for people and a `kind`; one of kind `choice` also has `choices`. An
entry has a text for each field that was filled in, by its name.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from datetime import date
from typing import Any

from server import Refused, Request

MAX_CHARS = 300
SCHEMA = """
    CREATE TABLE IF NOT EXISTS field_values (
        entry NOT NULL,
        field TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (entry, field)
    ) WITHOUT ROWID;
"""
PATTERNS = {
    "number": (re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,4})?"), "a number"),
    "tel": (re.compile(r"\+?[0-9][0-9 ()/.-]{2,29}"), "a phone number"),
    "email": (re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+"), "an e-mail address"),
    "url": (re.compile(r"https?://[^\s/]+\S*"), "an address that begins with https://"),
}
PRIVATE = ("tel", "email")
"""Kinds that are for whoever runs the app, not for everyone who looks at it."""


class Fields:
    """The fields that `data`, the content of `app.json`, lists."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._fields = {field["name"]: field for field in data["fields"]}

    def sent(self, request: Request) -> dict[str, str]:
        """The values that come with a request, checked; none for what it does not mention."""
        values = request.body.get("fields", {})
        if not isinstance(values, dict):
            raise Refused(422, "“fields” must be an object.")
        return {name: self._checked(name, value) for name, value in values.items()}

    def of(self, db: sqlite3.Connection, entry: object) -> dict[str, str]:
        """The values of an entry."""
        rows = db.execute("SELECT field, value FROM field_values WHERE entry = ?", (entry,))
        return {field: value for field, value in rows if field in self._fields}

    def of_all(self, db: sqlite3.Connection) -> dict[object, dict[str, str]]:
        """The values of every entry that has some."""
        found: dict[object, dict[str, str]] = {}
        for entry, field, value in db.execute("SELECT entry, field, value FROM field_values"):
            if field in self._fields:
                found.setdefault(entry, {})[field] = value
        return found

    def public(self, values: Mapping[str, str]) -> dict[str, str]:
        """Those of the values that everyone may see."""
        return {
            name: value
            for name, value in values.items()
            if self._fields[name]["kind"] not in PRIVATE
        }

    def keep(self, db: sqlite3.Connection, entry: object, values: Mapping[str, str]) -> None:
        """Set these values of an entry; an empty one is taken away."""
        for name, value in values.items():
            db.execute("DELETE FROM field_values WHERE entry = ? AND field = ?", (entry, name))
            if value:
                db.execute("INSERT INTO field_values VALUES (?, ?, ?)", (entry, name, value))

    def forget(self, db: sqlite3.Connection, entry: object) -> None:
        db.execute("DELETE FROM field_values WHERE entry = ?", (entry,))

    def _checked(self, name: str, value: object) -> str:
        field = self._fields.get(name)
        if field is None:
            raise Refused(422, "There is no such field.")
        text = _text(field["label"], value)
        if text:
            _check(field, text)
        return text


def _text(label: str, value: object) -> str:
    if not isinstance(value, str):
        raise Refused(422, f"“{label}” must be a text.")
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise Refused(422, f"“{label}” contains a character that cannot be stored.")
    if len(value) > MAX_CHARS:
        raise Refused(422, f"“{label}” may have at most {MAX_CHARS} characters.")
    return value.strip()


def _check(field: Mapping[str, Any], text: str) -> None:
    label, kind = field["label"], field["kind"]
    if kind == "date":
        try:
            if date.fromisoformat(text).isoformat() != text:
                raise ValueError(text)
        except ValueError:
            raise Refused(422, f"“{label}” must be a date like 2026-12-24.") from None
    elif kind == "choice":
        if text not in field["choices"]:
            raise Refused(422, f"“{label}” must be one of: {', '.join(field['choices'])}.")
    elif kind in PATTERNS and not PATTERNS[kind][0].fullmatch(text):
        raise Refused(422, f"“{label}” must be {PATTERNS[kind][1]}.")
