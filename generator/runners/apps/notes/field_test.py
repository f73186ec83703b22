"""A further field of every note, through the API as the page uses it."""

from __future__ import annotations

import unittest

from running import AppTest

FIELD, GOOD, OTHER, BAD = "due_date", "2026-12-24", "2027-01-31", "tomorrow"


class FieldTest(AppTest):
    def write(self, value: str) -> int:
        note = {"title": "Trip", "body": "", "fields": {FIELD: value}}
        answer = self.call("POST", "/api/notes", note)
        self.assertEqual(answer.status, 201, answer.text)
        note_id: int = answer.data["id"]
        return note_id

    def shown(self) -> list[dict[str, str]]:
        return [note["fields"] for note in self.call("GET", "/api/notes").data["notes"]]

    def test_the_page_asks_for_it(self) -> None:
        self.assertIn(FIELD, self.call("GET", "/").text)

    def test_it_is_kept_and_survives_a_restart(self) -> None:
        note = self.write(GOOD)
        self.restart()
        self.assertEqual(self.shown(), [{FIELD: GOOD}])
        self.assertEqual(self.call("GET", f"/api/notes/{note}").data["fields"], {FIELD: GOOD})

    def test_it_can_be_changed_and_taken_away(self) -> None:
        note = self.write(GOOD)
        for value, left in ((OTHER, {FIELD: OTHER}), ("", {})):
            body = {"title": "Trip", "body": "", "fields": {FIELD: value}}
            self.assertEqual(self.call("PUT", f"/api/notes/{note}", body).status, 200)
            self.assertEqual(self.shown(), [left])

    def test_it_goes_with_its_note(self) -> None:
        self.call("DELETE", f"/api/notes/{self.write(GOOD)}")
        self.assertEqual(self.shown(), [])
        with self.server.site.database.transaction() as db:
            self.assertEqual(db.execute("SELECT count(*) FROM field_values").fetchone()[0], 0)

    def test_what_makes_no_sense_is_refused(self) -> None:
        for value in (BAD, 7, None, "a\0b", "x" * 301):
            body = {"title": "ok", "body": "", "fields": {FIELD: value}}
            self.check_refused(422, self.call("POST", "/api/notes", body))
        self.assertEqual(self.shown(), [])


if __name__ == "__main__":
    unittest.main()
