"""The votes: one per voter, counted per option."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from database import Database
from server import Refused

SCHEMA = """
    CREATE TABLE IF NOT EXISTS votes (
        voter TEXT PRIMARY KEY,
        option TEXT NOT NULL
    );
"""


class BallotBox:
    """Votes are kept by the option's text, so that they stay right when options change places."""

    def __init__(self, database: Database, options: Sequence[str]) -> None:
        self._database = database
        self._options = options

    def vote(self, voter: str, choice: int) -> None:
        """Raises `Refused` (409) on a second vote of the same voter."""
        try:
            with self._database.transaction() as db:
                db.execute(
                    "INSERT INTO votes (voter, option) VALUES (?, ?)",
                    (voter, self._options[choice]),
                )
        except sqlite3.IntegrityError:
            raise Refused(409, "You have voted already.") from None

    def result(self, voter: str | None) -> dict[str, object]:
        """Options with their votes, the total, and what `voter` chose (None: has not voted)."""
        with self._database.transaction() as db:
            counts = dict(db.execute("SELECT option, count(*) FROM votes GROUP BY option"))
            mine = db.execute("SELECT option FROM votes WHERE voter = ?", (voter,)).fetchone()
        options = [{"label": label, "votes": counts.get(label, 0)} for label in self._options]
        return {
            "options": options,
            "total": sum(counts.get(label, 0) for label in self._options),
            "voted": mine is not None,
            "choice": self._options.index(mine[0]) if mine and mine[0] in self._options else None,
        }
