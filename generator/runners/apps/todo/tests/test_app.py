"""The list through its API, as the page uses it."""

from __future__ import annotations

import unittest
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

from app import DATA
from running import AppTest

HOSTILE = """<script>alert(1)</script> '); DROP TABLE tasks; -- "\\ {x} $y 👩‍👩‍👧 שלום"""


class TaskListTest(AppTest):
    def add(self, title: str, **more: object) -> int:
        answer = self.call("POST", "/api/tasks", {"title": title, **more})
        self.assertEqual(answer.status, 201, answer.text)
        task_id: int = answer.data["id"]
        return task_id

    def titles(self) -> list[str]:
        return [task["title"] for task in self.call("GET", "/api/tasks").data["tasks"]]

    def test_the_list_starts_empty_with_the_people_of_the_goal(self) -> None:
        data = self.call("GET", "/api/tasks").data
        self.assertEqual(data["tasks"], [])
        self.assertEqual([person["name"] for person in data["people"]], DATA["people"])

    def test_a_task_can_be_added_checked_renamed_and_deleted(self) -> None:
        task = self.add("  Water the plants ")
        changed = self.call("PATCH", f"/api/tasks/{task}", {"done": True, "title": "Water ferns"})
        self.assertEqual(
            changed.data,
            {"id": task, "title": "Water ferns", "done": True, "person": None, "fields": {}},
        )
        self.assertEqual(self.call("DELETE", f"/api/tasks/{task}").status, 200)
        self.assertEqual(self.titles(), [])
        self.check_refused(404, self.call("DELETE", f"/api/tasks/{task}"))
        self.check_refused(404, self.call("PATCH", f"/api/tasks/{task}", {"done": False}))

    def test_tasks_and_names_survive_a_restart(self) -> None:
        self.add("Pay rent", done=True)
        for person in self.call("GET", "/api/tasks").data["people"]:
            self.call("PATCH", f"/api/people/{person['id']}", {"name": f"Friend {person['id']}"})
        before = self.call("GET", "/api/tasks").data
        self.restart()
        self.assertEqual(self.call("GET", "/api/tasks").data, before)

    def test_any_text_comes_back_as_it_was_and_never_as_markup(self) -> None:
        self.add(HOSTILE)
        self.assertEqual(self.titles(), [HOSTILE])
        self.assertNotIn("<script>alert", self.call("GET", "/").text)

    def test_bad_input_is_refused(self) -> None:
        task = self.add("Call mum")
        for body in (
            {},
            {"title": ""},
            {"title": "  "},
            {"title": 7},
            {"title": None},
            {"title": "x" * 301},
            {"title": "a\0b"},
            {"title": "\ud800"},
            {"title": "ok", "done": 1},
            {"title": "ok", "person": "1"},
            {"title": "ok", "person": True},
            {"title": "ok", "person": 2**70},
            {"title": "ok", "fields": []},
            {"title": "ok", "fields": {"no such field": "x"}},
        ):
            self.check_refused(422, self.call("POST", "/api/tasks", body))
        self.check_refused(404, self.call("POST", "/api/tasks", {"title": "ok", "person": 99}))
        self.check_refused(422, self.call("PATCH", f"/api/tasks/{task}", {}))
        self.check_refused(404, self.call("PATCH", "/api/tasks/abc", {"done": True}))
        self.check_refused(404, self.call("PATCH", "/api/people/99", {"name": "Nobody"}))
        self.assertEqual(self.titles(), ["Call mum"])

    def test_a_task_can_be_given_to_a_person_and_taken_back(self) -> None:
        task = self.add("Cook")
        for person in self.call("GET", "/api/tasks").data["people"]:
            for wanted in (person["id"], None):
                changed = self.call("PATCH", f"/api/tasks/{task}", {"person": wanted})
                self.assertEqual(changed.data["person"], wanted)

    def test_many_at_once_lose_nothing(self) -> None:
        def add(number: int) -> int:
            client = HTTPConnection("127.0.0.1", self.server.server_port, timeout=5)
            body = f'{{"title": "{number}"}}'
            client.request("POST", "/api/tasks", body, {"Content-Type": "application/json"})
            status = client.getresponse().status
            client.close()
            return status

        with ThreadPoolExecutor(8) as pool:
            self.assertEqual(set(pool.map(add, range(24))), {201})
        self.assertEqual(sorted(map(int, self.titles())), list(range(24)))


if __name__ == "__main__":
    unittest.main()
