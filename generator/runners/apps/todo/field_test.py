"""A further field of every entry, through the API as the page uses it."""

from __future__ import annotations

import unittest

from running import AppTest

FIELD, GOOD, OTHER, BAD = "due_date", "2026-12-24", "2027-01-31", "tomorrow"


class FieldTest(AppTest):
    def add(self, value: str) -> int:
        answer = self.call("POST", "/api/tasks", {"title": "Wrap", "fields": {FIELD: value}})
        self.assertEqual(answer.status, 201, answer.text)
        task_id: int = answer.data["id"]
        return task_id

    def shown(self) -> list[dict[str, str]]:
        return [task["fields"] for task in self.call("GET", "/api/tasks").data["tasks"]]

    def test_the_page_asks_for_it(self) -> None:
        self.assertIn(FIELD, self.call("GET", "/").text)

    def test_it_is_kept_and_survives_a_restart(self) -> None:
        self.add(GOOD)
        self.restart()
        self.assertEqual(self.shown(), [{FIELD: GOOD}])

    def test_it_can_be_changed_and_taken_away_and_left_alone(self) -> None:
        task = self.add(GOOD)
        self.call("PATCH", f"/api/tasks/{task}", {"done": True})
        self.assertEqual(self.shown(), [{FIELD: GOOD}])
        self.call("PATCH", f"/api/tasks/{task}", {"fields": {FIELD: OTHER}})
        self.assertEqual(self.shown(), [{FIELD: OTHER}])
        self.call("PATCH", f"/api/tasks/{task}", {"fields": {FIELD: ""}})
        self.assertEqual(self.shown(), [{}])

    def test_it_goes_with_its_entry(self) -> None:
        self.call("DELETE", f"/api/tasks/{self.add(GOOD)}")
        self.assertEqual(self.shown(), [])
        with self.server.site.database.transaction() as db:
            self.assertEqual(db.execute("SELECT count(*) FROM field_values").fetchone()[0], 0)

    def test_what_makes_no_sense_is_refused(self) -> None:
        for value in (BAD, 7, None, "a\0b", "x" * 301):
            body = {"title": "ok", "fields": {FIELD: value}}
            self.check_refused(422, self.call("POST", "/api/tasks", body))
        self.assertEqual(self.shown(), [])


if __name__ == "__main__":
    unittest.main()
