"""The tasks of the list and the people who share it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from database import Database
from fields import SCHEMA as FIELD_VALUES
from fields import Fields
from server import Refused

MAX_TASKS = 1_000
SCHEMA = """
    CREATE TABLE IF NOT EXISTS people (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS tasks (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL,
        done INTEGER NOT NULL DEFAULT 0,
        person INTEGER REFERENCES people (id)
    );
"""
SCHEMA += FIELD_VALUES


class TaskList:
    """One list. `people` are the first names it starts with; none means a list for one."""

    def __init__(self, database: Database, people: Sequence[str], fields: Fields) -> None:
        self._database = database
        self._fields = fields
        with database.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO people (id, name) VALUES (?, ?)", enumerate(people, start=1)
            )

    def show(self) -> dict[str, object]:
        """Everything: the people, and the tasks with the newest first."""
        with self._database.transaction() as db:
            people = db.execute("SELECT id, name FROM people ORDER BY id").fetchall()
            tasks = db.execute("SELECT * FROM tasks ORDER BY id DESC").fetchall()
            values = self._fields.of_all(db)
        return {
            "people": [dict(row) for row in people],
            "tasks": [_task(row, values.get(row["id"], {})) for row in tasks],
        }

    def add(
        self, title: str, person: int | None, done: bool, values: Mapping[str, str]
    ) -> dict[str, object]:
        with self._database.transaction() as db:
            _check_person(db, person)
            if db.execute("SELECT count(*) FROM tasks").fetchone()[0] >= MAX_TASKS:
                raise Refused(409, f"The list is full with {MAX_TASKS:,} entries. Delete some.")
            task_id = db.execute(
                "INSERT INTO tasks (title, person, done) VALUES (?, ?, ?)", (title, person, done)
            ).lastrowid
            self._fields.keep(db, task_id, values)
            return self._found(db, task_id)

    def change(self, task_id: int, changes: Mapping[str, Any]) -> dict[str, object]:
        """Set any of `title`, `done`, `person`, and of the values in `fields`."""
        with self._database.transaction() as db:
            task = {**self._found(db, task_id), **changes}
            _check_person(db, task["person"])
            db.execute(
                "UPDATE tasks SET title = ?, done = ?, person = ? WHERE id = ?",
                (task["title"], task["done"], task["person"], task_id),
            )
            self._fields.keep(db, task_id, changes.get("fields", {}))
            return self._found(db, task_id)

    def delete(self, task_id: int) -> None:
        with self._database.transaction() as db:
            self._found(db, task_id)
            self._fields.forget(db, task_id)
            db.execute("DELETE FROM tasks WHERE id = ?", (task_id,))

    def rename(self, person_id: int, name: str) -> dict[str, object]:
        with self._database.transaction() as db:
            _check_person(db, person_id)
            db.execute("UPDATE people SET name = ? WHERE id = ?", (name, person_id))
        return {"id": person_id, "name": name}

    def _found(self, db: sqlite3.Connection, task_id: int | None) -> dict[str, object]:
        row = db.execute("SELECT * FROM tasks WHERE id = ?", (task_id,)).fetchone()
        if row is None:
            raise Refused(404, "This entry has been deleted.")
        return _task(row, self._fields.of(db, task_id))


def _task(row: sqlite3.Row, values: Mapping[str, str]) -> dict[str, object]:
    return {**dict(row), "done": bool(row["done"]), "fields": values}


def _check_person(db: sqlite3.Connection, person: object) -> None:
    if person is None:
        return
    if db.execute("SELECT 1 FROM people WHERE id = ?", (person,)).fetchone() is None:
        raise Refused(404, "This person is not on the list.")
