"""The sign-up through its API, as the page uses it."""

from __future__ import annotations

import html
import unittest

from app import DATA
from running import Answer, AppTest


class SignUpTest(AppTest):
    def sign_up(self, email: object) -> Answer:
        return self.call("POST", "/api/signups", {"email": email})

    def count(self) -> int:
        count: int = self.call("GET", "/api/signups").data["count"]
        return count

    def test_people_sign_up_and_are_counted(self) -> None:
        self.assertEqual(self.count(), 0)
        answer = self.sign_up(" ada@example.com ")
        self.assertEqual((answer.status, answer.data), (201, {"count": 1, "new": True}))
        self.assertEqual(self.sign_up("jürgen@straße.example").status, 201)
        self.assertEqual(self.count(), 2)

    def test_signing_up_twice_counts_once(self) -> None:
        self.sign_up("ada@example.com")
        again = self.sign_up("Ada@Example.COM")
        self.assertEqual((again.status, again.data), (200, {"count": 1, "new": False}))

    def test_signups_survive_a_restart(self) -> None:
        self.sign_up("ada@example.com")
        self.restart()
        self.assertEqual(self.count(), 1)
        self.assertFalse(self.sign_up("ada@example.com").data["new"])

    def test_addresses_are_never_given_out(self) -> None:
        self.sign_up("secret@example.com")
        for path in ("/", "/api/signups", "/healthz"):
            self.assertNotIn("secret", self.call("GET", path).text)

    def test_the_page_shows_its_cards_and_no_markup_of_others(self) -> None:
        page = self.call("GET", "/").text
        for number in (1, 2, 3):
            self.assertIn(html.escape(DATA[f"benefit_{number}_title"]), page)
        self.assertNotIn("<script>alert", page)

    def test_bad_input_is_refused(self) -> None:
        for email in (
            None,
            7,
            "",
            "ada",
            "ada@",
            "@example.com",
            "ada@example",
            "ada@example..com",
            "a b@example.com",
            "ada@example.com, bob@example.com",
            "<script>@example.com",
            "ada\0@example.com",
            "\ud800@example.com",
            "x" * 65 + "@example.com",
            "ada@" + "x" * 250 + ".com",
        ):
            self.check_refused(422, self.sign_up(email))
        self.check_refused(422, self.call("POST", "/api/signups", {}))
        self.assertEqual(self.count(), 0)


if __name__ == "__main__":
    unittest.main()
