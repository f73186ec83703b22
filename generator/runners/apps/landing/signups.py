"""The e-mail addresses of those who want to hear more. The API never gives them out."""

from __future__ import annotations

import re

from database import Database
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


def checked_email(email: str) -> str:
    if not EMAIL.fullmatch(email):
        raise Refused(422, "This does not look like an e-mail address.")
    return email


class Signups:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, email: str, *, now: float) -> bool:
        """False when the address, in whatever case, is there already."""
        with self._database.transaction() as db:
            cursor = db.execute(
                "INSERT OR IGNORE INTO signups (email, email_key, signed_up_s) VALUES (?, ?, ?)",
                (email, email.casefold(), now),
            )
            return cursor.rowcount == 1

    def count(self) -> int:
        with self._database.transaction() as db:
            count: int = db.execute("SELECT count(*) FROM signups").fetchone()[0]
            return count
