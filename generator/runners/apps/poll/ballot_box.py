"""The votes: one per voter, counted per option."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from database import Database
from fields import SCHEMA as FIELD_VALUES
from fields import Fields
from server import Refused

SCHEMA = """
    CREATE TABLE IF NOT EXISTS votes (
        voter TEXT PRIMARY KEY,
        option TEXT NOT NULL
    );
"""
SCHEMA += FIELD_VALUES
MAX_ANSWERS = 200


class BallotBox:
    """Votes are kept by the option's text, so that they stay right when options change places."""

    def __init__(self, database: Database, options: Sequence[str], fields: Fields) -> None:
        self._database = database
        self._fields = fields
        self._options = options

    def vote(self, voter: str, choice: int, values: Mapping[str, str]) -> None:
        """Raises `Refused` (409) on a second vote of the same voter."""
        try:
            with self._database.transaction() as db:
                db.execute(
                    "INSERT INTO votes (voter, option) VALUES (?, ?)",
                    (voter, self._options[choice]),
                )
                self._fields.keep(db, voter, values)
        except sqlite3.IntegrityError:
            raise Refused(409, "You have voted already.") from None

    def result(self, voter: str | None) -> dict[str, object]:
        """Options with their votes, the total, and what `voter` chose (None: has not voted).

        `answers` is what the newest voters added to their vote and everyone may see; nobody
        learns from it which browser it was.
        """
        with self._database.transaction() as db:
            counts = dict(db.execute("SELECT option, count(*) FROM votes GROUP BY option"))
            mine = db.execute("SELECT option FROM votes WHERE voter = ?", (voter,)).fetchone()
            newest = db.execute(
                "SELECT voter, option FROM votes WHERE voter IN (SELECT entry FROM field_values)"
                " ORDER BY rowid DESC LIMIT ?",
                (MAX_ANSWERS,),
            ).fetchall()
            answers = [
                {"label": row["option"], "fields": self._fields.public(values)}
                for row in newest
                if (values := self._fields.of(db, row["voter"]))
            ]
        options = [{"label": label, "votes": counts.get(label, 0)} for label in self._options]
        return {
            "options": options,
            "answers": [answer for answer in answers if answer["fields"]],
            "total": sum(counts.get(label, 0) for label in self._options),
            "voted": mine is not None,
            "choice": self._options.index(mine[0]) if mine and mine[0] in self._options else None,
        }
