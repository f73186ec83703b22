"""A further field of a vote, through the API as the page uses it."""

from __future__ import annotations

import unittest

from app import DATA
from fields import PRIVATE
from running import Answer, AppTest

FIELD, GOOD, OTHER, BAD = "due_date", "2026-12-24", "2027-01-31", "tomorrow"
IS_PRIVATE = {field["name"]: field["kind"] in PRIVATE for field in DATA["fields"]}[FIELD]


class FieldTest(AppTest):
    def vote(self, value: object) -> Answer:
        return self.call("POST", "/api/votes", {"choice": 1, "fields": {FIELD: value}})

    def shown(self) -> list[dict[str, object]]:
        answers: list[dict[str, object]] = self.call("GET", "/api/votes").data["answers"]
        return answers

    def kept(self) -> list[str]:
        with self.server.site.database.transaction() as db:
            return [row[0] for row in db.execute("SELECT value FROM field_values ORDER BY value")]

    def test_the_page_asks_for_it(self) -> None:
        self.assertIn(FIELD, self.call("GET", "/").text)

    def test_it_is_kept_with_the_vote_and_survives_a_restart(self) -> None:
        self.assertEqual(self.vote(GOOD).status, 201)
        self.assertEqual(self.vote(OTHER).status, 201)
        self.restart()
        self.assertEqual(self.kept(), sorted([GOOD, OTHER]))
        label = DATA["options"][1]
        newest_first = [{"label": label, "fields": {FIELD: value}} for value in (OTHER, GOOD)]
        self.assertEqual(self.shown(), [] if IS_PRIVATE else newest_first)

    def test_a_vote_counts_without_it(self) -> None:
        self.assertEqual(self.vote("").status, 201)
        self.assertEqual(self.call("GET", "/api/votes").data["total"], 1)
        self.assertEqual(self.shown(), [])

    def test_nobody_learns_from_it_which_browser_voted(self) -> None:
        voter = self.vote(GOOD).headers["Set-Cookie"].split("=")[1].split(";")[0]
        self.assertNotIn(voter, self.call("GET", "/api/votes").text)

    def test_what_makes_no_sense_is_refused_and_not_counted(self) -> None:
        for value in (BAD, 7, None, "a\0b", "x" * 301):
            self.check_refused(422, self.vote(value))
        self.assertEqual((self.call("GET", "/api/votes").data["total"], self.kept()), (0, []))


if __name__ == "__main__":
    unittest.main()
