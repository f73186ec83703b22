"""The notebook through its API, as the page uses it."""

from __future__ import annotations

import unittest

from running import AppTest

HOSTILE = """<script>alert(1)</script> '); DROP TABLE notes; -- "\\ {x} $y %_ 👩‍👩‍👧 שלום"""


class NotebookTest(AppTest):
    def write(self, title: str, body: str = "") -> int:
        answer = self.call("POST", "/api/notes", {"title": title, "body": body})
        self.assertEqual(answer.status, 201, answer.text)
        note_id: int = answer.data["id"]
        return note_id

    def found(self, query: str = "") -> list[str]:
        notes = self.call("GET", f"/api/notes?q={query}").data["notes"]
        return [note["title"] for note in notes]

    def test_a_note_can_be_written_changed_and_deleted(self) -> None:
        note = self.write(" Harbour ", "Boats at dawn")
        self.call("PUT", f"/api/notes/{note}", {"title": "Harbour", "body": "Boats at dusk"})
        shown = self.call("GET", f"/api/notes/{note}").data
        self.assertEqual((shown["title"], shown["body"]), ("Harbour", "Boats at dusk"))
        self.assertEqual(self.call("DELETE", f"/api/notes/{note}").status, 200)
        self.check_refused(404, self.call("GET", f"/api/notes/{note}"))
        self.check_refused(404, self.call("DELETE", f"/api/notes/{note}"))
        self.assertEqual(self.call("GET", "/api/notes").data, {"notes": [], "count": 0})

    def test_the_note_changed_last_stands_first(self) -> None:
        first, _second = self.write("First"), self.write("Second")
        self.assertEqual(self.found(), ["Second", "First"])
        self.call("PUT", f"/api/notes/{first}", {"title": "First", "body": "again"})
        self.assertEqual(self.found(), ["First", "Second"])

    def test_search_finds_every_word_in_any_case_and_takes_signs_literally(self) -> None:
        self.write("Äpfel", "for the STRASSE market")
        self.write("100% wool")
        self.assertEqual(self.found("%C3%A4pfel+stra%C3%9Fe"), ["Äpfel"])
        self.assertEqual(self.found("%25"), ["100% wool"])
        self.assertEqual(self.found("_"), [])
        self.assertEqual(self.found("%27)%3B+DROP+TABLE+notes"), [])

    def test_notes_survive_a_restart(self) -> None:
        note = self.write("Keep", "me")
        before = self.call("GET", f"/api/notes/{note}").data
        self.restart()
        self.assertEqual(self.call("GET", f"/api/notes/{note}").data, before)

    def test_any_text_comes_back_as_it_was_and_never_as_markup(self) -> None:
        note = self.write(HOSTILE, HOSTILE)
        shown = self.call("GET", f"/api/notes/{note}").data
        self.assertEqual((shown["title"], shown["body"]), (HOSTILE, HOSTILE))
        self.assertNotIn("<script>alert", self.call("GET", "/").text)

    def test_bad_input_is_refused(self) -> None:
        note = self.write("Whole")
        for body in (
            {},
            {"title": "", "body": "  "},
            {"title": "only"},
            {"title": 7, "body": ""},
            {"title": "", "body": None},
            {"title": "x" * 201, "body": ""},
            {"title": "", "body": "x" * 20_001},
            {"title": "a\0b", "body": ""},
            {"title": "", "body": "\ud800"},
            {"title": "ok", "body": "", "fields": []},
            {"title": "ok", "body": "", "fields": {"no such field": "x"}},
        ):
            self.check_refused(422, self.call("POST", "/api/notes", body))
            self.check_refused(422, self.call("PUT", f"/api/notes/{note}", body))
        self.check_refused(404, self.call("PUT", "/api/notes/99", {"title": "x", "body": ""}))
        self.check_refused(404, self.call("GET", "/api/notes/-1"))
        self.assertEqual(self.found(), ["Whole"])


if __name__ == "__main__":
    unittest.main()
