"""The notes, newest change first."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from database import Database
from fields import SCHEMA as FIELD_VALUES
from fields import Fields
from server import Refused

MAX_NOTES = 1_000
EXCERPT_CHARS = 240
SCHEMA = """
    CREATE TABLE IF NOT EXISTS notes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL,
        body TEXT NOT NULL,
        changed_s REAL NOT NULL
    );
"""
SCHEMA += FIELD_VALUES


class Notebook:
    def __init__(self, database: Database, fields: Fields) -> None:
        self._database = database
        self._fields = fields

    def search(self, words: Sequence[str]) -> list[dict[str, object]]:
        """The notes that contain all of `words`, in any case, each with the start of its body."""
        condition = " AND ".join(
            ["instr(casefold(title || char(10) || body), casefold(?)) > 0"] * len(words)
        )
        with self._database.transaction() as db:
            rows = db.execute(
                "SELECT id, title, substr(body, 1, ?) AS excerpt, changed_s FROM notes"  # noqa: S608
                f" WHERE {condition or 'true'} ORDER BY changed_s DESC, id DESC",
                (EXCERPT_CHARS, *words),
            ).fetchall()
            values = self._fields.of_all(db)
        return [{**dict(row), "fields": values.get(row["id"], {})} for row in rows]

    def count(self) -> int:
        with self._database.transaction() as db:
            return _count(db)

    def show(self, note_id: int) -> dict[str, object]:
        with self._database.transaction() as db:
            return self._found(db, note_id)

    def create(
        self, title: str, body: str, values: Mapping[str, str], *, now: float
    ) -> dict[str, object]:
        with self._database.transaction() as db:
            if _count(db) >= MAX_NOTES:
                raise Refused(409, f"The notebook is full with {MAX_NOTES:,} notes. Delete some.")
            note_id = db.execute(
                "INSERT INTO notes (title, body, changed_s) VALUES (?, ?, ?)", (title, body, now)
            ).lastrowid
            self._fields.keep(db, note_id, values)
            return self._found(db, note_id)

    def change(
        self, note_id: int, title: str, body: str, values: Mapping[str, str], *, now: float
    ) -> dict[str, object]:
        with self._database.transaction() as db:
            self._found(db, note_id)
            db.execute(
                "UPDATE notes SET title = ?, body = ?, changed_s = ? WHERE id = ?",
                (title, body, now, note_id),
            )
            self._fields.keep(db, note_id, values)
            return self._found(db, note_id)

    def delete(self, note_id: int) -> None:
        with self._database.transaction() as db:
            self._found(db, note_id)
            self._fields.forget(db, note_id)
            db.execute("DELETE FROM notes WHERE id = ?", (note_id,))

    def _found(self, db: sqlite3.Connection, note_id: int | None) -> dict[str, object]:
        row = db.execute("SELECT * FROM notes WHERE id = ?", (note_id,)).fetchone()
        if row is None:
            raise Refused(404, "This note has been deleted.")
        return {**dict(row), "fields": self._fields.of(db, note_id)}


def _count(db: sqlite3.Connection) -> int:
    count: int = db.execute("SELECT count(*) FROM notes").fetchone()[0]
    return count
