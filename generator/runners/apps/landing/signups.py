"""The e-mail addresses of those who want to hear more. The API never gives them out."""

from __future__ import annotations

import re
from collections.abc import Mapping

from database import Database
from fields import SCHEMA as FIELD_VALUES
from fields import Fields
from server import Refused

# What mail servers really accept is beyond a pattern; this catches slips of the finger.
EMAIL = re.compile(r"[^@\s,;<>()\"]{1,64}@[^@\s,;<>()\".]+(\.[^@\s,;<>()\".]+)+")
SCHEMA = """
    CREATE TABLE IF NOT EXISTS signups (
        id INTEGER PRIMARY KEY,
        email TEXT NOT NULL,
        email_key TEXT NOT NULL UNIQUE,
        signed_up_s REAL NOT NULL
    );
"""
SCHEMA += FIELD_VALUES


def checked_email(email: str) -> str:
    if not EMAIL.fullmatch(email):
        raise Refused(422, "This does not look like an e-mail address.")
    return email


class Signups:
    def __init__(self, database: Database, fields: Fields) -> None:
        self._database = database
        self._fields = fields

    def add(self, email: str, values: Mapping[str, str], *, now: float) -> bool:
        """False when the address, in whatever case, is there already: it stays as it is then."""
        with self._database.transaction() as db:
            cursor = db.execute(
                "INSERT OR IGNORE INTO signups (email, email_key, signed_up_s) VALUES (?, ?, ?)",
                (email, email.casefold(), now),
            )
            is_new = cursor.rowcount == 1
            if is_new:
                self._fields.keep(db, cursor.lastrowid, values)
            return is_new

    def all(self) -> list[dict[str, object]]:
        """Everyone who signed up, for whoever runs this: no route leads here."""
        with self._database.transaction() as db:
            rows = db.execute("SELECT id, email FROM signups ORDER BY id").fetchall()
            values = self._fields.of_all(db)
        return [{"email": row["email"], "fields": values.get(row["id"], {})} for row in rows]

    def count(self) -> int:
        with self._database.transaction() as db:
            count: int = db.execute("SELECT count(*) FROM signups").fetchone()[0]
            return count
