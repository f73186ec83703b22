"""A further field of the sign-up, through the API as the page uses it."""

from __future__ import annotations

import unittest

from app import DATA
from fields import Fields
from running import Answer, AppTest
from signups import Signups

FIELD, GOOD, OTHER, BAD = "due_date", "2026-12-24", "2027-01-31", "tomorrow"


class FieldTest(AppTest):
    def sign_up(self, value: object) -> Answer:
        body = {"email": "ada@example.com", "fields": {FIELD: value}}
        return self.call("POST", "/api/signups", body)

    def kept(self) -> list[object]:
        signups = Signups(self.server.site.database, Fields(DATA))
        return [person["fields"] for person in signups.all()]

    def test_the_page_asks_for_it(self) -> None:
        self.assertIn(FIELD, self.call("GET", "/").text)

    def test_it_is_kept_and_survives_a_restart(self) -> None:
        self.assertEqual(self.sign_up(GOOD).status, 201)
        self.restart()
        self.assertEqual(self.kept(), [{FIELD: GOOD}])

    def test_a_stranger_who_signs_up_again_changes_nothing(self) -> None:
        self.sign_up(GOOD)
        self.assertEqual(self.sign_up(OTHER).status, 200)
        self.assertEqual(self.kept(), [{FIELD: GOOD}])

    def test_it_is_never_given_out(self) -> None:
        page = self.call("GET", "/").text
        self.sign_up(GOOD)
        self.assertEqual(self.call("GET", "/").text, page)
        self.assertEqual(self.call("GET", "/api/signups").data, {"count": 1})

    def test_what_makes_no_sense_is_refused(self) -> None:
        for value in (BAD, 7, None, "a\0b", "x" * 301):
            self.check_refused(422, self.sign_up(value))
        self.assertEqual(self.kept(), [])


if __name__ == "__main__":
    unittest.main()
