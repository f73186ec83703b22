"""The poll through its API, as the page uses it."""

from __future__ import annotations

import html
import unittest

from app import DATA
from running import Answer, AppTest

OPTIONS = DATA["options"]


class PollTest(AppTest):
    def vote(self, choice: object, voter: str | None = None) -> Answer:
        cookie = {"Cookie": f"theme=dark; voter={voter}"} if voter else {}
        return self.call("POST", "/api/votes", {"choice": choice}, **cookie)

    def counts(self) -> list[int]:
        options = self.call("GET", "/api/votes").data["options"]
        return [option["votes"] for option in options]

    def test_the_poll_starts_without_votes(self) -> None:
        data = self.call("GET", "/api/votes").data
        self.assertEqual([option["label"] for option in data["options"]], OPTIONS)
        self.assertEqual((data["total"], data["voted"], data["choice"]), (0, False, None))
        self.assertGreaterEqual(len(OPTIONS), 2)

    def test_a_browser_votes_once(self) -> None:
        first = self.vote(1)
        self.assertEqual((first.status, first.data["choice"]), (201, 1))
        cookie = first.headers["Set-Cookie"]
        self.assertIn("HttpOnly", cookie)
        voter = cookie.split("=")[1].split(";")[0]
        self.check_refused(409, self.vote(0, voter))
        self.assertEqual(self.counts()[:2], [0, 1])
        seen = self.call("GET", "/api/votes", Cookie=f"voter={voter}").data
        self.assertEqual((seen["voted"], seen["choice"]), (True, 1))

    def test_a_cookie_of_somebody_elses_making_is_not_believed(self) -> None:
        for voter in ("me", "'; DROP TABLE votes; --", "a" * 5000, "../../x"):
            answer = self.vote(0, voter)
            self.assertEqual(answer.status, 201, answer.text)
            self.assertNotIn(voter, answer.headers["Set-Cookie"].split(";")[0].split("=")[1:])

    def test_browsers_are_counted_one_by_one(self) -> None:
        for choice in (0, 1, 1):
            self.assertEqual(self.vote(choice).status, 201)
        self.assertEqual(self.counts()[:2], [1, 2])
        self.assertEqual(self.call("GET", "/api/votes").data["total"], 3)

    def test_votes_survive_a_restart(self) -> None:
        voter = self.vote(0).headers["Set-Cookie"].split("=")[1].split(";")[0]
        self.restart()
        self.assertEqual(self.counts()[0], 1)
        self.check_refused(409, self.vote(1, voter))

    def test_the_page_shows_the_question_and_no_markup_of_others(self) -> None:
        page = self.call("GET", "/").text
        self.assertIn(f">{html.escape(DATA['question'])}</h1>", page)
        self.assertNotIn("<script>alert", page)

    def test_bad_input_is_refused(self) -> None:
        for choice in (-1, len(OPTIONS), 2**70, "0", None, True, 0.5, [0]):
            self.check_refused(422, self.vote(choice))
        self.check_refused(422, self.call("POST", "/api/votes", {}))
        for values in ([], {"no such field": "x"}):
            body = {"choice": 0, "fields": values}
            self.check_refused(422, self.call("POST", "/api/votes", body))
        self.assertEqual(sum(self.counts()), 0)


if __name__ == "__main__":
    unittest.main()
